"""The last lines of a run: shares of one kind, the K that a figure is at, and a command that works as typed."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from balance import pipeline
from balance.config import Settings
from balance.curation.config import AugmentConfig, Leaks
from balance.data.config import DatasetConfig
from balance.encoders.config import EncoderConfig
from balance.report import sweep
from balance.results import console
from tests import worlds
from tests.command import command


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> worlds.World:
    """Seed 2 has the samples of evaluation clip 1."""
    world = worlds.make(tmp_path_factory.mktemp("console") / "a world")
    seed, evaluation = world.records("seeds")[2], world.records("eval")[1]
    seed["aclip"] = [str(evaluation["aclip"][0])]
    seeds = world.records("seeds")
    seeds[2] = seed
    world.write("seeds", seeds)
    shutil.copy(world.media(evaluation), world.media(seed))
    return world


@pytest.fixture
def said(world, caplog):
    """Makes a run and gives what it said."""

    def make(folder: Path, k: int, augment: AugmentConfig | None = None) -> list[str]:
        folder.mkdir(parents=True)
        settings = Settings(
            k=k,
            dataset=DatasetConfig(name="tiny", root=str(world.root)),
            encoder=EncoderConfig(checkpoint=str(world.checkpoint), device="cpu"),
            augment=augment or AugmentConfig(),
            cache_dir=str(world.root.parent / "cache"),
            num_workers=2,
        )
        caplog.clear()
        with caplog.at_level(logging.INFO):
            pipeline.run(settings, folder)
        return [record.getMessage() for record in caplog.records]

    return make


def cells(lines: list[str], name: str) -> list[str]:
    """What stands beside a name of the table."""
    (line,) = (x for x in lines if re.match(rf"{re.escape(name)}(  |$)", x))
    return re.split(" {2,}", line)[1:]


def test_a_budget_is_not_set_beside_uniform_picks(said, tmp_path):
    whole = said(tmp_path / "whole", 6)
    lines = said(tmp_path / "budget", 6, AugmentConfig(budget=12))
    summary = json.loads((tmp_path / "budget" / "summary.json").read_text())
    searched = json.loads((tmp_path / "whole" / "summary.json").read_text())
    beside = [f"{searched['pool_share']:.1%}", f"{summary['pool_share_uniform']:.1%}"]
    assert cells(whole, "share of the pool") == beside
    assert cells(lines, "share of the pool") == [*beside, "before curation"]
    assert cells(lines, "after curation") == [
        str(summary["num_neighbours"]),
        f"{summary['pool_share']:.1%} of the pool",
    ]
    assert cells(lines, "label agreement@6")[-1].endswith(", before curation")
    assert not [x for x in whole if "curation" in x]


@pytest.mark.parametrize(("k", "said_at"), [(6, (6, 10)), (10, (10,)), (25, (25, 10))])
def test_agreement_says_its_k(said, tmp_path, k, said_at):
    lines = said(tmp_path / "run", k)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for figure in ("agreement", "recall"):
        found = {int(at): float(x) for at, x in re.findall(rf"^label {figure}@(\d+) +([\d.]+)", "\n".join(lines), re.M)}
        assert tuple(found) == said_at
        assert found[k] == round(summary[f"label_{figure}"], 3)
        assert cells(lines, f"label {figure}@{k}")[1] == f"{summary[f'label_{figure}_random']:.3f}"


def test_the_last_lines_name_files_that_are_there_and_a_command_that_works(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = said(tmp_path / "with a space" / "run", 3)
    assert lines[-3] == "files: with a space/run"
    named = re.findall(r"\S+\.(?:html|csv)", lines[-2].replace(",", " "))
    assert named == ["report.html", "src_augmented_k3.csv", "augmented_k3.csv"]
    assert all((tmp_path / "with a space" / "run" / name).is_file() for name in named)
    command = lines[-1].removeprefix("next: python -m ")
    done = subprocess.run(f"{sys.executable} -m {command}", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is a neighbour of" in done.stdout


def test_a_sweep_has_a_line_per_k(said, tmp_path, caplog):
    for k in (3, 25):
        said(tmp_path / f"k={k}", k)
    caplog.clear()
    rows = sweep.write_sweep(tmp_path)
    with caplog.at_level(logging.INFO):
        for number, row in enumerate(rows):
            console.tell_of_sweep(row, with_header=not number)
        console.tell_sweep(tmp_path, rows)
    _, *lines, files, _, command = [record.getMessage() for record in caplog.records]
    assert files == f"files: {tmp_path}"
    assert command == f"next: python -m balance.compare {tmp_path}/k=3 {tmp_path}/k=25"
    for k, row in zip((3, 25), lines, strict=True):
        summary = json.loads((tmp_path / f"k={k}" / "summary.json").read_text())
        expected = [str(k), str(summary["num_neighbours"]), f"{summary['pool_share']:.1%}"]
        expected += [f"{summary[x]:.3f}" for x in ("label_agreement", "label_agreement_random")]
        assert row.split() == [*expected, f"k={k}"]


def test_seeds_that_copy_evaluation_clips_are_a_warning(said, tmp_path, world):
    assert not [x for x in said(tmp_path / "id", 3) if "seeds copy" in x]
    lines = said(tmp_path / "exact", 3, AugmentConfig(leaks=Leaks.exact))
    pair = f"{world.records('seeds')[2]['id']} = {world.records('eval')[1]['id']}"
    warning = next(x for x in lines if "seeds copy" in x)
    assert warning.startswith(f"warning: 1 seeds copy evaluation clips and stay ({pair})")
    page = (tmp_path / "exact" / "report.html").read_text()
    assert f"1 seeds copy evaluation clips and stay ({pair})" in page
    assert world.records("seeds")[2]["id"] in (tmp_path / "exact" / "ids_k3.csv").read_text()


def test_a_sweep_in_one_process_says_a_line_per_k(world, tmp_path):
    typed = ("k=3,6", *world.overrides(), f"cache_dir={world.root.parent}/cache")
    done = command(tmp_path, "-m", *typed)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    header = next(i for i, x in enumerate(lines) if x.split()[:1] == ["k"])
    assert [x.split()[0] for x in lines[header : header + 5]] == ["k", "3", "6", "files:", "look"]
    assert lines[header + 5 :] == [lines[-1]]
    assert lines[-1].startswith("next: python -m balance.compare outputs/sweeps/")
    assert (done.stdout, "\033" in done.stderr) == ("", False)
    folder = tmp_path / lines[header + 3].removeprefix("files: ")
    assert "label agreement@10" in (folder / "1-k6" / "run.log").read_text(), "the rest is in each run's log"
    assert command(tmp_path, "-m", *typed, "verbosity=quiet").stderr == ""

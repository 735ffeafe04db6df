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


def line(lines: list[str], beginning: str) -> str:
    return next(x for x in lines if x.startswith(beginning))


def test_a_budget_is_not_set_beside_uniform_picks(said, tmp_path):
    whole = line(said(tmp_path / "whole", 6), "k = 6")
    lines = said(tmp_path / "budget", 6, AugmentConfig(budget=12))
    chosen = line(lines, "k = 6")
    summary = json.loads((tmp_path / "budget" / "summary.json").read_text())
    assert chosen == f"{whole}; {summary['num_neighbours']} stay after curation = {summary['pool_share']:.1%}"
    searched = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert f"= {searched['pool_share']:.1%} of" in whole
    assert f"(uniform picks: {summary['pool_share_uniform']:.1%})" in whole
    assert ", before curation" in line(lines, "label agreement@6")


@pytest.mark.parametrize(("k", "said_at"), [(6, (10, 6)), (10, (10,)), (25, (10, 25))])
def test_agreement_says_its_k(said, tmp_path, k, said_at):
    lines = [x for x in said(tmp_path / "run", k) if x.startswith("label agreement@")]
    found = {int(at): (float(a), float(r)) for x in lines for at, a, r in re.findall(
        r"^label agreement@(\d+): ([\d.]+) .* label recall@\1: ([\d.]+)", x)}  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert tuple(found) == said_at
    assert found[k] == (round(summary["label_agreement"], 3), round(summary["label_recall"], 3))


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
    with caplog.at_level(logging.INFO):
        console.tell_sweep(tmp_path, sweep.write_sweep(tmp_path))
    first, _, *rows = [record.getMessage() for record in caplog.records]
    assert first.endswith("/report.html")
    for k, row in zip((3, 25), rows, strict=True):
        summary = json.loads((tmp_path / f"k={k}" / "summary.json").read_text())
        expected = [str(k), str(summary["num_neighbours"]), f"{summary['pool_share']:.1%}"]
        expected += [f"{summary[x]:.3f}" for x in ("label_agreement", "label_agreement_random")]
        assert row.split() == expected


def test_seeds_that_copy_evaluation_clips_are_a_warning(said, tmp_path, world):
    assert not [x for x in said(tmp_path / "id", 3) if "seeds copy" in x]
    lines = said(tmp_path / "exact", 3, AugmentConfig(leaks=Leaks.exact))
    pair = f"{world.records('seeds')[2]['id']} = {world.records('eval')[1]['id']}"
    warning = next(x for x in lines if "seeds copy" in x)
    assert warning.startswith(f"warning: 1 seeds copy evaluation clips and stay ({pair})")
    page = (tmp_path / "exact" / "report.html").read_text()
    assert f"1 seeds copy evaluation clips and stay ({pair})" in page
    assert world.records("seeds")[2]["id"] in (tmp_path / "exact" / "ids_k3.csv").read_text()

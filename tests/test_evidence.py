"""`examples/evidence`: one command from class folders to a page, and the division by source that it rests on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from tests import worlds
from tests.paths import REPOSITORY

FOLDER = REPOSITORY / "examples" / "evidence"
SMALL = (
    "probe.rivals=[]", "probe.draws=2", "probe.penalties=[0.1,0.01]", "probe.folds=2",
    "probe.network_steps=5", "probe.leaks=id", "num_workers=1",
)  # fmt: skip
# The script with its commands in its own process: each by itself would spend seconds on imports.
IN_ONE_PROCESS = """
import os, runpy, sys
import run
def command(name, out, overrides):
    os.chdir(out)
    sys.argv = [name, *overrides]
    runpy.run_module(f"balance.{name}", run_name="__main__")
run.command = command
run.main(sys.argv[1:])
"""


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment on 36 clips of three pitches, six of each source."""
    folder = tmp_path_factory.mktemp("evidence")
    rng = np.random.default_rng(0)
    for number in range(36):
        label, t = number % 3, np.arange(4000) / 16_000
        tone = np.sin(2 * np.pi * 300 * (1 + 2 * label + rng.random()) * t) + 0.3 * rng.standard_normal(4000)
        path = folder / "sounds" / f"class {label}" / f"{number // 6}-{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone / 4, 16_000)
    checkpoint = worlds.write_checkpoint(folder / "tiny.pth")
    done = subprocess.run(
        [
            sys.executable, "-c", IN_ONE_PROCESS, "--data", str(folder / "sounds"), "--layout", "folders",
            "--source", r"_(\d+)-\d+$", "--encoder", f"vipant checkpoint={checkpoint}",
            "--judge", "plugin target=cepstra:Cepstra", "--k", "2", "--out", str(folder / "out"), "--", *SMALL,
        ],
        cwd=folder,
        env={
            **os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{FOLDER}", "OMP_NUM_THREADS": "1",
            "BALANCE_CACHE": "cache", "BALANCE_OUTPUTS": "outputs",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_clips_of_one_source_are_in_one_list(out: Path) -> None:
    parts = {}
    for part in ("seeds", "pool", "evaluation"):
        lines = [json.loads(line) for line in (out / "lists" / f"src_{part}.csv").read_text().splitlines()]
        for line in lines:
            given = (out / "lists" / line["dir"] / "aclip" / f"{line['id']}.{line['aclip'][0]}").resolve()
            assert given.parent.name == line["labels"][0]
            parts[given.stem] = part
    assert len(parts) == 36
    of_sources = {name: {part for stem, part in parts.items() if stem.startswith(f"{name}-")} for name in range(6)}
    assert all(len(each) == 1 for each in of_sources.values())
    assert Counter(min(each) for each in of_sources.values()) == {"seeds": 1, "pool": 3, "evaluation": 2}


def test_the_page_has_what_the_probes_found(out: Path) -> None:
    found, page = json.loads((out / "results.json").read_text()), (out / "results.md").read_text()
    assert [(one["chooser"], one["judge"]) for one in found["probes"]] == [("vipant", "Cepstra"), ("Cepstra", "vipant")]
    assert str(out) not in json.dumps(found)
    for probe in found["probes"]:
        own = json.loads((out / "probes" / f"{probe['chooser']}-{probe['judge']}" / "probe.json").read_text())
        assert not own["same_space"]
        levels = {arm["arm"]: arm["readings"]["logistic"]["map"]["value"] for arm in own["arms"]}
        _, own_page = page.split(f"## {probe['chooser']} chose, {probe['judge']} judged\n")
        for title, rule in (("**neighbours**", "neighbours"), ("same label sets", "stratified")):
            assert f"| {title} | {levels[f'{rule} k=2']:.3f} |" in own_page
    for encoder, runs in found["runs"].items():
        for run in runs:
            ids = (out / "runs" / encoder / f"k{run['k']}" / f"ids_k{run['k']}.csv").read_text().splitlines()
            assert run["num_neighbours"] == len(ids) - found["probes"][0]["counts"]["seeds"]


def wav(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(80), 16_000)


def esc50(data: Path) -> None:
    names = [f"{1 + i % 5}-{1000 + i // 2}-{'AB'[i % 2]}-7.wav" for i in range(40)]
    for name in names:
        wav(data / "audio" / name)
    rows = "".join(f"{name},{name[0]},{i % 4},class {i % 4}\n" for i, name in enumerate(names))
    (data / "meta").mkdir()
    (data / "meta" / "esc50.csv").write_text(f"filename,fold,target,category\n{rows}")


def fsd50k(data: Path) -> None:
    for folder in ("FSD50K.ground_truth", "FSD50K.metadata"):
        (data / folder).mkdir(parents=True)
    for name, first, num in (("dev", 100, 30), ("eval", 900, 10)):
        ids = [str(first + i) for i in range(num)]
        for id in ids:
            wav(data / f"FSD50K.{name}_audio" / f"{id}.wav")
        rows = "".join(f"{id},Bark,/m/{int(id) % 3}\n" for id in ids)
        (data / "FSD50K.ground_truth" / f"{name}.csv").write_text(f"fname,labels,mids\n{rows}")
        info = {id: {"uploader": f"{name} {int(id) // 2}"} for id in ids}
        (data / "FSD50K.metadata" / f"{name}_clips_info_FSD50K.json").write_text(json.dumps(info))


def audioset(data: Path) -> None:
    number = 0
    for name, num in (("balanced_train", 4), ("unbalanced_train", 20), ("eval", 6)):
        ids = [f"{number + i:011d}" for i in range(num)]
        number += num
        for id in ids:
            wav(data / "audio" / f"{id}.wav")
        (data / f"{name}_segments.csv").write_text("".join(f'{id}, 0.000, 10.000, "/m/a"\n' for id in ids))


@pytest.mark.parametrize(
    ("make", "sizes", "source"),
    [(esc50, (6, 20, 14), r"s\d+_\d-(\d+)-"), (fsd50k, (6, 24, 10), r"(s\d+)_"), (audioset, (4, 20, 6), "(.+)")],
    ids=["esc50", "fsd50k", "audioset"],
)
def test_layouts_are_read_and_divided(
    make: Callable[[Path], None], sizes: tuple[int, ...], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data")
    run, out = module("run", monkeypatch), tmp_path / "out"
    out.mkdir()
    typed = ["--data", str(tmp_path / "data"), "--layout", make.__name__, "--out", str(out), "--encoder", "demo"]
    named = dict(key.split("=") for key in run.lists_of(run.parsed([*typed, "--judge", "demo"])))
    parts = []
    for key in ("balanced", "unbalanced", "eval"):
        index = out / named["dataset.root"] / f"src_{named[f'dataset.{key}']}.csv"
        lines = [json.loads(line) for line in index.read_text().splitlines()]
        for line in lines:
            assert (index.parent / line["dir"] / "aclip" / f"{line['id']}.{line['aclip'][0]}").is_file()
        parts.append([re.match(source, line["id"])[1] for line in lines])  # type: ignore[index]
    assert tuple(map(len, parts)) == pytest.approx(sizes, abs=2)
    assert not any(set(one) & set(other) for i, one in enumerate(parts) for other in parts[:i])


def test_a_command_that_fails_ends_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        module("run", monkeypatch).command("index", tmp_path, ["index.layout=folders"])
    assert ended.value.code == 1


def test_labels_keep_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    clips = [([f"label{rng.integers(5)}"], f"source{rng.integers(200)}") for _ in range(1000)]
    shares = (0.15, 0.5, 0.35)
    part_of = module("lists", monkeypatch).deal(clips, shares, rng)
    counts = Counter((labels[0], part_of[source]) for labels, source in clips)
    for label in {labels[0] for labels, _ in clips}:
        total = sum(counts[label, part] for part in range(3))
        assert [counts[label, part] / total for part in range(3)] == pytest.approx(shares, abs=0.05)


def test_cepstra_hear_a_clip_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first of them is the mean level: ten times as loud is 2 ln 10 more in every band."""
    cepstra = module("cepstra", monkeypatch).Cepstra()
    waves = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 8000)).astype(np.float32))
    alone = cepstra.embed(waves[:1, :5000], torch.tensor([5000]))
    together = cepstra.embed(
        torch.cat([waves[:1] * (torch.arange(8000) < 5000), waves[1:]]), torch.tensor([5000, 8000])
    )
    torch.testing.assert_close(together[:1], alone)
    louder = cepstra.embed(10 * waves[:1, :5000], torch.tensor([5000])) - alone
    assert louder[0, 0].item() == pytest.approx(2 * np.log(10) * np.sqrt(2 * 40), rel=1e-4)
    assert louder[0, 1:].abs().max() < 1e-3


def test_the_page_names_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from balance.probe import sentences

    rules = module("results", monkeypatch).RULES
    assert {name for name in sentences._AGAINST if re.match(r"[a-z_]+$", name)} <= set(rules)

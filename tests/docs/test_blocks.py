"""Every code block of the documentation does what it says: commands run, Python runs, configuration composes.

Paths of a real machine stand for a tiny data set, and the K of AudioSet for one that it can give.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from balance.data.vipant_index import read_index
from tests import worlds
from tests.docs.blocks import BLOCKS, PAGES, Block, to_run
from tests.installed import Demo
from tests.paths import REPOSITORY

pytestmark = pytest.mark.timeout(900)  # the first of them waits for the demo

SMALLER = {"512": "6", "100": "5", "32": "4", "10": "3", "4": "2", "2000": "20"}


@dataclass(frozen=True)
class Desk:
    """Two finished runs of a tiny data set, and what pages need beside them."""

    world: worlds.World
    downloads: Path
    sounds: Path
    lists: Path
    runs: tuple[Path, Path]
    cache: Path
    ran: set[str] = field(default_factory=set)

    def filled_in(self, text: str, folder: Path) -> str:
        """A block's text with this desk's paths and numbers; folder: where it is run."""
        part = next((self.cache / "embeddings").glob("audioset-*/part-*.arrow"))
        for name, value in (
            ("/data/audioset", self.world.root),
            ("/models/00071478.pth", self.world.checkpoint),
            ("/data/downloads", self.downloads),
            ("/data/sounds", self.sounds),
            ("/data/ESC-50/audio", self.downloads),
            ("/data/indexes", folder / "indexes"),
            ("/scratch/shared/balance-cache", folder / "cache"),
            ("examples/", f"{REPOSITORY}/examples/"),
            ("(PART)", f"({str(part)!r})"),
            ("RUN_B", self.runs[1]),
            ("RUN", self.runs[0]),
            (" ID ", f" {self.world.records('pool')[0]['id']} "),
        ):
            text = text.replace(name, str(value))
        text = re.sub(r"_k(\d+)(?=\.|_)", lambda found: f"_k{SMALLER[found[1]]}", text)

        def smaller(found: re.Match[str]) -> str:
            return f"{found[1]}=" + re.sub(r"\d+", lambda number: SMALLER[number[0]], found[2])

        return re.sub(r"(?<=[\s.])(k|per_label)=(\[?[\d,]+\]?)", smaller, text)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, demo: Demo) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    world = worlds.make(folder / "data")
    downloads, sounds, lists = folder / "downloads", folder / "sounds", folder / "lists"
    downloads.mkdir()
    lists.mkdir()
    for split, name in worlds.SPLITS.items():
        rows = ["# Segments csv", "# num_ytids=0", "# YTID, start_seconds, end_seconds, positive_labels"]
        for record in world.records(split):
            shutil.copy(world.media(record), downloads / f"{record['id']}{world.media(record).suffix}")
            rows.append(f'{record["id"]}, 0.000, 1.000, "{",".join(record["labels"])}"')  # type: ignore[arg-type]
        (lists / f"{name}.csv").write_text("\n".join(rows) + "\n")
    esc50 = [f"{record['id']}.wav,{1 + i % 2},0,dog" for i, record in enumerate(world.records("pool"))]
    (lists / "esc50.csv").write_text("\n".join(["filename,fold,target,category", *esc50]) + "\n")
    for split, name in (("seeds", "mine"), ("pool", "downloads")):
        (sounds / name).mkdir(parents=True)
        for record in world.records(split):
            shutil.copy(world.media(record), sounds / name)
    runs = []
    for k in (6, 5):
        overrides = " ".join([*world.overrides(), f"k={k}", f"hydra.run.dir={folder}/k{k}"])
        done = type_in(f"python -m balance.run {overrides}", folder, demo.cache)
        assert done.returncode == 0, done.stderr
        runs.append(folder / f"k{k}")
    return Desk(world, downloads, sounds, lists, (runs[0], runs[1]), demo.cache)


def type_in(text: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """A shell block, typed in a folder; its `python` is the one that runs the tests."""
    python = folder / ".bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    env = {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**os.environ, **env, "BALANCE_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )


def run_block(block: Block, folder: Path, desk: Desk) -> None:
    text = desk.filled_in(block.text, folder)
    if block.language == "bash":
        if text in desk.ran:  # two pages may show one command
            return
        desk.ran.add(text)
        done = type_in(text, folder, desk.cache)
    elif block.language == "python":
        (folder / "block.py").write_text(text)
        done = type_in("python block.py", folder, desk.cache)
    elif block.language == "yaml":
        local = folder / "conf" / "local" / "default.yaml"
        local.parent.mkdir(parents=True)
        local.write_text(text)
        done = type_in("python -m balance.run --cfg job", folder, desk.cache)
        shutil.rmtree(folder / "conf")
    else:
        assert block.language == "json", f"{block}: say in a comment why it is not run"
        (folder / "src_block.csv").write_text(text)
        (path,) = read_index(folder / "src_block.csv").paths.to_pylist()
        record = json.loads(text)
        assert path == f"{record['dir']}/aclip/{record['id']}.{record['aclip'][0]}"
        return
    assert done.returncode == 0, f"{block}\n{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, desk: Desk) -> None:
    """In their order and in one folder, where the segment lists lie."""
    for path in desk.lists.iterdir():
        shutil.copy(path, tmp_path)
    for block in to_run(page):
        run_block(block, tmp_path, desk)


def test_what_the_readme_says_that_the_demo_prints(tmp_path: Path, demo: Demo) -> None:
    (shown,) = (block for block in BLOCKS if block.language == "text" and block.page.name == "README.md")
    done = type_in("python -m balance.run dataset=demo", tmp_path, demo.cache)
    assert done.returncode == 0, done.stderr
    printed = (done.stdout + done.stderr).splitlines()
    assert [line for line in shown.text.splitlines() if line not in printed] == []


def test_make_runs_the_demo_and_the_tests(tmp_path: Path) -> None:
    """The two commands of the README, without the installation."""
    for target, command in (("run", "-m balance.run dataset=demo"), ("test", "-m pytest")):
        shown = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", target],  # the suite may itself run under make
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert command in shown.splitlines()[-1]


def test_a_reason_is_given_for_every_block_that_is_not_run() -> None:
    """And a mark without a block after it is a mistake."""
    for page in PAGES:
        marks = page.read_text("utf-8").count("<!-- not run:")
        assert marks == len([block for block in BLOCKS if block.page == page and block.not_run]), page

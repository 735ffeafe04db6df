"""`python -m balance.index` as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIST = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=2
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r"
--ZhevVpy1s, 50.000, 60.000, "/m/012xff"
"""


def index(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "balance.index", *overrides],
        cwd=folder,
        env={**os.environ, "BALANCE_OUTPUTS": str(folder / "outputs")},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "eval_segments.csv").write_text(LIST)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "Y--PJHxphWEs.wav").touch()
    (tmp_path / "media" / "ontology.json").write_text('[{"id": "/m/012xff", "name": "Toothbrush"}]')
    return tmp_path


def test_an_index_and_its_inventory(folder):
    done = index(folder, "index.segments=eval_segments.csv", "index.media=media", "index.out=made")
    assert done.returncode == 0, done.stderr
    assert "1 of the 2 listed clips are there (50.0%)" in done.stderr
    assert "labels that lost most: Toothbrush 1 of 1 (100%)" in done.stderr
    assert "python -m balance.run dataset.root=made encoder.checkpoint=" in done.stderr
    assert (folder / "made" / "src_eval_segments.csv").read_text() == (
        '{"id": "--PJHxphWEs", "dir": "eval_segments_0_2", "aclip": ["p0.wav"], "frame": [], '
        '"bos": "30.000", "eos": "40.000", "labels": ["/m/09x0r"]}\n'
    )
    link = folder / "made" / "eval_segments_0_2" / "aclip" / "--PJHxphWEs.p0.wav"
    assert link.resolve() == folder / "media" / "Y--PJHxphWEs.wav"


def test_mistakes_are_one_or_two_lines(folder):
    """Together in one test: each costs the start of a process."""
    for overrides, words in [
        (("index.media=media", "index.out=made"), "index.segments is not given: type index.segments="),
        (("index.segments=[a/x.csv,b/x.csv]",), "two lists named x"),
        (("index.segments=5",), "index.segments=5 was given; a list file is needed"),
        (
            ("index.segments=eval_segments.csv", "index.media=s3://b/x", "index.out=made"),
            "index.media=s3://b/x: folders on disk are walked",
        ),
        (("index.segments=eval_segments.csv", "index.media=media", "index.out=eval_segments.csv"), "is a file, or"),
        (("index.segments=eval_segments.csv", "index.media=absent", "index.out=made"), "index.media=absent: no such"),
    ]:
        done = index(folder, *overrides)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    done = index(folder, "index.link=perhaps")
    assert done.returncode == 1
    assert "index.link" in done.stderr

"""The demo's folder: made anew at the first try after a kill at any moment, and never over anybody's files."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from balance.demo import clips, making
from balance.errors import UserError
from balance.runtime import terminal

COMPLETE = {"version": making.VERSION, "complete": True}
ENSURE = (
    "import sys; from pathlib import Path; from balance.demo.making import ensure_demo; "
    "ensure_demo(Path(sys.argv[1]), num_processes=2, wrap=dict)"
)


def start(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ENSURE, str(root)], stderr=subprocess.PIPE)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_job_leaves_no_makers_and_the_next_begins_anew(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    first = start(root)
    wait_until(lambda: len(list(root.glob("*/aclip/*"))) > 5)
    makers = children(first.pid)
    assert len(makers) == 2
    left_over = next(root.glob("*/aclip/*")).with_name("left-over")
    left_over.touch()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not any(map(is_running, makers)))
    second = start(root)
    wait_until(lambda: not left_over.exists() and len(list(root.glob("*/aclip/*"))) > 5)
    assert json.loads((root / making.MARKER).read_text()) == {**COMPLETE, "complete": False}
    second.terminate()
    assert second.communicate()[1] == b""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of text in place of the sounds."""

    def make_sounds(root: Path, _: int) -> None:
        (root / "folder").mkdir()
        (root / "folder" / "sound").write_text("complete")

    monkeypatch.setattr(making, "_make_sounds", make_sounds)


def ensure(root: Path) -> None:
    making.ensure_demo(root, num_processes=1, wrap=dict)


def is_complete(root: Path) -> bool:
    names = sorted(path.name for path in root.iterdir())
    assert (root / "folder" / "sound").read_text() == "complete"
    assert names == sorted(
        ["balance-demo.json", "checkpoint.pth", "folder", "ontology.json"]
        + [f"src_{split}_segments.csv" for split in ("balanced_train", "eval", "unbalanced_train")]
    )
    return bool(json.loads((root / making.MARKER).read_text()) == COMPLETE)


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"tmp-balance-demo-0123456789abcdef.json": ""},
        {"balance-demo.json": ""},
        {"balance-demo.json": "null", "folder/sound": "half", "src_eval_segments.csv": "half"},
        {"balance-demo.json": '{"version": 1, "complete": false}', "folder/aclip/other": ""},
        {"balance-demo.json": '{"version": 0, "complete": true}', "folder/sound": "an earlier version's"},
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_a_kill_leaves_is_made_anew(tmp_path: Path, left: dict[str, str]) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    for name, text in left.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text)
    ensure(root)
    assert is_complete(root)


@pytest.mark.parametrize("num_removed", range(5))
@pytest.mark.usefixtures("quick")
def test_a_kill_while_the_folder_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_removed: int) -> None:
    """At each file that is removed: the folder is still known as the demo's."""
    root = tmp_path / "demo"
    ensure(root)
    (root / making.MARKER).write_text('{"version": 0, "complete": true}')
    left = iter(range(num_removed))
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent == root and not path.name.startswith("tmp-") and next(left, None) is None:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure(root)
    ensure(root)
    assert is_complete(root)


@pytest.mark.usefixtures("quick")
def test_a_complete_demo_stays_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    ensure(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ensure(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.usefixtures("quick")
def test_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not the demo's"):
        ensure(tmp_path / "demo")
    assert os.listdir(tmp_path / "demo") == ["thesis.txt"]


def test_a_maker_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "all_0_500_balanced").write_text("a file where a folder must be")
    with pytest.raises(OSError, match=r"could not be written: .*all_0_500_balanced"):
        making._make_sounds(tmp_path, 1)


def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(terminal, "_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    making._show_progress(io.BytesIO(b"." * 5000), 5000)
    assert [record.getMessage().split(" files")[0] for record in caplog.records] == [
        "making the demo, once: 5,000 audio",
        "making the demo: 4,096 of 5,000",
        "making the demo: 5,000 of 5,000",
    ]


def test_a_job_that_waits_for_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = making._lock(tmp_path / "demo.lock")
    monkeypatch.setattr(time, "sleep", lambda _: held.release())
    making._lock(tmp_path / "demo.lock").release()
    assert [record.getMessage() for record in caplog.records] == ["another job is making the demo: waiting for it"]


def test_num_files_is_what_the_shards_write() -> None:
    listed = clips._clips()
    assert clips.num_files() == len(listed) - 5
    assert len({clip.id for clip in listed}) == len(listed) == 1380

"""Locks: one holder, stale at once when the holder is dead, after five minutes when it is elsewhere."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balance.embed import store_files
from balance.runtime import files, locks

HOLD = "import sys, time; from pathlib import Path; from balance.runtime import locks; \
assert locks.acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first = locks.acquire(tmp_path / "lock")
    assert first is not None
    assert locks.acquire(tmp_path / "lock") is None
    first.release()
    second = locks.acquire(tmp_path / "lock")
    assert second is not None
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_on_this_host_loses_it_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert locks.acquire(tmp_path / "lock") is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    lock.release()


def _foreign(path: Path, age_s: float) -> None:
    path.write_text(json.dumps({"host": "another-node", "pid": os.getpid(), "start_time": "1", "job": "7"}))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_lock_of_another_host_is_stale_after_five_minutes_of_silence(tmp_path: Path) -> None:
    _foreign(tmp_path / "lock", 290)
    assert locks.acquire(tmp_path / "lock") is None
    _foreign(tmp_path / "lock", 310)
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "start_time": "1", "job": ""}
    (tmp_path / "lock").write_text(json.dumps(owner))
    assert locks.is_stale(tmp_path / "lock")


def test_a_dead_process_that_nobody_waited_for_is_not_the_holder(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    assert locks.process_alive(child.pid, started)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still there as a zombie
    try:
        assert not locks.process_alive(child.pid, started)
    finally:
        child.communicate()


def test_a_half_written_lock_is_respected_while_it_is_young(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"host": "no')
    assert locks.acquire(tmp_path / "lock") is None


HOST = socket.gethostname()
UNREADABLE = {
    "not UTF-8": b"\xff\xfe{}",
    "a process id beyond a C int": json.dumps({"host": HOST, "pid": 2**40, "start_time": ""}).encode(),
    "a process id beyond any integer": b'{"host": "%s", "pid": 1e999, "start_time": ""}' % HOST.encode(),
    "a process id that is a group": json.dumps({"host": HOST, "pid": -1, "start_time": ""}).encode(),
    "deeply nested": b"[" * 100_000,
    "deeply nested in few bytes": b"[" * 4000,
    "no object": b"7",
    "another object": b'{"host": null}',
    "very long": b'{"host": "' + b"x" * 1_000_000,
    "empty": b"",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_lock_that_says_nothing_becomes_stale(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    if b"process" not in content and b"pid" not in content:
        assert locks.acquire(path) is None
    os.utime(path, (time.time() - 310, time.time() - 310))
    lock = locks.acquire(path)
    assert lock is not None
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe would be read for ever; a link may lead to another's file."""
    victim = tmp_path / "victim"
    victim.write_text("another's")
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        assert locks.acquire(tmp_path / name) is None
        os.utime(tmp_path / name, (time.time() - 310, time.time() - 310), follow_symlinks=False)
        lock = locks.acquire(tmp_path / name)
        assert lock is not None
        lock.release()
    assert victim.read_text() == "another's"
    assert list(tmp_path.iterdir()) == [victim]


def test_a_lock_dated_in_the_future_becomes_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    _foreign(path, -86400)
    assert locks.acquire(path) is None  # it was dated just now
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    time.sleep(0.4)
    lock = locks.acquire(path)
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("ahead_s", [86400, -86400])
def test_the_clock_of_the_file_system_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """A host whose own clock is wrong breaks no lock that is touched, and keeps none that is not."""
    wrong = time.time() + ahead_s
    monkeypatch.setattr(locks.time, "time", lambda: wrong)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "another-node", "pid": 1, "start_time": "1", "job": "7"}))
    assert not locks.is_stale(path)
    os.utime(path, (path.stat().st_mtime - 310,) * 2)
    assert locks.is_stale(path)


def test_a_lock_from_before_the_clock_was_set_back_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    _foreign(path, 0)
    earlier = time.time() - 86400
    monkeypatch.setattr(locks.time, "time", lambda: earlier)
    monkeypatch.setattr(locks, "_clock", lambda folder: earlier)
    assert locks.is_stale(path)


@pytest.fixture
def sticky(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sticky folder says of another user's files (those named `theirs`); root, whom it obeys, cannot see it."""

    def refused(original):  # type: ignore[no-untyped-def]
        def operation(source, *rest, **options):  # type: ignore[no-untyped-def]
            for path in (source, *rest):
                if "theirs" in str(path).rpartition("/")[2].split("-")[-1]:
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            return original(source, *rest, **options)

        return operation

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, refused(getattr(os, name)))


@pytest.mark.usefixtures("sticky")
def test_another_user_s_dead_lock_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock-theirs"
    _foreign(path, 310)
    for _ in range(2):
        lock = locks.acquire(path)
        assert lock is not None
        lock.release()
    assert path.exists()
    assert caplog.messages[0] == (
        f"{path} was left by a dead job of {path.owner()}, who alone may remove it in this folder: it is passed over"
    )


@pytest.mark.usefixtures("sticky")
def test_another_user_s_left_overs_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _foreign(tmp_path / "lock-theirs", 310)
    (tmp_path / "tmp-plan-theirs.arrow").write_bytes(b"half a part")
    store_files.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert [f"dead job of {tmp_path.owner()}" in message for message in caplog.messages] == [True, True]


@pytest.mark.usefixtures("sticky")
def test_another_user_s_file_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text("old")
    with pytest.raises(PermissionError, match=f"it belongs to {path.owner()}, and in this folder nobody else") as error:
        files.write_json(path, 1)
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.json"]

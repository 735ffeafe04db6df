"""Locks: one holder, stale at once when the holder is dead, after five minutes when it is elsewhere."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from balance.runtime import locks

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

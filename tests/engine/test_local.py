"""Shares of work in processes of their own: real processes, killed at any moment."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from balance.engine import local
from balance.engine.local import WorkersDied, run_shares
from balance.errors import UserError
from tests.engine import work
from tests.paths import REPOSITORY

MARK = "BALANCE_TEST_MARK"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of every process that this test starts, and of those that they start."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


def marked(mark: str) -> list[int]:
    """The processes with this mark that live, without this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:  # another's, or gone, or a zombie
            continue
    return found


def wait_until_none(mark: str) -> None:
    deadline = time.monotonic() + 20
    while marked(mark):
        assert time.monotonic() < deadline, [Path(f"/proc/{p}/cmdline").read_bytes() for p in marked(mark)]
        time.sleep(0.02)


def start_job(mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engine.job"],
        cwd=REPOSITORY,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_share_s_messages_arrive_in_its_order(mark: str) -> None:
    said: list[tuple[str, int, int]] = []
    run_shares(work.count, [("a", 200), ("b", 0), ("c", 50)], said.append)
    assert [number for name, number, _ in said if name == "a"] == list(range(200))
    assert [number for name, number, _ in said if name == "c"] == list(range(50))
    assert len(said) == 250
    processes = {(name, pid) for name, _, pid in said}
    assert len(processes) == 2
    assert os.getpid() not in {pid for _, pid in processes}
    assert not marked(mark)


def test_one_share_runs_in_this_process() -> None:
    said: list[tuple[str, int, int]] = []
    run_shares(work.count, [("a", 3)], said.append)
    assert said == [("a", number, os.getpid()) for number in range(3)]


def test_pipes_that_are_full_wait_for_their_reader() -> None:
    said: list[str] = []
    run_shares(work.say_much, ["x", "y"], said.append)
    assert sorted(said) == ["x" * 100_000] * 50 + ["y" * 100_000] * 50


def test_a_user_s_mistake_in_a_worker_is_raised_here_and_ends_the_others(mark: str) -> None:
    with pytest.raises(UserError, match="type something else"):
        run_shares(work.fail, ["sleeps", "user", "sleeps"], lambda _: None)
    assert not marked(mark)


def test_a_fault_in_a_worker_comes_with_its_traceback(mark: str) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError: at this line"):
        run_shares(work.fail, ["sleeps", "program"], lambda _: None)
    assert not marked(mark)


def test_what_the_listener_raises_ends_the_workers(mark: str) -> None:
    def listen(_: object) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run_shares(work.sleep, [600.0, 600.0], listen)
    assert not marked(mark)


def test_a_worker_that_dies_leaves_its_work_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    said: list[object] = []
    run_shares(work.die, [True, False, True], said.append)
    assert said.count("done") == 1
    assert caplog.text.count("a worker process died (SIGKILL)") == 2


def test_no_worker_left_is_an_error(mark: str) -> None:
    with pytest.raises(WorkersDied, match="SIGKILL"):
        run_shares(work.die, [True, True], lambda _: None)
    assert not marked(mark)


def test_workers_killed_while_they_start_are_noticed(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment on: before a worker has read its task, and while it imports."""
    start = subprocess.Popen

    def killed_after(delay_s: float, *arguments: object, **options: object) -> object:
        process = start(*arguments, **options)  # type: ignore[call-overload]
        time.sleep(delay_s)
        process.kill()
        return process

    for delay_s in (0.0, 0.002, 0.01, 0.03, 0.06, 0.1):
        monkeypatch.setattr(local.subprocess, "Popen", functools.partial(killed_after, delay_s))
        with pytest.raises(WorkersDied, match="SIGKILL"):
            run_shares(work.sleep, [600.0, 600.0], lambda _: None)
    assert not marked(mark)


def test_a_worker_that_never_starts_is_given_up(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def stopped(*arguments: object, **options: object) -> object:
        process = start(*arguments, **options)  # type: ignore[call-overload]
        process.send_signal(signal.SIGSTOP)
        return process

    monkeypatch.setattr(local.subprocess, "Popen", stopped)
    monkeypatch.setattr(local, "_START_LIMIT_S", 0.2)
    with pytest.raises(WorkersDied, match=r"no start within"):
        run_shares(work.sleep, [600.0, 600.0], lambda _: None)
    assert not marked(mark)


def test_the_parent_killed_at_any_moment_leaves_nothing(mark: str) -> None:
    moments = random.Random(3)
    for _ in range(6):
        job = start_job(mark)
        time.sleep(moments.uniform(0, 0.8))
        job.kill()
        job.communicate()
        wait_until_none(mark)
    job = start_job(mark)
    assert job.stdout is not None
    for _ in range(3):
        job.stdout.readline()
    job.kill()
    job.communicate()
    wait_until_none(mark)


def test_a_signal_at_any_moment_ends_all(mark: str) -> None:
    moments = random.Random(4)
    for number in (signal.SIGTERM, signal.SIGINT) * 5:
        job = start_job(mark)
        time.sleep(moments.uniform(0.2, 0.9))
        for process in marked(mark) if number == signal.SIGINT else [job.pid]:  # Ctrl-C reaches all of them
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        said = job.communicate(timeout=10)[1]
        assert job.returncode in (128 + number, -number), said  # -number: before Python had the handler
        wait_until_none(mark)

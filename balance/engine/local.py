"""Where work runs on this machine: in this process, or in several.

In: a function of a module and, for each process, its share of the work (picklable). Out: what the shares report, in
this process. It does not know what the work is; shares that meet must agree among themselves (embedding's do, by
locks), and one that dies leaves its work to the others. Workers are plain subprocesses whose share lies in a file
without a name, not multiprocessing's, whose start writes into a pipe: that write waits for ever, with all signals held
back, where the process dies before it reads. The price: each imports torch anew, a few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from balance.engine.seam import Place, TaskList, Work, WorkersDied
from balance.errors import UserError
from balance.runtime import child
from balance.runtime.command import STOP_SIGNALS

log = logging.getLogger(__name__)

_START_LIMIT_S = 300.0  # imports from a cold network file system take their time
_END_LIMIT_S = 3.0  # for a worker that has said its last word
_STARTED, _MESSAGE, _ERROR, _DONE = "started", "message", "error", "done"

Share = TypeVar("Share")
Message = TypeVar("Message")


class Processes:
    """The engine of this machine: a process per place. All of them go through the same tasks."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places

    def run(self, work: Work, setup: Any, tasks: TaskList[Any], on_message: Callable[[Any], None]) -> None:
        """As `seam.Engine`."""
        run_shares(_go_through, [(work, setup, place, tasks) for place in self._places], on_message)


@dataclass(frozen=True, slots=True)
class SharedTasks:
    """`seam.Tasks`: all of them, for workers that agree among themselves."""

    tasks: TaskList[Any]
    is_shared = True

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return ((number, self.tasks[number]) for number in range(len(self.tasks)))

    def finish(self, number: int) -> None:
        pass  # the others see for themselves


def _go_through(share: tuple[Work, Any, Place, TaskList[Any]], report: Callable[[Any], None]) -> None:
    work, setup, place, tasks = share
    work(setup, place, SharedTasks(tasks), report)


def run_shares(
    work: Callable[[Share, Callable[[Message], None]], None],
    shares: Sequence[Share],
    on_message: Callable[[Message], None],
) -> None:
    """`work(share, report)` for every share at once, a process each; one share runs in this process.

    work: a function of a module; report(message) reaches `on_message` in this process, each share's in order. A worker
    that dies is a warning as long as another ends well. Raises what a worker or `on_message` raises, the other workers
    are then killed; WorkersDied.
    """
    if len(shares) == 1:
        work(shares[0], on_message)
        return
    workers: list[_Worker] = []
    try:
        for share in shares:
            workers.append(_Worker(work, share))
        _listen(workers, on_message)
        for worker in workers:
            worker.wait(_END_LIMIT_S)
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """This process's end of a worker."""

    def __init__(self, work: Callable[..., None], share: Any) -> None:
        self.pipe, there = multiprocessing.connection.Pipe(duplex=False)
        with there, tempfile.TemporaryFile() as task:
            pickle.dump(sys.path, task)
            pickle.dump((work, share), task)
            task.seek(0)
            descriptors = (task.fileno(), there.fileno())
            with _signals_wait():
                self._popen = subprocess.Popen(
                    [sys.executable, "-m", "balance.engine.local", *map(str, descriptors)],
                    stdin=subprocess.PIPE,  # it ends when this does
                    pass_fds=descriptors,
                )
        self.is_started = self.is_done = False

    def wait(self, limit_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(limit_s)

    def kill(self) -> None:
        """End it if it still runs; returns though a process that hangs in the kernel is not gone yet."""
        self._popen.kill()
        self.wait(_END_LIMIT_S)
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self.pipe.close()

    def end(self) -> str:
        """How it ended: `SIGKILL`, or `exit status 1`."""
        self.wait(_END_LIMIT_S)
        status = self._popen.returncode
        if status is None:
            return "it hangs"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that stop a job, sent to all of its processes, wait here for the start to be over, and in the process
    that is started for ever: the parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(workers: Sequence[_Worker], on_message: Callable[[Any], None]) -> None:
    """Pass on what the workers report until each has ended. Raises a worker's error, or WorkersDied."""
    running: dict[Any, _Worker] = {worker.pipe: worker for worker in workers}
    deadline = time.monotonic() + _START_LIMIT_S
    ends: list[str] = []
    while running:
        starting = [worker for worker in running.values() if not worker.is_started]
        limit_s = max(0.0, deadline - time.monotonic()) if starting else None
        ready = multiprocessing.connection.wait(list(running), limit_s)
        if not ready:
            ends += [f"no start within {_START_LIMIT_S:.0f} s" for _ in starting]
            running = {pipe: worker for pipe, worker in running.items() if worker.is_started}
        for pipe in ready:
            worker = running[pipe]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                del running[pipe]
                if not worker.is_done:
                    ends.append(worker.end())
                    log.warning("a worker process died (%s); its work is left to the others", ends[-1])
                continue
            if kind == _ERROR:
                raise value
            if kind == _MESSAGE:
                on_message(value)
            worker.is_started = True
            worker.is_done = kind == _DONE
    if not any(worker.is_done for worker in workers):
        raise WorkersDied(", ".join(dict.fromkeys(ends)))


def main() -> None:
    """A worker's whole life: `python -m balance.engine.local TASK PIPE`, two inherited descriptors."""
    child.follow_parent()
    child.end_with_stdin()
    with Connection(int(sys.argv[2]), readable=False) as pipe:
        try:
            with os.fdopen(int(sys.argv[1]), "rb") as task:
                sys.path[:] = pickle.load(task)
                work, share = pickle.load(task)
            pipe.send((_STARTED, None))
            work(share, lambda message: pipe.send((_MESSAGE, message)))
            pipe.send((_DONE, None))
        except Exception as error:
            if not isinstance(error, (UserError, OSError)):
                error = RuntimeError(f"a worker process failed:\n{traceback.format_exc()}")
            with contextlib.suppress(OSError):  # the parent is gone
                pipe.send((_ERROR, error))


if __name__ == "__main__":
    main()

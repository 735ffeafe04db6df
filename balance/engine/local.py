"""Where work runs on this machine: in this process, or in several.

In: a function and, for each process, its share of the work (picklable). Out: what the shares report, in this process.
It does not know what the work is; shares that meet must agree among themselves (embedding's do, by locks). A worker
ends itself when its parent is gone, so that kill -9 of the command leaves nothing running.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

from balance.errors import UserError
from balance.runtime.command import STOP_SIGNALS

Share = TypeVar("Share")
Message = TypeVar("Message")


def run_shares(
    work: Callable[[Share, Callable[[Message], None]], None],
    shares: Sequence[Share],
    on_message: Callable[[Message], None],
) -> None:
    """`work(share, report)` for every share at once, a process each; one share runs in this process.

    work: a function of a module; report(message) reaches `on_message` in this process. Raises what a worker or
    `on_message` raises; the other workers are then killed.
    """
    if len(shares) == 1:
        work(shares[0], on_message)
        return
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # starting it with the first process would let signals through again
    threads = max(1, torch.get_num_threads() // len(shares))
    processes, pipes = [], []
    try:
        for share in shares:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, share, threads, there), daemon=True)
            with _signals_wait():
                process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        _listen(list(pipes), on_message)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that stop a job, sent to all of its processes, wait here for the start to be over, and in the process
    that is started for ever: the parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(pipes: list[Any], on_message: Callable[[Any], None]) -> None:
    """Pass on what the workers report until each has closed its pipe."""
    while pipes:
        for pipe in multiprocessing.connection.wait(pipes):
            assert isinstance(pipe, multiprocessing.connection.Connection)
            try:
                message = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                continue
            if isinstance(message, BaseException):
                raise message
            on_message(message)


def _work(work: Callable[[Any, Callable[[Any], None]], None], share: Any, threads: int, pipe: Any) -> None:
    """A worker's whole life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(share, pipe.send)
    except (UserError, OSError) as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(RuntimeError(f"a worker process failed: {type(error).__name__}: {error}"))
    finally:
        with contextlib.suppress(OSError):
            pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

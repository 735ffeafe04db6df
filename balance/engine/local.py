"""Where embedding runs: in this process, or in several, one a visible GPU.

All processes go through the same list of parts; the parts' locks decide who makes which, exactly as between jobs on
one cache. A worker ends itself when its parent is gone, so that kill -9 of the command leaves nothing running.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch

from balance.embed import store
from balance.embed.worker import EmbedTask, Progress, Report, embed
from balance.records import UserError
from balance.runtime import command


def worker_devices(device: str, num_processes: int | str) -> list[str]:
    """The device of each encoder process: `auto` is one a visible GPU where `device` is `cuda`, else one in all."""
    if num_processes == "auto":
        num_processes = torch.cuda.device_count() if device == "cuda" else 1
    assert isinstance(num_processes, int)
    if device == "cuda":
        return [f"cuda:{i % torch.cuda.device_count()}" for i in range(num_processes)]
    return [device] * num_processes


def embed_on(task: EmbedTask, devices: list[str], report: Report) -> None:
    """`embed.embed` on these devices; `report` is called in this process. Raises what a worker or `report` raises."""
    if len(devices) == 1:
        embed(dataclasses.replace(task, device=devices[0]), report)
        return
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # starting it with the first process would let signals through again
    shares = [len(range(i, task.num_workers, len(devices))) or 1 for i in range(len(devices))]
    threads = max(1, torch.get_num_threads() // len(devices))
    processes, pipes = [], []
    try:
        for device, num_workers in zip(devices, shares, strict=True):
            here, there = context.Pipe(duplex=False)
            share = dataclasses.replace(task, device=device, num_workers=num_workers)
            process = context.Process(target=_work, args=(share, threads, there), daemon=True)
            with _signals_wait():
                process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        _listen(list(pipes), task, report)
    except BaseException:
        for process in processes:
            process.kill()  # parts are atomic, and the lock of a dead process is stale at once
        raise
    finally:
        for process in processes:
            process.join()
        store.remove_leftovers(task.directory)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that stop a job, sent to all of its processes, wait here for the start to be over, and in the process
    that is started for ever: the parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, command.STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(pipes: list[Any], task: EmbedTask, report: Report) -> None:
    """Pass on what the workers report until each has closed its pipe; a part is reported once."""
    reported: set[int] = set()
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
            if message.part is not None:
                if message.part in reported:  # the worker that waited for it tells too
                    continue
                reported.add(message.part)
            elif message.by_others:
                continue
            report(message)
    missing = set(range(len(task.plan.names))) - reported
    if missing:
        raise RuntimeError(f"encoder processes ended before {len(missing)} parts were made: run the same command again")


def _work(task: EmbedTask, threads: int, pipe: Any) -> None:
    """A worker's whole life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def report(progress: Progress) -> None:
        pipe.send(progress)

    try:
        embed(task, report)
    except (UserError, OSError) as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(RuntimeError(f"an encoder process failed: {type(error).__name__}: {error}"))
    finally:
        with contextlib.suppress(OSError):
            pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

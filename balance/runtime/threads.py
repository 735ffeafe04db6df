"""Torch on a CPU with a core a task, instead of all cores on every operation.

In: a function and its items. Out: the results, in order. Torch spreads each operation over all cores and waits for
the slowest at its end; beside decoder processes, which take a core away at any moment, all others stand still
meanwhile. Threads that run whole clips, each on one core, wait for nothing, and a clip's bits do not depend on the
number of cores. The price: weights are read once a core, and the last tasks leave cores idle.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Cores:
    """As many threads as torch may use; a context manager, inside of which every torch operation has one core."""

    def __enter__(self) -> Cores:
        self._count = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread, and of libraries that know one number for the whole process
        self._threads = ThreadPoolExecutor(self._count, "core", torch.set_num_threads, (1,))
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        torch.set_num_threads(self._count)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """[function(item) for item in items]; raises what the first that fails raises."""
        return list(self._threads.map(function, items))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Inside, torch computes on one core: for many small operations, which cost more to share than to do."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


class Workspace(threading.local):
    """Memory that a thread uses again and again: new memory costs 1 to 5 µs a page, which is much for one pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, torch.Tensor] = {}

    def empty(self, name: str, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of any content; it holds until the thread asks for its name again."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.dtype != dtype or len(kept) < size:
            del kept
            self._kept.pop(name, None)
            if self._device.type == "cpu":  # numpy asks the system for pages of 2 MB, torch does not
                self._kept[name] = torch.from_numpy(np.empty(size * dtype.itemsize, np.uint8)).view(dtype)
            else:
                self._kept[name] = torch.empty(size, dtype=dtype, device=self._device)
        return self._kept[name][:size].view(shape)

    def clear(self) -> None:
        """Let go of this thread's memory."""
        self._kept.clear()

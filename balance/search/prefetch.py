"""Blocks of the pool on their way to the device: one is read while the one before it is searched.

In: `Vectors` and, in order, the rows that are wanted. Out: float32 rows on the device. For a GPU a thread reads ahead
into the other of two pinned buffers, from which CUDA copies in the background; a CPU's cores read their own blocks, and
rows that lie on a GPU are taken as they are. The price: two blocks of pinned memory, and one block that is read in
vain where the blocks become smaller.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from balance.records import Vectors


class Blocks:
    """`take` gives the rows of a block; a context manager, whose thread ends with it."""

    def __init__(self, pool: Vectors, device: torch.device) -> None:
        self._pool, self._device = pool, device
        self._ahead: tuple[tuple[int, int], Future[torch.Tensor]] | None = None
        self._buffers = [torch.empty(0), torch.empty(0)]  # by turns
        self._copied: Any = None  # an event after the last copy from one of them
        self._reader = ThreadPoolExecutor(1, "pool reader")

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def take(self, block: slice, following: slice) -> torch.Tensor:
        """Rows (n, dim) float32 on the device; following: the block that is asked for next, perhaps an empty one."""
        if self._device.type == "cpu":
            return torch.as_tensor(self._pool.read(block.start, block.stop))
        if self._ahead is not None and self._ahead[0] == (block.start, block.stop):
            rows = self._ahead[1].result()
        else:
            if self._ahead is not None:
                self._ahead[1].exception()  # it writes into the buffer until then
            rows = torch.as_tensor(self._pool.read(block.start, block.stop))
            if rows.device.type != "cpu":
                return rows.to(self._device)
            rows = self._fill(self._buffer(len(rows)), rows)
        self._ahead = None
        there = rows.to(self._device, non_blocking=True)
        if following.start < following.stop:
            buffer = self._buffer(following.stop - following.start)
            future = self._reader.submit(self._read, following.start, following.stop, buffer)
            self._ahead = (following.start, following.stop), future
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return there

    def _buffer(self, num_rows: int) -> torch.Tensor:
        """So many pinned rows that no copy reads from."""
        if self._copied is not None:
            self._copied.synchronize()  # of the block before: done long ago
        self._buffers.reverse()
        if len(self._buffers[0]) < num_rows:
            self._buffers[0] = torch.empty(num_rows, self._pool.shape[1], dtype=torch.float32, pin_memory=True)
        return self._buffers[0][:num_rows]

    def _read(self, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        """In the reader's thread, which knows no device."""
        return self._fill(buffer, torch.as_tensor(self._pool.read(start, stop)))

    @staticmethod
    def _fill(buffer: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        buffer.numpy()[:] = rows.numpy()
        return buffer

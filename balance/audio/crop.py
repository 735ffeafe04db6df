"""Which part of an over-long clip the encoder hears, found while the clip passes by in blocks.

In: a clip's blocks, in order, and its length. Out: channel 0 of the published loader's choice of centre, head or tail,
and the mean of that part. A clip of hours is never held in memory: per candidate only one channel of the 10 s is
kept, and sums in float64. The price: standard deviations are merged from chunks of 8,192 values (Chan, Golub and
LeVeque 1983), so they may differ from numpy's in the last bits, which decides only where the published rule is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

_CHUNK_VALUES = 8192  # summed at a time in float64: they stay in the first cache

Samples = npt.NDArray[np.float32]


class Moments:
    """Sum and sum of squares of float32 values in float64.

    The values are taken in chunks of a fixed size, however they arrive, so that the sums have the same bits for any
    size of block. spread: the squares are of the distances from the mean.
    """

    def __init__(self, *, spread: bool = False) -> None:
        self._spread = spread
        self._chunk = np.empty(_CHUNK_VALUES, dtype=np.float64)
        self._filled = 0
        self._count = 0
        self._total = self._squares = 0.0

    def add(self, block: Samples) -> None:
        """block: (n, channels), contiguous."""
        values = block.reshape(-1)
        at = 0
        while at < values.size:
            piece = values[at : at + _CHUNK_VALUES - self._filled]
            self._chunk[self._filled : self._filled + piece.size] = piece
            self._filled += piece.size
            at += piece.size
            if self._filled == _CHUNK_VALUES:
                self._sum_up()

    @property
    def count(self) -> int:
        self._sum_up()
        return self._count

    @property
    def energy(self) -> float:
        """Sum of squares; not finite if any value is not. Not with `spread`."""
        assert not self._spread
        self._sum_up()
        return self._squares

    @property
    def mean(self) -> float:
        self._sum_up()
        return self._total / self._count

    @property
    def std(self) -> float:
        """The unbiased standard deviation; NaN for a single value, as numpy has it. Only with `spread`."""
        assert self._spread
        self._sum_up()
        return math.sqrt(self._squares / (self._count - 1)) if self._count > 1 else math.nan

    def _sum_up(self) -> None:
        chunk, size = self._chunk[: self._filled], self._filled
        if not size:
            return
        total = float(chunk.sum())
        if self._spread:
            mean = total / size
            chunk -= mean
            if self._count:
                apart = mean - self._total / self._count
                self._squares += apart * apart * self._count * size / (self._count + size)
        self._squares += float(np.einsum("i,i->", chunk, chunk))
        self._total += total
        self._count += size
        self._filled = 0


class _Stretch:
    """Samples start … start + size of a clip: channel 0 of the first `num_needed`, the moments of all of them."""

    def __init__(self, start: int, size: int, num_needed: int) -> None:
        self._start, self.stop = start, start + size
        self.samples = np.empty(min(size, num_needed), dtype=np.float32)
        self.moments = Moments(spread=True)

    def add(self, at: int, block: Samples) -> None:
        """block: (n, channels), whose first sample is number `at` of the clip."""
        first, last = max(self._start - at, 0), min(self.stop - at, len(block))
        if first >= last:
            return
        inside = block[first:last]
        self.moments.add(inside)
        place = at + first - self._start
        needed = inside[: max(0, len(self.samples) - place), 0]
        self.samples[place : place + len(needed)] = needed


def first_channel(blocks: Iterable[Samples], size: int) -> Samples:
    """Channel 0 of the first `size` samples, (size,) float32."""
    out = np.empty(size, dtype=np.float32)
    at = 0
    for block in blocks:
        part = block[: size - at, 0]
        out[at : at + len(part)] = part
        at += len(part)
        if at == size:
            break
    return out[:at]


def crop(
    blocks: Callable[[], Iterable[Samples]], whole_std: float, num_samples: int, num_kept: int, num_needed: int
) -> tuple[Samples, float]:
    """(channel 0 of the part that the published loader takes, its mean over all channels).

    blocks: gives all `num_samples` > `num_kept` samples, (n, channels) each, from the first on, and is asked for no
    more of them than needed; whole_std: their standard deviation; of the part's `num_kept` samples the first
    `num_needed` are returned. The part is the centre; but where the centre's standard deviation (unbiased, all channels
    together) is below half of the whole clip's, the head; and where the head's is then below the centre's, the tail.
    Raises ValueError where the blocks end too early.
    """
    head, centre, tail = (
        _Stretch(start, num_kept, num_needed)
        for start in (0, round((num_samples - num_kept) / 2), num_samples - num_kept)
    )
    _gather(blocks(), head, centre)
    chosen = centre
    if centre.moments.std < whole_std / 2:
        chosen = head
        if head.moments.std < centre.moments.std:
            chosen = tail
            _gather(blocks(), tail)
    return chosen.samples, chosen.moments.mean


def _gather(blocks: Iterable[Samples], *stretches: _Stretch) -> None:
    at, stop = 0, max(stretch.stop for stretch in stretches)
    for block in blocks:
        for stretch in stretches:
            stretch.add(at, block)
        at += len(block)
        if at >= stop:
            return
    raise ValueError(f"{at} samples, at least {stop} are needed")

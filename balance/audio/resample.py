"""What every encoder but VIP-ANT hears: the mean of the channels at the encoder's rate, in windows of its length.

In: a decoded clip's blocks, in order. Out: mono samples, resampled by soxr (its HQ recipe) as they stream by; and where
the windows of a long clip begin. soxr gives the same bits for any size of block, so that a clip decoded from a tar
hears like the same clip decoded from its file. Decoder processes import this module: neither torch nor `records`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import soxr

QUALITY = "HQ"

Samples = npt.NDArray[np.float32]


def version() -> str:
    """What a store's fingerprint says of the resampler: another version may give other last bits."""
    return f"soxr {soxr.__version__} ({soxr.__libsoxr_version__}) {QUALITY}"


class Mixer:
    """Blocks (n, channels) float32 in, by `add`; mono float32 at the other rate out; `end` gives what is left."""

    def __init__(self, sample_rate: int, to_rate: int | None) -> None:
        """to_rate: None leaves the rate as it is."""
        is_same = to_rate is None or to_rate == sample_rate
        self._stream = (
            None if is_same else soxr.ResampleStream(sample_rate, to_rate, 1, dtype="float32", quality=QUALITY)
        )

    def add(self, block: Samples) -> Samples:
        mono: Samples = block.mean(axis=1, dtype=np.float64).astype(np.float32)
        return self._resample(mono, last=False)

    def end(self) -> Samples:
        return self._resample(np.empty(0, dtype=np.float32), last=True)

    def _resample(self, mono: Samples, *, last: bool) -> Samples:
        return mono if self._stream is None else np.asarray(self._stream.resample_chunk(mono, last=last))


def mixed(blocks: Iterable[Samples], sample_rate: int, to_rate: int | None) -> Iterator[Samples]:
    """The whole clip, block by block: mono float32 at `to_rate`."""
    mixer = Mixer(sample_rate, to_rate)
    for block in blocks:
        yield mixer.add(block)
    yield mixer.end()


def window_starts(num_samples: int, window: int | None) -> list[int]:
    """The first sample of each window: ⌈num_samples / window⌉ of them, evenly from 0 to num_samples − window, rounded.

    One window, the clip itself, where it is not longer or `window` is None.
    """
    if window is None or num_samples <= window:
        return [0]
    gaps = -(-num_samples // window) - 1
    return [round(i * (num_samples - window) / gaps) for i in range(gaps + 1)]


def cut(blocks: Iterable[Samples], starts: list[int], window: int) -> Iterator[Samples]:
    """The windows (window,) of a clip that passes by in mono blocks, holding no more of it than one window and a block.

    Raises ValueError where the blocks end too early.
    """
    pending = iter(starts)
    start = next(pending)
    held: list[Samples] = []  # the samples from number `first` on
    first = end = 0
    for block in blocks:
        held.append(block)
        end += len(block)
        if end < start + window:
            continue
        kept = np.concatenate(held)
        while end >= start + window:
            yield kept[start - first : start - first + window]
            following = next(pending, None)
            if following is None:
                return
            start = following
        held, first = [kept[start - first :]], start
    raise ValueError(f"{end} samples, {start + window} are needed")

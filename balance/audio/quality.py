"""What a curator asks of a recording first, measured on the blocks of a clip as they stream by.

In: a clip's blocks, in order. Out: seven numbers (`records.QUALITY`): channels and whether they are all alike, the
share of values at full scale, the effective bandwidth, the silence at both ends. The price, about a twentieth of the
decoding, is held down: a block is looked at closely only where it is loud enough to clip or has the first or last
sound, and the bandwidth comes from `_WINDOWS` windows of each block: a short hiss between two of them is not seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FULL_SCALE = 1 - 1 / 32_768  # the largest value of 16 bits
_SILENCE = 1e-3  # −60 dB against full scale
_WINDOWS, _WINDOW = 2, 1024
_BELOW_PEAK = 1e-8  # of the strongest band's power, −80 dB: what is weaker is a filter's slope
_BELOW_16_BITS = 1e-6  # power that the rounding to 16 bits has in a window's band, at most

Block = npt.NDArray[np.float32]


def _blackman_harris(size: int) -> Block:
    """(size,) float32 whose leakage is below −92 dB four bands away. Source: Harris 1978, 4 terms."""
    turn = 2 * np.pi * np.arange(size) / size
    terms = enumerate((0.35875, -0.48829, 0.14128, -0.01168))
    taper: Block = np.sum([weight * np.cos(k * turn) for k, weight in terms], axis=0).astype(np.float32)
    return taper


_TAPER = _blackman_harris(_WINDOW)


class Quality:
    """The sound of one clip. channels: of its blocks."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._sample_rate, self._channels = sample_rate, channels
        self._are_equal = True
        self._num_samples = self._num_clipped = 0
        self._first_loud = -1
        self._last_loud: tuple[int, Block] | None = None  # (its first sample, the last block that is not silent)
        self._power = np.zeros(_WINDOW // 2 + 1, dtype=np.float32)

    def add(self, block: Block) -> None:
        """block: (n, channels), which stays as it is."""
        peak = max(float(block.max()), -float(block.min()))
        if peak >= _FULL_SCALE:
            self._num_clipped += int((np.abs(block) >= _FULL_SCALE).sum())
        if peak > _SILENCE:
            if self._first_loud < 0:
                self._first_loud = self._num_samples + _first_loud(block.reshape(-1)) // self._channels
            self._last_loud = self._num_samples, block
            self._add_power(block[:, 0])
        if self._are_equal and self._channels > 1:
            self._are_equal = all(bool((some == some[:, :1]).all()) for some in (block[::97], block))
        self._num_samples += len(block)

    def _add_power(self, samples: Block) -> None:
        windows = np.zeros((_WINDOWS, _WINDOW), dtype=np.float32)
        for window, at in zip(windows, range(0, len(samples), -(-len(samples) // _WINDOWS)), strict=False):
            some = samples[at : at + _WINDOW]
            window[: len(some)] = some
        spectra = np.fft.rfft(windows * _TAPER)
        power = (spectra.real**2 + spectra.imag**2).max(axis=0)
        self._power = np.maximum(self._power, power)

    def numbers(self, mean: float) -> tuple[float, ...]:
        """In the order of `records.QUALITY`. mean: over all values of the clip. A clip of silence has no bandwidth (0),
        and is silent to its end from both sides."""
        leading = trailing = self._num_samples
        if self._last_loud is not None:
            at, block = self._last_loud
            leading = self._first_loud
            trailing = self._num_samples - at - len(block) + _first_loud(block.reshape(-1)[::-1]) // self._channels
        bands = np.flatnonzero(self._power > max(_BELOW_PEAK * float(self._power.max()), _BELOW_16_BITS))
        bandwidth_hz = min((int(bands[-1]) + 1) / _WINDOW, 0.5) * self._sample_rate if len(bands) else 0.0
        return (
            float(self._channels),
            float(self._are_equal),
            self._num_clipped / max(1, self._num_samples * self._channels),
            mean,
            bandwidth_hz,
            leading / self._sample_rate,
            trailing / self._sample_rate,
        )


def _first_loud(values: Block) -> int:
    """The place of the first value that is not silent, of which there is one."""
    return int(np.argmax(np.abs(values) > _SILENCE))

"""Whether two clips are copies by their sound: two judges over the same log-mel frames.

The first is the normalised cross-correlation of the two log-mel spectrograms, centred per band over the overlap, at the
best lag that leaves 3 s of overlap, or most of a shorter clip: gain and equalisers add a constant per band and vanish,
codecs take a little. Noise, reverberation and clipping fill the quiet parts and take more, so where the first says no
a second looks at what stays: in each cell the change over 80 ms of the step from band to band, bounded (as fingerprints
do, Haitsma and Kalker 2002), compared where both clips have any. Unrelated clips agree there by chance alone. A loop
agrees with itself at other times as well, and so would two takes of one machine: only what goes beyond that counts.
It is not asked of clips under 3 s, since two syllables of one voice may agree. Sparse clips of unlike sounds can
correlate, but their changes do not agree: then the second overrules the first. Less sound must agree better
(`required`). The figures behind the constants are in docs/curation.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from balance.curation.log_mel import HOP_S, MIN_FRAMES, NUM_BANDS
from balance.records import Bool, Float32, Float64, Int64

MIN_OVERLAP = round(3.0 / HOP_S)
SHORT_OVERLAP = 0.8  # of the shorter clip, where that is less: a copy may lack a little at either end
MOST_FRAMES = 512  # of a clip: 10 s and a little
STRICTEST = 0.3  # of the distance from threshold to 1: two takes of one spoken word reach 0.968 of 1 at 0.9
LEAST_CORRELATION = 0.6  # below it the second judge is not asked
OVERRULED = 0.55  # agreement below which clips are no copies, however they correlate
AGREEMENT = 0.57  # the second judge's own threshold
ENOUGH = 350.0  # cells that change, as their weights add up; where fewer do they must agree better
FEW = 200.0  # fewer agree by chance at some lag
BEYOND_ITSELF = 0.3  # of the distance from a clip's agreement with itself at other times to 1
STEP = 4  # frames of a change
BOUND = 0.5  # neper: a change well above it counts 1
ITSELF_FROM = 10  # frames from which a clip is compared with itself
_FFT = 1024  # >= two clips of MOST_FRAMES


def changes(log_mel: Float32) -> Float32:
    """Of each cell the change of the step to the next band, over STEP frames, in (−1, 1); (frames, NUM_BANDS − 1)."""
    padded = np.concatenate([log_mel[:1], log_mel, log_mel[-1:]])
    steps = np.diff((padded[:-2] + padded[1:-1] + padded[2:]) / 3, axis=1)
    change = np.zeros_like(steps)
    change[STEP // 2 : -(STEP // 2)] = steps[STEP:] - steps[:-STEP]
    bounded: Float32 = change / np.sqrt(change**2 + np.float32(BOUND**2))
    return bounded


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A clip's features made ready for both judges.

    transform: (_FFT // 2 + 1, NUM_BANDS) complex64, the features' spectrum over time; sums: (frames + 1, NUM_BANDS)
    float64 of the features up to each frame; energy: (frames + 1,) float64 of their squares; changes, weights:
    (_FFT // 2 + 1, NUM_BANDS − 1) complex64 spectra of `changes` and of their absolute values; itself: the agreement
    of the clip with itself at other times.
    """

    transform: Any
    sums: Float64
    energy: Float64
    changes: Any
    weights: Any
    itself: float

    @property
    def num_frames(self) -> int:
        return len(self.energy) - 1

    @staticmethod
    def of(log_mel: Float32) -> Profile:
        """log_mel: at most MOST_FRAMES frames; none of a silent clip."""
        level = log_mel - log_mel.mean(axis=0, keepdims=True) if len(log_mel) else log_mel
        wide = level.astype(np.float64)
        zero = np.zeros((1, NUM_BANDS))
        change = changes(log_mel) if len(log_mel) > STEP else np.zeros((0, NUM_BANDS - 1), dtype=np.float32)
        spectrum, weights = _spectrum(change), _spectrum(np.abs(change))
        return Profile(
            _spectrum(level),
            np.concatenate([zero, np.cumsum(wide, axis=0)]),
            np.concatenate([[0.0], np.cumsum((wide**2).sum(axis=1))]),
            spectrum,
            weights,
            _with_itself(spectrum, weights, len(log_mel)),
        )


def _spectrum(rows: Float32) -> Any:
    padded = np.zeros((_FFT, rows.shape[1]), dtype=np.float32)
    padded[: len(rows)] = rows
    return torch.fft.rfft(torch.from_numpy(padded), dim=0).numpy()


def _at_lags(a: Any, b: Any, lags: Int64) -> Float32:
    """Sum over bands and frames of a(t) b(t + lag), from spectra; (lags,) float32."""
    found: Float32 = torch.fft.irfft(torch.from_numpy((a.conj() * b).sum(axis=1)), n=_FFT).numpy()[lags % _FFT]
    return found


def _agreements(a: tuple[Any, Any], b: tuple[Any, Any], lags: Int64) -> tuple[Float64, Float64]:
    """At each lag the mean agreement of the cells, −1 … 1, each weighted by how much it changes in both clips, and what
    these weights add up to. a, b: spectra of changes and weights."""
    weight = np.maximum(_at_lags(a[1], b[1], lags), 1.0).astype(np.float64)
    return _at_lags(a[0], b[0], lags) / weight, weight


def _belief(weight: Float64) -> Float64:
    return np.sqrt(np.minimum(weight / FEW, 1.0))


def _with_itself(changes: Any, weights: Any, num_frames: int) -> float:
    lags = np.arange(ITSELF_FROM, num_frames * 3 // 5)
    if not len(lags):
        return 0.0
    agreements, weight = _agreements((changes, weights), (changes, weights), lags)
    return float((agreements * _belief(weight)).max())


@dataclass(frozen=True, slots=True)
class Heard:
    """Two clips side by side. correlation: of the first judge, at its best lag; agreement: of the second, at the lag
    that decides; lag: that one, in frames: frame t of the first clip meets t + lag of the second; is_copy: the verdict.
    """

    correlation: float
    agreement: float
    lag: int
    is_copy: bool


_NOTHING = Heard(0.0, 0.0, 0, False)


def judge(a: Profile, b: Profile, threshold: float) -> Heard:
    """Whether two clips are copies. threshold: correlation from which they are, from 3 s of sound on.

    Only lags count that leave overlap enough; where there is none nothing is heard.
    """
    lags = _lags(a, b)
    if not len(lags):
        return _NOTHING
    correlations = _correlations(a, b, lags)
    best = int(correlations.argmax())
    correlation = float(correlations[best])
    sound = min(a.num_frames, b.num_frames) / MIN_OVERLAP
    if correlation < LEAST_CORRELATION:
        return Heard(correlation, 0.0, int(lags[best]), False)
    agreements, weight = _agreements((a.changes, a.weights), (b.changes, b.weights), lags)
    if correlation >= required(threshold, sound):
        spare = agreements - required(OVERRULED, weight / ENOUGH)
        if spare[max(best - 1, 0) : best + 2].max() >= 0:
            return Heard(correlation, float(agreements[best]), int(lags[best]), True)
    agreements = agreements * _belief(weight)
    best = int(agreements.argmax())
    agreement = float(agreements[best])
    needed = max(float(required(AGREEMENT, weight[best] / ENOUGH)), beyond(max(a.itself, b.itself)))
    return Heard(correlation, agreement, int(lags[best]), sound >= 1.0 and agreement >= needed)


def beyond(itself: float) -> float:
    """The agreement that says more than a clip's agreement with itself at other times."""
    return itself + BEYOND_ITSELF * (1.0 - itself)


def correlation(a: Profile, b: Profile) -> float:
    """Greatest normalised cross-correlation of two clips over lags that leave overlap enough; 0 if there is none."""
    lags = _lags(a, b)
    return float(_correlations(a, b, lags).max()) if len(lags) else 0.0


def required(threshold: float, share: Float64 | float) -> Float64:
    """What clips must reach to be copies that have this share of enough sound; `threshold` where it is 1 or more.

    Less sound agrees by chance more often, so the distance to 1 shrinks with it, down to STRICTEST: of 22,400 pairs of
    takes of one word by one speaker (0.2 to 1.2 s) 11 % correlate at 0.9, none at 0.97.
    """
    return np.asarray(1.0 - (1.0 - threshold) * np.clip(share, STRICTEST, 1.0))


def overlap(num_a: int, num_b: int, lag: int) -> tuple[int, int]:
    """(first, last + 1) frame of a clip of num_a frames that meets one of num_b at this lag."""
    return max(0, -lag), min(num_a, num_b - lag)


def _lags(a: Profile, b: Profile) -> Int64:
    num_a, num_b = a.num_frames, b.num_frames
    least = min(MIN_OVERLAP, math.ceil(SHORT_OVERLAP * min(num_a, num_b)))
    return np.arange(least - num_a, num_b - least + 1 if min(num_a, num_b) >= MIN_FRAMES else least - num_a)


def _correlations(a: Profile, b: Profile, lags: Int64) -> Float64:
    """At each lag d, where frame t of `a` meets frame t + d of `b`; each band is centred over the overlap."""
    start_a, stop_a = np.maximum(0, -lags), np.minimum(a.num_frames, b.num_frames - lags)
    start_b, stop_b = start_a + lags, stop_a + lags
    num = (stop_a - start_a).astype(np.float64)
    sum_a, sum_b = a.sums[stop_a] - a.sums[start_a], b.sums[stop_b] - b.sums[start_b]  # (lags, bands)
    cross = _at_lags(a.transform, b.transform, lags) - (sum_a * sum_b).sum(axis=1) / num
    own_a = a.energy[stop_a] - a.energy[start_a] - (sum_a**2).sum(axis=1) / num
    own_b = b.energy[stop_b] - b.energy[start_b] - (sum_b**2).sum(axis=1) / num
    # A nearly constant overlap has no pattern to compare: 0.01 neper² a band and frame is far below any sound.
    floor = 0.01 * NUM_BANDS * num
    heard: Bool = (own_a > floor) & (own_b > floor)
    value = np.zeros(len(lags))
    value[heard] = cross[heard] / np.sqrt(own_a[heard] * own_b[heard])
    return np.clip(value, -1.0, 1.0)

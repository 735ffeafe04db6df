"""Which clips share a stretch of sound: hashes of half-frames, counted at one lag. It proposes; the judge decides.

In: log-mel features, clip by clip. Out: for each clip the earlier ones that agree with it most. A hash says of the
lower or the upper bands whether the step from band to band rises or falls over 80 ms, now and 120 ms later (after
Haitsma and Kalker 2002, "A Highly Robust Audio Fingerprinting System"), which gain, equalisers and codecs leave as it
is for most frames; two copies have many equal hashes at one lag, other clips a few. Noise fills one half of the bands
before the other; it, reverberation and another speed turn the weakest bits first, so a frame is also looked up with
each of these turned. An encoder may hear two sample rates of one recording as two sounds; this does not depend on it.
Price: 12 bytes per frame of the clips that are looked for (170 MB for 20,000 clips of 10 s), and some milliseconds per
clip that is compared with so many.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from balance.records import Float32, Int64

UInt32 = npt.NDArray[np.uint32]

NUM_BITS = 20  # two million hashes: ten frames each of 20,000 evaluation clips
STEP = 4  # frames from which a change is taken
LATER = 6  # frames between the two moments of a hash
NUM_WEAK = 2  # bits of a hash that may have turned
MIN_VOTES = 5  # one of a thousand pairs of unlike clips of 10 s has as many
NUM_SIMILAR = 8  # earlier clips that are proposed, at most
COMMON = 2_000  # frames with one hash from which it says nothing: silence, hum
MAX_HASHES = 100_000_000  # kept, 1 GB; of more clips' frames only those of every second, third … hash
FRAMES_PER_CLIP = 500  # about
SPEEDS = np.linspace(0.94, 1.06, 17)  # of a copy that runs faster or slower; 0.75 % apart drift two frames in 5 s
_LAGS = 4 * FRAMES_PER_CLIP  # more than two clips can be apart, either way
_BITS = 1 << np.arange(NUM_BITS, dtype=np.int64)
_HALF = NUM_BITS // 2  # steps between bands of the lower, or upper, half


def hashes(log_mel: Float32) -> tuple[UInt32, Int64]:
    """(hash, frame) of a clip's frames by the lower bands, then by the upper; log_mel: (frames, bands) float32."""
    return _hashes(log_mel, [[]])


def with_weak_bits_turned(log_mel: Float32) -> tuple[UInt32, Int64]:
    """(hash, frame) of all that `hashes` gives, and of the same with every choice of the NUM_WEAK bits of least change
    turned: 2 ** NUM_WEAK of each."""
    return _hashes(
        log_mel, [list(some) for size in range(NUM_WEAK + 1) for some in itertools.combinations(range(NUM_WEAK), size)]
    )


def _hashes(log_mel: Float32, turned: list[list[int]]) -> tuple[UInt32, Int64]:
    """turned: choices of weak bits, by their place among the weakest."""
    changes = _changes(log_mel)
    frame = np.arange(len(changes) - LATER, dtype=np.int64)
    found = []
    for half, steps in enumerate((changes[:, :_HALF], changes[:, -_HALF:])):
        change = np.concatenate([steps[:-LATER], steps[LATER:]], axis=1)
        hash = (change > 0) @ _BITS + (half << NUM_BITS)
        weakest = 1 << np.argsort(np.abs(change), axis=1, kind="stable")[:, :NUM_WEAK]
        found += [hash ^ weakest[:, some].sum(axis=1) for some in turned]
    return np.concatenate(found).astype(np.uint32), np.tile(frame, len(found))


def _changes(log_mel: Float32) -> Float32:
    """The change of the step from band to band over STEP frames, (frames − STEP, bands − 1) float32; zeros for a clip
    of too few frames."""
    padded = np.concatenate([log_mel[:1], log_mel, log_mel[-1:]])
    smooth = padded[:-2] + padded[1:-1] + padded[2:]
    between_bands = np.diff(smooth, axis=1)
    return np.asarray(between_bands[STEP:] - between_bands[:-STEP])


@dataclass(frozen=True, slots=True)
class Similar:
    """An earlier clip that agrees with the one that asks. votes: equal hashes at its best speed; speed: of SPEEDS, how
    much faster the one that asks runs."""

    clip: int
    votes: int
    speed: float


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Frames of some clips by their hash: clip (n,) int32, frame (n,) int16, in the order of their hashes; start: of
    each hash the place of its first frame, and n, int32."""

    start: npt.NDArray[np.int32]
    clip: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int16]

    @staticmethod
    def of(hash: UInt32, clip: npt.NDArray[np.int32], frame: npt.NDArray[np.int16]) -> _Block:
        order = np.argsort(hash, kind="stable")
        start = np.zeros((2 << NUM_BITS) + 1, dtype=np.int32)
        np.cumsum(np.bincount(hash, minlength=2 << NUM_BITS), out=start[1:])
        return _Block(start, clip[order], frame[order])

    def join(self, other: _Block) -> _Block:
        return _Block.of(
            np.concatenate([self.hashes(), other.hashes()]),
            np.concatenate([self.clip, other.clip]),
            np.concatenate([self.frame, other.frame]),
        )

    def hashes(self) -> UInt32:
        """(n,) uint32, ascending."""
        return np.repeat(np.arange(2 << NUM_BITS, dtype=np.uint32), np.diff(self.start))

    def equal(self, hash: UInt32, frame: Int64) -> tuple[Int64, Int64, Int64]:
        """(clip, its frame, the asker's frame) of every frame with one of these hashes; frame: the asker's."""
        low, high = self.start[hash].astype(np.int64), self.start[hash + np.uint32(1)].astype(np.int64)
        count = np.where(high - low > COMMON, 0, high - low)
        first = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
        return self.clip[first].astype(np.int64), self.frame[first].astype(np.int64), np.repeat(frame, count)


class Fingerprints:
    """The frames of clips numbered 0 … num_clips − 1, which are added in that order."""

    def __init__(self, num_clips: int) -> None:
        self._one_in = -(-num_clips * 2 * FRAMES_PER_CLIP // MAX_HASHES) or 1
        self._blocks: list[_Block] = []

    def add(self, clips: Mapping[int, Float32]) -> None:
        """clips: number -> features. Blocks of like size are joined, so that few are to be searched."""
        found = [(number, *self._some(*hashes(log_mel))) for number, log_mel in clips.items()]
        if not found:
            return
        block = _Block.of(
            np.concatenate([hash for _, hash, _ in found]),
            np.concatenate([np.full(len(hash), number, dtype=np.int32) for number, hash, _ in found]),
            np.concatenate([frame.astype(np.int16) for _, _, frame in found]),
        )
        while self._blocks and len(self._blocks[-1].clip) <= len(block.clip):
            block = self._blocks.pop().join(block)
        self._blocks.append(block)

    def similar(self, number: int, log_mel: Float32) -> list[Similar]:
        """The clips before this one that agree with it most, NUM_SIMILAR at most, ascending."""
        hash, frame = self._some(*with_weak_bits_turned(log_mel))
        parts = [block.equal(hash, frame) for block in self._blocks]
        if not parts:
            return []
        clip, its, mine = (np.concatenate(column) for column in zip(*parts, strict=True))
        places, votes = _votes(clip * _LAGS + mine - its + _LAGS // 2)
        clips, start = np.unique(places // _LAGS, return_index=True)
        if not len(clips):
            return []
        best = np.where(clips < number, np.maximum.reduceat(votes, start), 0)
        order = np.lexsort((clips, -best))[:NUM_SIMILAR]
        chosen = np.sort(clips[order[best[order] >= MIN_VOTES]])
        of_chosen = np.isin(clip, chosen)
        clip, its, mine = clip[of_chosen], its[of_chosen], mine[of_chosen]
        return [_at_best_speed(int(one), its[clip == one], mine[clip == one]) for one in chosen]

    def _some(self, hash: UInt32, frame: Int64) -> tuple[UInt32, Int64]:
        some = hash % self._one_in == 0
        return hash[some], frame[some]


def _votes(places: Int64) -> tuple[Int64, Int64]:
    """(the distinct places, how often each occurs, counted with the places beside it)."""
    distinct, votes = np.unique(places, return_counts=True)
    near = votes.copy()  # frames of two copies are up to half a frame apart, and fall on two lags
    beside = np.flatnonzero(np.diff(distinct) == 1)
    near[beside] += votes[beside + 1]
    near[beside + 1] += votes[beside]
    return distinct, near


def _at_best_speed(clip: int, its: Int64, mine: Int64) -> Similar:
    """its, mine: frames with equal hashes. Of equal votes the speed that is nearest to 1."""
    votes = [int(_votes(np.round(mine * speed).astype(np.int64) - its)[1].max()) for speed in SPEEDS]
    best = min(range(len(SPEEDS)), key=lambda i: (-votes[i], abs(SPEEDS[i] - 1.0), i))
    return Similar(clip, votes[best], float(SPEEDS[best]))

"""Which clips share a stretch of sound: hashes of single frames, counted at one lag. It proposes; correlation decides.

In: log-mel features, clip by clip. Out: for each clip the earlier ones that agree with it most. A frame's hash says
whether the step from band to band rises or falls over 80 ms (Haitsma and Kalker 2002, "A Highly Robust Audio
Fingerprinting System", with longer frames), which gain, equalisers and codecs leave as it is for most frames; two
copies have many equal hashes at one lag, other clips a few. An encoder may hear two sample rates of one recording as
two sounds; this does not depend on it. What it misses, loud noise over sparse sound, an encoder proposes. Price: 10
bytes per frame of the clips that are looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from balance.records import Float32, Int64

UInt32 = npt.NDArray[np.uint32]

NUM_BITS = 20  # a million hashes: ten frames each of 20,000 evaluation clips
STEP = 4  # frames from which a change is taken
MIN_VOTES = 5  # one of a thousand pairs of unlike clips of 10 s has as many
NUM_SIMILAR = 8  # earlier clips that are proposed, at most
COMMON = 2_000  # frames with one hash from which it says nothing: silence, hum
MAX_HASHES = 100_000_000  # kept; of more clips' frames only those of every second, third … hash
FRAMES_PER_CLIP = 500  # at most
_LAGS = 4 * FRAMES_PER_CLIP  # more than two clips can be apart, either way


def hashes(log_mel: Float32) -> tuple[UInt32, Int64]:
    """(hash, frame) of a clip's frames from the STEP-th on; log_mel: (frames, bands) float32."""
    if len(log_mel) <= STEP:
        return np.empty(0, np.uint32), np.empty(0, np.int64)
    padded = np.concatenate([log_mel[:1], log_mel, log_mel[-1:]])
    smooth = padded[:-2] + padded[1:-1] + padded[2:]
    between_bands = np.diff(smooth, axis=1)
    change = between_bands[STEP:] - between_bands[:-STEP]
    used = np.linspace(0, change.shape[1] - 1, NUM_BITS).round().astype(np.int64)
    found = (change[:, used] > 0) @ (1 << np.arange(NUM_BITS, dtype=np.int64))
    return found.astype(np.uint32), np.arange(STEP, len(log_mel), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Frames of some clips by their hash: hash (n,) uint32 ascending, clip (n,) int32, frame (n,) int16."""

    hash: UInt32
    clip: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int16]

    @staticmethod
    def of(hash: UInt32, clip: npt.NDArray[np.int32], frame: npt.NDArray[np.int16]) -> _Block:
        order = np.argsort(hash, kind="stable")
        return _Block(hash[order], clip[order], frame[order])

    def join(self, other: _Block) -> _Block:
        return _Block.of(
            np.concatenate([self.hash, other.hash]),
            np.concatenate([self.clip, other.clip]),
            np.concatenate([self.frame, other.frame]),
        )

    def equal(self, hash: UInt32, frame: Int64) -> tuple[Int64, Int64]:
        """(clip, lag) of every frame with one of these hashes; frame: of each hash."""
        low, high = np.searchsorted(self.hash, hash, "left"), np.searchsorted(self.hash, hash, "right")
        count = np.where(high - low > COMMON, 0, high - low)
        first = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
        return self.clip[first].astype(np.int64), np.repeat(frame, count) - self.frame[first]


class Fingerprints:
    """The frames of clips numbered 0 … num_clips − 1, which are added in that order."""

    def __init__(self, num_clips: int) -> None:
        self._one_in = -(-num_clips * FRAMES_PER_CLIP // MAX_HASHES) or 1
        self._blocks: list[_Block] = []

    def add(self, clips: Mapping[int, Float32]) -> None:
        """clips: number -> features. Blocks of like size are joined, so that few are to be searched."""
        found = [(number, *self._kept(log_mel)) for number, log_mel in clips.items()]
        if not found:
            return
        block = _Block.of(
            np.concatenate([hash for _, hash, _ in found]),
            np.concatenate([np.full(len(hash), number, dtype=np.int32) for number, hash, _ in found]),
            np.concatenate([frame.astype(np.int16) for _, _, frame in found]),
        )
        while self._blocks and len(self._blocks[-1].hash) <= len(block.hash):
            block = self._blocks.pop().join(block)
        self._blocks.append(block)

    def similar(self, number: int, log_mel: Float32) -> list[int]:
        """The clips before this one that agree with it most, NUM_SIMILAR at most, ascending."""
        hash, frame = self._kept(log_mel)
        found = [block.equal(hash, frame) for block in self._blocks]
        clip = np.concatenate([np.empty(0, np.int64), *(clip for clip, _ in found)])
        lag = np.concatenate([np.empty(0, np.int64), *(lag for _, lag in found)])
        earlier = clip < number
        places, votes = np.unique(clip[earlier] * _LAGS + lag[earlier] + _LAGS // 2, return_counts=True)
        near = votes.copy()  # frames of two copies are up to half a frame apart, and fall on two lags
        beside = np.flatnonzero(np.diff(places) == 1)
        near[beside] += votes[beside + 1]
        near[beside + 1] += votes[beside]
        clips, start = np.unique(places // _LAGS, return_index=True)
        if not len(clips):
            return []
        best = np.maximum.reduceat(near, start)
        order = np.lexsort((clips, -best))[:NUM_SIMILAR]
        return sorted(clips[order[best[order] >= MIN_VOTES]].tolist())

    def _kept(self, log_mel: Float32) -> tuple[UInt32, Int64]:
        hash, frame = hashes(log_mel)
        some = hash % self._one_in == 0
        return hash[some], frame[some]

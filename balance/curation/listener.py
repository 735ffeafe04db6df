"""One clip against many that were heard before it: fingerprints and the caller propose, the judge decides.

In: features of clips by number, in ascending order; the first of them are remembered. Out: `Match`es. What a
fingerprint proposes is compared at equal pace first; the few that agree most also at the speed that their votes lie on,
with and without its pitch, and finely where a coarse look finds anything. Features wait in a temporary file as float16
(24 kB per clip of 10 s); the fingerprints are in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from balance.curation.fingerprint import Fingerprints, Similar
from balance.curation.judge import MIN_OVERLAP, MOST_FRAMES, Heard, Profile, beyond, judge, overlap
from balance.curation.log_mel import HOP_S, NUM_BANDS, Pace, at_pace
from balance.records import Float32

NUM_PACED = 3  # proposals whose speed is looked for: those of the most votes
WORTH_A_LOOK = 0.35  # agreement at the coarse speed; of unrelated clips one in twenty reaches it
AT_ANOTHER_PACE = 0.8  # agreement that copies reach there; takes of one sentence by one speaker reach 0.7
FINE = (-0.005, -0.0025, 0.0025, 0.005)  # beside the coarse speed
EQUAL_PACE = Pace()
_RECORD_BYTES = MOST_FRAMES * NUM_BANDS * 2


@dataclass(frozen=True, slots=True)
class Match:
    """Clip `node` is a copy of `other`, which was remembered. pace: how much faster `node` runs; heard: with `other`
    first, and `node` brought to its pace; start, stop: frames of `other` that meet one of `node`."""

    other: int
    node: int
    pace: Pace
    heard: Heard
    start: int
    stop: int

    @staticmethod
    def of(other: int, node: int, theirs: Profile, mine: _Paced, pace: Pace, heard: Heard) -> Match:
        start, stop = overlap(theirs.num_frames, mine.at(pace).num_frames, heard.lag)
        return Match(other, node, pace, heard, start, stop)

    def seconds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The stretch of `other` and that of `node`, each from its clip's beginning, in `node`'s own time."""
        ours = ((frame + self.heard.lag) * HOP_S / self.pace.speed for frame in (self.start, self.stop))
        return (self.start * HOP_S, self.stop * HOP_S), (next(ours), next(ours))


class Listener:
    """Holds the clips that others are compared with: numbers 0 … num_clips − 1, remembered in that order.

    file: an open temporary file for their features; threshold: the judge's.
    """

    def __init__(self, file: BinaryIO, num_clips: int, threshold: float) -> None:
        self._descriptor = file.fileno()
        self._threshold = threshold
        self._prints = Fingerprints(num_clips)
        self._bytes: dict[int, int] = {}

    def remember(self, log_mels: Mapping[int, Float32]) -> None:
        """log_mels: number -> features, at most MOST_FRAMES."""
        self._prints.add(log_mels)
        for node, log_mel in log_mels.items():
            data = log_mel.astype(np.float16).tobytes()
            os.pwrite(self._descriptor, data, node * _RECORD_BYTES)
            self._bytes[node] = len(data)

    def copies_of(
        self, node: int, log_mel: Float32, proposed: Iterable[int] = (), *, by_fingerprint: bool = True
    ) -> list[Match]:
        """The remembered clips before `node` that are its copies, ascending. proposed: numbers to compare with beside
        what the fingerprints propose. Threads may ask at once, but not while clips are remembered."""
        similar = self._prints.similar(node, log_mel) if by_fingerprint else []
        mine = _Paced(log_mel)
        found = {}
        for other in sorted({*proposed, *(one.clip for one in similar)}):
            theirs = self._profile(other)
            if theirs is not None and (heard := judge(theirs, mine.at(EQUAL_PACE), self._threshold)).is_copy:
                found[other] = Match.of(other, node, theirs, mine, EQUAL_PACE, heard)
        for one in sorted(similar, key=lambda one: (-one.votes, one.clip))[:NUM_PACED]:
            known = found.get(one.clip)
            if known is None or known.heard.correlation < self._threshold:
                match = self._at_another_pace(one, node, mine)
                if match is not None and (known is None or match.heard.agreement > known.heard.agreement):
                    found[one.clip] = match
        return [found[other] for other in sorted(found)]

    def _at_another_pace(self, one: Similar, node: int, mine: _Paced) -> Match | None:
        theirs = self._profile(one.clip)
        if theirs is None or one.speed == 1.0 or min(theirs.num_frames, mine.num_frames) < MIN_OVERLAP:
            return None  # of two takes of one word, either could be the other at another pace
        coarse = [(judge(theirs, mine.at(pace), self._threshold), pace) for pace in _both(one.speed)]
        heard, pace = max(coarse, key=lambda found: found[0].agreement)
        if heard.agreement < WORTH_A_LOOK:
            return None
        fine = [Pace(pace.speed + step, pace.with_pitch) for step in FINE]
        tried = [(heard, pace), *((judge(theirs, mine.at(one), self._threshold), one) for one in fine)]
        copies = [(heard, pace) for heard, pace in tried if heard.is_copy]
        if not copies:
            return None
        heard, pace = max(copies, key=lambda found: found[0].correlation)
        # Two regular rhythms always meet at some pace: that says nothing.
        if heard.agreement < max(AT_ANOTHER_PACE, beyond(max(theirs.itself, mine.at(pace).itself))):
            return None
        return Match.of(one.clip, node, theirs, mine, pace, heard)

    def _profile(self, node: int) -> Profile | None:
        """None of a clip that was not remembered."""
        if node not in self._bytes:
            return None
        data = os.pread(self._descriptor, self._bytes[node], node * _RECORD_BYTES)
        return Profile.of(np.frombuffer(data, dtype=np.float16).reshape(-1, NUM_BANDS).astype(np.float32))


def _both(speed: float) -> tuple[Pace, Pace]:
    return Pace(speed, with_pitch=True), Pace(speed, with_pitch=False)


class _Paced:
    """A clip's profiles at the paces that were asked for."""

    def __init__(self, log_mel: Float32) -> None:
        self._log_mel = log_mel
        self._profiles: dict[Pace, Profile] = {}
        self.num_frames = len(log_mel)

    def at(self, pace: Pace) -> Profile:
        """Of the clip as it would be if it did not run at that pace."""
        if pace not in self._profiles:
            undone = Pace(1 / pace.speed, pace.with_pitch)
            self._profiles[pace] = Profile.of(at_pace(self._log_mel, undone)[:MOST_FRAMES])
        return self._profiles[pace]

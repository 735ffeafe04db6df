"""The pairs of an audit: training clips that are evaluation clips by id, by equal samples, by sound.

In: the lists, and what was heard of them. Out: `Pair`s in the order of the lists; a pair that several rules find has
the first of them. By sound every window of a training clip is compared with those windows of evaluation clips that its
fingerprint proposes; of several windows the pair keeps the best. Memory: 170 MB of fingerprints per 20,000 evaluation
clips of 10 s; their features wait in a temporary file.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc

from balance.audit.lists import Listed
from balance.curation.listener import Listener, Match
from balance.curation.sounds import Heard
from balance.data import clip_ids
from balance.data.config import Ids
from balance.records import Float32
from balance.runtime.threads import Cores
from balance.runtime.wording import listed

log = logging.getLogger(__name__)

RULES = ("id", "exact", "acoustic")
_BATCH = 256

T = TypeVar("T")
Clip = tuple[int, int]  # number of its list on its side, row


@dataclass(frozen=True, slots=True)
class Sound:
    """How two clips agree. correlation, agreement: of the judges; speed: how much faster the training clip runs;
    with_pitch: whether its pitch went with it; stretches: of the training clip and of the evaluation clip that meet, in
    seconds; lag_s: how much later the training clip has it."""

    correlation: float
    agreement: float
    speed: float
    with_pitch: bool
    train_s: tuple[float, float]
    eval_s: tuple[float, float]

    @property
    def lag_s(self) -> float:
        return round(self.train_s[0] - self.eval_s[0], 3)


@dataclass(frozen=True, slots=True)
class Pair:
    """A training clip that is an evaluation clip. rule: one of RULES; sound: None where only the ids are equal."""

    train: Clip
    eval: Clip
    rule: str
    sound: Sound | None


def by_id(train: Sequence[Listed], eval: Sequence[Listed], ids_as: Ids) -> Iterator[Pair]:
    """Pairs of equal ids, as it is printed how two lists' are compared; ids_as: `dataset.ids`."""
    ways: dict[Ids, list[str]] = {}
    for ours, theirs in itertools.product(train, eval):
        read_as = clip_ids.read_as(ids_as, ours.index.ids, theirs.index.ids)
        ways.setdefault(read_as, []).append(f"{ours.name} with {theirs.name}")
    for read_as, lists in ways.items():
        log.info("ids are compared %s: %s", clip_ids.WORDS[read_as], listed(lists))
    for (a, ours), (b, theirs) in itertools.product(enumerate(train), enumerate(eval)):
        read_as = clip_ids.read_as(ids_as, ours.index.ids, theirs.index.ids)
        mine = clip_ids.comparable(ours.index.ids, read_as)
        found = pc.index_in(mine, value_set=clip_ids.comparable(theirs.index.ids, read_as))
        for row in np.flatnonzero(np.asarray(found.is_valid())).tolist():
            yield Pair((a, row), (b, found[row].as_py()), "id", None)


class Samples:
    """Evaluation clips by their samples."""

    def __init__(self) -> None:
        self._clips: dict[bytes, list[Clip]] = {}

    def add(self, clip: Clip, heard: Heard) -> None:
        """A silent clip is nobody's copy."""
        if not heard.reason and not heard.is_silent:
            self._clips.setdefault(heard.pcm_sha1, []).append(clip)

    def pairs(self, clip: Clip, heard: Heard) -> list[Pair]:
        """The evaluation clips with the samples of a training clip."""
        whole = (0.0, round(heard.seconds, 3))
        same = Sound(1.0, 1.0, 1.0, False, whole, whole)
        return [Pair(clip, other, "exact", same) for other in self._clips.get(heard.pcm_sha1, [])]


@dataclass(frozen=True, slots=True)
class _Window:
    clip: Clip
    start_s: float


def by_sound(
    eval: Iterable[tuple[Clip, Heard]],
    train: Iterable[tuple[Clip, Heard]],
    *,
    num_eval_windows: int,
    threshold: float,
    scratch: Path,
) -> Iterator[Pair]:
    """Pairs that sound alike. num_eval_windows: at least as many as there are; scratch: a folder for a temporary
    file."""
    with tempfile.TemporaryFile(dir=scratch) as file, Cores() as cores:
        listener = Listener(file, num_eval_windows, threshold)
        windows: list[_Window] = []
        for batch in _batches(_windows(eval)):
            listener.remember({len(windows) + i: log_mel for i, (_, log_mel) in enumerate(batch)})
            windows += [window for window, _ in batch]

        def copies_of(window: tuple[_Window, Float32]) -> list[tuple[_Window, Match]]:
            return [(window[0], match) for match in listener.copies_of(len(windows), window[1])]

        for clips in _batches(train):
            found = cores.map(copies_of, _windows(clips))
            yield from _best(itertools.chain.from_iterable(found), windows)


def _windows(clips: Iterable[tuple[Clip, Heard]]) -> Iterator[tuple[_Window, Float32]]:
    for clip, heard in clips:
        for start_s, log_mel in zip(heard.starts_s, heard.windows, strict=True):
            if len(log_mel):
                yield _Window(clip, start_s), log_mel


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch


def _best(found: Iterable[tuple[_Window, Match]], windows: Sequence[_Window]) -> Iterator[Pair]:
    best: dict[tuple[Clip, Clip], Pair] = {}
    for ours, match in found:
        theirs = windows[match.other]
        eval_s, train_s = match.seconds()
        sound = Sound(
            correlation=round(match.heard.correlation, 4),
            agreement=round(match.heard.agreement, 4),
            speed=round(match.pace.speed, 4),
            with_pitch=match.pace.with_pitch,
            train_s=_from(ours.start_s, train_s),
            eval_s=_from(theirs.start_s, eval_s),
        )
        pair = Pair(ours.clip, theirs.clip, "acoustic", sound)
        known = best.setdefault((pair.train, pair.eval), pair)
        assert known.sound is not None
        if sound.correlation > known.sound.correlation:
            best[pair.train, pair.eval] = pair
    yield from best.values()


def _from(start_s: float, stretch: tuple[float, float]) -> tuple[float, float]:
    return round(start_s + stretch[0], 3), round(start_s + stretch[1], 3)


def first_of_each(pairs: Iterable[Pair]) -> list[Pair]:
    """Of pairs of the same clips the one of the first rule; in the order of the lists."""
    best: dict[tuple[Clip, Clip], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: RULES.index(pair.rule)):
        best.setdefault((pair.train, pair.eval), pair)
    return [best[key] for key in sorted(best)]

"""Random and stratified baselines: sets of as many clips as were chosen, to compare the chosen ones with.

In: eligible pool rows, the chosen ones, label sets, random numbers. Out: pool rows. A random draw says what the number
of clips gives; a stratified one, with as many clips of every label set, what the choice of labels gives. A run and the
probe draw from the same `Stratified`; each brings the random order that its own results are pinned to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balance.curation.label_cap import label_sets
from balance.records import Int64, Labels


def random_draw(eligible: Int64, size: int, rng: np.random.Generator) -> Int64:
    """`size` eligible pool rows, uniform without replacement, ascending."""
    return np.sort(eligible[rng.choice(len(eligible), size, replace=False, shuffle=False)])


class Stratified:
    """Draws with the same number of clips of every label set as the chosen ones, as far as the pool allows.

    labels: of the pool's index; eligible, chosen: rows of it; residual: clips that no draw can replace.
    """

    def __init__(self, labels: Labels, eligible: Int64, chosen: Int64) -> None:
        self._eligible = eligible
        of = _by_first_clip(label_sets(labels.take(np.concatenate([eligible, chosen]))).of)
        self._of = of[: len(eligible)]
        wanted = np.bincount(of[len(eligible) :], minlength=int(of.max(initial=-1)) + 1)
        existing = np.bincount(self._of, minlength=len(wanted))
        self._take = np.minimum(wanted, existing)
        self._first = np.cumsum(existing) - existing
        self.residual = int((wanted - self._take).sum())

    def draw(self, order: Int64) -> Int64:
        """Pool rows, set by set, of each set the first in `order`, a permutation of the eligible clips' places."""
        order = order[np.argsort(self._of[order], kind="stable")]
        of = self._of[order]
        place = np.arange(len(order)) - self._first[of]
        return self._eligible[order[place < self._take[of]]]


def _by_first_clip(of: Int64) -> Int64:
    """The sets numbered in the order in which clips show them, so that a draw does not depend on the labels' names."""
    first = np.unique(of, return_index=True)[1]
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[of]


@dataclass(frozen=True, slots=True)
class BaselineFigures:
    """`curation.controls` of summary.json: draws of each kind; clips that no stratified draw could replace; the mean
    share of a stratified draw that was chosen too."""

    draws: int
    stratified_residual: int
    shared: float


@dataclass(frozen=True, slots=True, eq=False)
class Baselines:
    """random, stratified: (d,) int64 pool rows, ascending, of each draw; figures: None where none was asked for."""

    random: tuple[Int64, ...] = ()
    stratified: tuple[Int64, ...] = ()
    figures: BaselineFigures | None = None


def draw_baselines(
    labels: Labels,
    eligible: Int64,
    chosen: Int64,
    *,
    random: Sequence[np.random.Generator],
    stratified: Sequence[np.random.Generator],
) -> Baselines:
    """One draw of each kind per stream of random numbers; eligible, chosen: pool rows; labels: of the pool's index."""
    matched = Stratified(labels, eligible, chosen)
    same_size = tuple(random_draw(eligible, len(chosen), rng) for rng in random)
    same_labels = tuple(
        np.sort(matched.draw(np.argsort(rng.random(len(eligible)), kind="stable"))) for rng in stratified
    )
    shared = float(np.mean([np.isin(rows, chosen).mean() if len(rows) else 0.0 for rows in same_labels]))
    return Baselines(same_size, same_labels, BaselineFigures(len(same_labels), matched.residual, shared))

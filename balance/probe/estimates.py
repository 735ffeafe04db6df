"""Figures with intervals: of an arm, and of the difference between two, draws of one rule taken together.

In: the probe's table; out: `Estimate`s. The draws of a rule are reported as their mean, resampled over the draws too
(two levels), so that the luck of one random set is in the interval. No figure is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balance.probe import bootstrap
from balance.probe.bootstrap import Estimate
from balance.probe.results import CLASSIFIERS, Evaluation, FitResult, Table
from balance.records import Float64

FIGURES = ("map", "map_prior", "d_prime")
_UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True, slots=True)
class Group:
    """Fits that are reported as one arm: one training set, or the draws of one rule. fits: places in the table."""

    title: str
    fits: tuple[int, ...]
    rule: str
    name: str
    k: int | None

    def matches(self, other: Group) -> bool:
        """Whether the two are arm and draws of one size."""
        return (self.name, self.k) == (other.name, other.k)


def groups_of(fits: Sequence[FitResult]) -> list[Group]:
    """The arms in order, draws joined."""
    out: list[Group] = []
    for i, fit in enumerate(fits):
        arm = fit.arm
        if arm.draw is None:
            out.append(Group(arm.title, (i,), arm.rule, arm.name, arm.k))
        elif arm.draw == 0:
            out.append(Group(arm.title.rsplit(" draw ", 1)[0], (i,), arm.rule, arm.name, arm.k))
        else:
            at = next(j for j, g in enumerate(out) if (g.rule, g.name, g.k) == (arm.rule, arm.name, arm.k))
            g = out[at]
            out[at] = Group(g.title, (*g.fits, i), g.rule, g.name, g.k)
    return out


class Estimates:
    """Estimates of groups and of their differences."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table, self._seed = table, seed
        self._summaries: dict[tuple[int, str, str], tuple[float, Float64]] = {}

    def summary(self, fit: int, classifier: str, figure: str) -> tuple[float, Float64]:
        """A fit's figure and its replicates (B,)."""
        key = (fit, classifier, figure)
        if key not in self._summaries:
            self._summaries[key] = self._evaluation(fit, classifier).summary(figure)
        return self._summaries[key]

    def _evaluation(self, fit: int, classifier: str) -> Evaluation:
        return self._table.evaluations[fit][classifier]

    def _rng(self, group: Group) -> np.random.Generator:
        return np.random.default_rng([self._seed, 13, *group.fits])

    def level(self, group: Group, classifier: str, figure: str) -> Estimate:
        """A group's own figure; for draws their mean, resampled over draws too."""
        each = [self.summary(i, classifier, figure) for i in group.fits]
        value = float(np.mean([own for own, _ in each]))
        replicates = np.mean([of_clips for _, of_clips in each], axis=0)
        if (num := len(each)) > 1:
            deviation = np.array([own for own, _ in each]) - value
            picked = self._rng(group).integers(0, num, (len(replicates), num))
            replicates = replicates + deviation[picked].mean(axis=1) * np.sqrt(num / (num - 1))
        return bootstrap.estimate(value, replicates, _UNBOUNDED if figure == "d_prime" else (0.0, 1.0))

    def difference(self, group: Group, reference: Group, classifier: str, figure: str) -> Estimate:
        """A single training set minus a reference arm, paired over the evaluation clips."""
        (one,) = group.fits
        own, own_replicates = self.summary(one, classifier, figure)
        each = [self.summary(i, classifier, figure) for i in reference.fits]
        value, replicates = bootstrap.against_draws(
            np.array([own]),
            own_replicates[:, None],
            np.array([[value] for value, _ in each]),
            np.stack([of_clips[:, None] for _, of_clips in each]),
            self._rng(reference),
        )
        bounds = _UNBOUNDED if figure == "d_prime" else (-1.0, 1.0)
        return bootstrap.estimate(float(value[0]), replicates[:, 0], bounds)

    def label_differences(self, group: Group, reference: Group) -> tuple[Float64, Float64]:
        """AP differences of each label by the first classifier: (L,), and replicates (B, L)."""
        (one,) = group.fits
        own = self._evaluation(one, CLASSIFIERS[0])
        others = [self._evaluation(i, CLASSIFIERS[0]) for i in reference.fits]
        return bootstrap.against_draws(
            own.point.ap[0],
            own.replicates.ap,
            np.stack([other.point.ap[0] for other in others]),
            np.stack([other.replicates.ap for other in others]),
            self._rng(reference),
        )

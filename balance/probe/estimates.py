"""Figures with intervals: of an arm, and of the difference between two, draws of one rule taken together.

In: the probe's table; out: `Estimate`s. The draws of a rule are reported as their mean, and the spread between them is
in its error (two levels), so that the luck of one random set is in the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balance.probe import intervals
from balance.probe.intervals import Estimate
from balance.probe.results import FitResult, Table
from balance.records import Float64

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

    def __init__(self, table: Table) -> None:
        self._table = table

    def _summaries(self, group: Group, reading: str, figure: str) -> tuple[Float64, Float64]:
        """The figure of each of a group's fits (D,) and its deviations (D, G)."""
        each = [self._table.evaluations[i][reading].summary(figure) for i in group.fits]
        return np.array([value for value, _ in each]), np.stack([deviations for _, deviations in each])

    def by_draw(self, group: Group, reading: str, figure: str) -> Float64:
        """The figure of each of a group's fits."""
        return self._summaries(group, reading, figure)[0]

    def level(self, group: Group, reading: str, figure: str) -> Estimate:
        """A group's own figure; for draws their mean, with the draws' luck in its error."""
        bounds = _UNBOUNDED if figure == "d_prime" else (0.0, 1.0)
        return intervals.mean_of_draws(*self._summaries(group, reading, figure), bounds)

    def difference(
        self, group: Group, reference: Group, reading: str, figure: str, luck: Group | None = None
    ) -> Estimate:
        """A single training set minus a reference arm, paired over the evaluation clips. luck: the draws whose spread
        stands for that of a rule with one set (None: the reference's own draws, or these very sets)."""
        (own,), (deviations,) = self._summaries(group, reading, figure)
        bounds = _UNBOUNDED if figure == "d_prime" else (-1.0, 1.0)
        if luck is not None and len(reference.fits) == 1:
            (value,), (theirs,) = self._summaries(reference, reading, figure)
            draws = self._summaries(luck, reading, figure)
            return intervals.between_sets((float(own), deviations), (float(value), theirs), *draws, bounds)
        return intervals.difference(float(own), deviations, *self._summaries(reference, reading, figure), bounds)

"""What the probe keeps: of each training set its fit and its figures, and how they lie in the cache.

Frozen values between the runner and the conclusions. A finished fit is one `.npz` file that appears by rename; a file
that cannot be read is made again, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from balance.probe import training_sets
from balance.probe.intervals import Estimate
from balance.probe.training_sets import Arm
from balance.records import Bool, Float32, Float64
from balance.runtime import files
from balance.runtime.remote import AnyPath

LINEAR = "logistic"  # the reading that λ and K are chosen by
FIGURES = ("map", "map_prior", "map_ancestors", "map_ancestors_prior", "d_prime")


@dataclass(frozen=True, slots=True, eq=False)
class Penalty:
    """The λ that all training sets of one size share. path: (p, 2) λ's, descending, and their held-out mAP, the mean
    of the arms that λ was chosen on; weight, bias: (dim, C), (C,) of the first of them there, from which fits start."""

    path: Float64
    best: float
    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """One training set, fitted. penalty: the λ used; path: see `Penalty`; heldout: (L,) AP on held-out seeds, NaN where
    a label has none; heldout_deviations: (G,) change of their mean with each video of the seeds left out;
    label_deviations: (G, L) likewise of each label, of nested training sets alone (else (0, L)); unfinished: how much
    the next optimiser step would still move a label's scores, as a share of their spread, at most 1."""

    arm: Arm
    penalty: float
    path: Float64
    weight: Float32
    bias: Float32
    trained: Bool
    heldout: Float64
    heldout_deviations: Float64
    label_deviations: Float32
    unfinished: float

    @property
    def at_edge(self) -> bool:
        """Whether the best λ is the first or the last that was tried."""
        return self.penalty in (self.path[0, 0], self.path[-1, 0])


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A fit's figures on the evaluation clips by one reading. ap: (L,) of each label; values: of FIGURES, NaN where
    undefined; deviations: (len(FIGURES), G) their change with each video left out, paired over all fits; unfinished:
    of the fit, 0 where nothing is fitted step by step."""

    ap: Float64
    values: Float64
    deviations: Float64
    unfinished: float = 0.0

    def summary(self, figure: str) -> tuple[float, Float64]:
        """One of FIGURES: its value and its (G,) deviations."""
        at = FIGURES.index(figure)
        return float(self.values[at]), self.deviations[at]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All fits in order, and of each one its evaluation by every reading; judged_in: in how many folds λ and K were
    judged, in words; recommended: K; heldout_gains: K -> its gain over random picks on held-out seeds."""

    fits: tuple[FitResult, ...]
    evaluations: tuple[Mapping[str, Evaluation], ...]
    judged_in: str
    recommended: int | None
    heldout_gains: dict[int, Estimate]

    @property
    def readings(self) -> tuple[str, ...]:
        """In order; the first is the one that λ and K are chosen by."""
        return tuple(self.evaluations[0])

    def beside(self, other: Table, space: str) -> Table:
        """With the readings of the same training sets in another space, whose fits come in the same order."""
        read = (
            {**mine, **{f"{name}, {space}": found for name, found in theirs.items()}}
            for mine, theirs in zip(self.evaluations, other.evaluations, strict=True)
        )
        return replace(self, evaluations=tuple(read))


def matched(fits: Sequence[FitResult], k: int) -> tuple[FitResult, list[FitResult]]:
    """The neighbours' fit at k, and its random draws."""
    arm = next(f for f in fits if f.arm.rule == training_sets.NEIGHBOURS and f.arm.k == k)
    draws = [
        f
        for f in fits
        if f.arm.rule == training_sets.RANDOM and f.arm.name == training_sets.NEIGHBOURS and f.arm.k == k
    ]
    return arm, draws


def read(file: AnyPath) -> dict[str, Any] | None:
    """The values of a finished fit, numbers as Python's; None where there is none or it is damaged."""
    kept = files.read_npz(file)
    return None if kept is None else {name: values if values.ndim else values.item() for name, values in kept.items()}

"""What the probe keeps: of each training set its fit and its figures, and how they lie in the cache.

Frozen values between the runner and the conclusions. A finished fit is one `.npz` file that appears by rename; a file
that cannot be read is made again, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balance.probe import training_sets
from balance.probe.bootstrap import Estimate
from balance.probe.ranking_metrics import Figures, d_prime, macro
from balance.probe.training_sets import Arm
from balance.records import Bool, Float32, Float64
from balance.runtime import files

CLASSIFIERS = ("logistic", "knn")


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """One training set, fitted. penalty: the λ used; path: (p, 2) λ and its held-out mAP (of the arm that λ was chosen
    for); heldout: (L,) AP on held-out seeds, NaN where a label has none; heldout_replicates: (B, L); unfinished: how
    much the next optimiser step would still move a label's scores, as a share of their spread, at most 1."""

    arm: Arm
    penalty: float
    path: Float64
    weight: Float32
    bias: Float32
    trained: Bool
    heldout: Float64
    heldout_replicates: Float32
    unfinished: float

    @property
    def at_edge(self) -> bool:
        """Whether the best λ is the first or the last that was tried."""
        return self.penalty in (self.path[0, 0], self.path[-1, 0])


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A fit's figures on the evaluation clips by one classifier: point (1, L) and replicates (B, L), paired over all
    fits by the same bootstrap weights."""

    point: Figures
    replicates: Figures

    def summary(self, name: str) -> tuple[float, Float64]:
        """`map`, `map_prior` or `d_prime`: its value and its (B,) replicates."""
        measure: Callable[[Figures], Float64] = {
            "map": lambda f: macro(f.ap),
            "map_prior": lambda f: macro(f.ap_prior),
            "d_prime": lambda f: d_prime(f.auc),
        }[name]
        return float(measure(self.point)[0]), measure(self.replicates)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All fits in order, and of each one its evaluation by every classifier; judged_in: in how many folds λ and K were
    judged, in words; recommended: K; heldout_gains: K -> its gain over random picks on held-out seeds."""

    fits: tuple[FitResult, ...]
    evaluations: tuple[Mapping[str, Evaluation], ...]
    judged_in: str
    recommended: int | None
    heldout_gains: dict[int, Estimate]


def matched(fits: Sequence[FitResult], k: int) -> tuple[FitResult, list[FitResult]]:
    """The neighbours' fit at k, and its random draws."""
    arm = next(f for f in fits if f.arm.rule == training_sets.NEIGHBOURS and f.arm.k == k)
    draws = [
        f
        for f in fits
        if f.arm.rule == training_sets.RANDOM and f.arm.name == training_sets.NEIGHBOURS and f.arm.k == k
    ]
    return arm, draws


def evaluations(kept: dict[str, Any]) -> dict[str, Evaluation]:
    """Classifier -> evaluation, of the arrays of a file: `{classifier}_{point|replicates}_{figure}`."""

    def figures(name: str, kind: str) -> Figures:
        return Figures(*(kept[f"{name}_{kind}_{figure}"] for figure in ("ap", "ap_prior", "auc")))

    return {name: Evaluation(figures(name, "point"), figures(name, "replicates")) for name in CLASSIFIERS}


def read(file: Path) -> dict[str, Any] | None:
    """The values of a finished fit, numbers as Python's; None where there is none or it is damaged."""
    kept = files.read_npz(file)
    return None if kept is None else {name: values if values.ndim else values.item() for name, values in kept.items()}

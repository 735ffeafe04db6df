"""The cells of a probe's table: what one training set gave, and how a finished cell is kept on disk.

Frozen values between the engine (`probing`) and what is said of them (`findings`). A cell is one `.npz` file that
appears by rename; a file that cannot be read is a cell that is made again, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balance.probe import training_sets
from balance.probe.bootstrap import Estimate
from balance.probe.ranking_metrics import Figures, d_prime, macro
from balance.probe.training_sets import Arm
from balance.records import Bool, Float32, Float64
from balance.runtime import files

READINGS = ("logistic", "knn")


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One training set, fitted. penalty: the λ used; path: (p, 2) λ and its held-out mAP (of the λ's arm); heldout:
    (L,) AP on held-out seeds, NaN where a label has none; heldout_replicates: (B, L); unfinished: the largest share
    of a label's loss that was still to be gained when the steps ended."""

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
class Reading:
    """A cell's figures on the evaluation clips by one classifier: point (1, L) and replicates (B, L), paired over all
    cells by the same bootstrap weights."""

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
    """All cells in order, and each one's readings on the evaluation clips: readings[cell][READINGS.index(name)]."""

    cells: tuple[Cell, ...]
    readings: tuple[tuple[Reading, ...], ...]
    judged_in: str
    recommended: int | None
    heldout_gains: dict[int, Estimate]


def matched(cells: Sequence[Cell], k: int) -> tuple[Cell, list[Cell]]:
    """The neighbours' cell at k, and its random draws."""
    arm = next(c for c in cells if c.arm.rule == training_sets.NEIGHBOURS and c.arm.k == k)
    draws = [
        c
        for c in cells
        if c.arm.rule == training_sets.RANDOM and c.arm.name == training_sets.NEIGHBOURS and c.arm.k == k
    ]
    return arm, draws


def reading(kept: dict[str, Any], name: str) -> Reading:
    point, replicates = (
        Figures(*(kept[f"{name}_{kind}_{figure}"] for figure in ("ap", "ap_prior", "auc")))
        for kind in ("point", "replicates")
    )
    return Reading(point, replicates)


def read(file: Path) -> dict[str, Any] | None:
    """A finished cell, numbers as Python's; None where there is none or it is damaged (it is then made again)."""
    kept = files.read_npz(file)
    return None if kept is None else {name: values if values.ndim else values.item() for name, values in kept.items()}

"""What the probe found, as values: the content of probe.json in its order, and the source of probe.csv and the page.

Frozen; numbers are rounded to six decimals, None where a figure is undefined. JSON only where the file is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from balance.probe.bootstrap import Estimate, Verdict


def rounded(value: float) -> float | None:
    """Six decimals; None for what is not a finite number."""
    return round(value, 6) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval and its bootstrap standard error."""

    value: float | None
    low: float | None
    high: float | None
    error: float | None

    @staticmethod
    def of(estimate: Estimate) -> Interval:
        """Of an estimate."""
        return Interval(*(rounded(x) for x in (estimate.value, estimate.low, estimate.high, estimate.error)))


@dataclass(frozen=True, slots=True)
class Counts:
    """Clips of each side; labels: in use; labels_evaluated: with an evaluation clip; without_vector: clips left out, by
    split."""

    seeds: int
    pool: int
    evaluation: int
    labels: int
    labels_evaluated: int
    without_vector: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HeldoutGain:
    """The mAP on held-out seeds above as many random clips, at K."""

    k: int
    value: float | None
    low: float | None
    high: float | None
    error: float | None
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmFindings:
    """One arm of the table. draws: None for a single set; penalty_path: (λ, held-out mAP) pairs of its first set;
    penalty_by_draw: λ of every draw; unfinished: see `results.FitResult`; readings: classifier -> figure -> interval;
    map_by_draw: of the first classifier."""

    arm: str
    rule: str
    k: int | None
    draws: int | None
    num_pool_clips: int
    num_clips: int
    pool_share: float
    penalty: float
    penalty_at_edge: bool
    penalty_path: tuple[tuple[float, float | None], ...]
    penalty_by_draw: tuple[float, ...]
    labels_not_trained: int
    unfinished: float
    heldout_map: float | None
    readings: Mapping[str, Mapping[str, Interval]]
    map_by_draw: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An arm minus a reference arm, by one classifier (`reading`) and one figure."""

    arm: str
    against: str
    against_rule: str
    k: int | None
    reading: str
    figure: str
    value: float | None
    low: float | None
    high: float | None
    error: float | None
    verdict: Verdict
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFindings:
    """One label: clips, its gain over random picks (p: None where it is not tested), and its AP in every arm."""

    id: str
    name: str
    num_evaluation: int
    num_seeds: int
    num_pool: int
    gain: float | None
    low: float | None
    high: float | None
    p: float | None
    resolved: bool
    ap: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All of probe.json but the data set's name. headline: the arm that is compared with the whole pool."""

    same_space: bool
    counts: Counts
    judged_in: str
    steps: int
    draws: int
    bootstrap: int
    votes: int
    recommended_k: int | None
    headline: str | None
    heldout_gains: tuple[HeldoutGain, ...]
    arms: tuple[ArmFindings, ...]
    comparisons: tuple[Comparison, ...]
    labels: tuple[LabelFindings, ...]
    labels_not_in_evaluation: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

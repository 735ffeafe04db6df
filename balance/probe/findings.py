"""What the probe found, as values: the content of probe.json in its order, and the source of probe.csv and the page.

Frozen; numbers are rounded to six decimals, None where a figure is undefined. JSON only where the file is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from balance.probe.intervals import Estimate, Verdict


def rounded(value: float) -> float | None:
    """Six decimals; None for what is not a finite number."""
    return round(value, 6) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval and its standard error."""

    value: float | None
    low: float | None
    high: float | None
    error: float | None

    @staticmethod
    def of(estimate: Estimate) -> Interval:
        """Of an estimate."""
        return Interval(*(rounded(x) for x in (estimate.value, *estimate.interval(), estimate.error)))


@dataclass(frozen=True, slots=True)
class Counts:
    """Clips of each side; labels: in use; labels_evaluated: with an evaluation clip; seed_sources: of
    the seeds (`sources`); pool_of_seed_sources: pool clips of one of these; without_vector: clips left out, by
    split."""

    seeds: int
    pool: int
    evaluation: int
    labels: int
    labels_evaluated: int
    seed_sources: int
    pool_of_seed_sources: int
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
    penalty_by_draw: λ of every draw; unfinished: see `results.FitResult`; readings: reading -> figure -> interval;
    map_by_draw: by the first reading."""

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
    """An arm minus a reference arm, by one reading and one figure. detectable: the smallest true difference that would
    be resolved in 80 of 100 such probes; videos_to_resolve: evaluation videos with which that would be 0.01, None where
    no number would do (the draws' luck alone is larger: more draws) or nothing can be told."""

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
    detectable: float | None
    videos_to_resolve: int | None
    verdict: Verdict
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """What all readings say of an arm's mAP against a reference. agree: whether their verdicts are one; verdict: that
    one, None where they differ; by_reading: each one's verdict; words: the conclusion, or what they disagree on."""

    arm: str
    against: str
    against_rule: str
    k: int | None
    agree: bool
    verdict: Verdict | None
    by_reading: Mapping[str, Verdict]
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
class Step:
    """From the first `from_k` neighbours per seed to the first `to_k`: pool clips that this adds, the gain in mAP of
    the linear reading on the evaluation clips, and that gain per 1,000 added clips, with 95 % intervals."""

    from_k: int
    to_k: int
    added_clips: int
    gain: float | None
    low: float | None
    high: float | None
    per_1000_clips: float | None
    per_1000_clips_low: float | None
    per_1000_clips_high: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelValue:
    """One label: the K that held-out seeds support for it, and its gain in AP there, step by step, with intervals."""

    id: str
    k: int
    gain: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueOfNeighbours:
    """ks: of the nested training sets, 0 (the seeds alone) first; steps: between them; k: the best single K on held-out
    seeds; labels: all, in order of the vocabulary: a K other than `k` only where it is resolved to serve better."""

    ks: tuple[int, ...]
    steps: tuple[Step, ...]
    k: int
    labels: tuple[LabelValue, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All of probe.json but the data set's name. headline: the arm that is compared with the whole pool."""

    same_space: bool
    counts: Counts
    judged_in: str
    steps: int
    draws: int
    votes: int
    network_steps: int
    readings: tuple[str, ...]
    recommended_k: int | None
    headline: str | None
    heldout_gains: tuple[HeldoutGain, ...]
    arms: tuple[ArmFindings, ...]
    comparisons: tuple[Comparison, ...]
    conclusions: tuple[Conclusion, ...]
    labels: tuple[LabelFindings, ...]
    labels_not_in_evaluation: tuple[str, ...]
    value_of_neighbours: ValueOfNeighbours | None
    warnings: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    guard: str = ""

"""What the figures support: bootstrap weights, basic intervals, two-level differences, equivalence, many labels.

In: point figures and their bootstrap replicates; out: an interval and a verdict in words. Basic intervals
(2θ̂ − quantiles) because the plain bootstrap of AP is biased upward (duplicated positives raise precision: +0.005 at 60
positives, +0.02 at 10) and the percentile interval would double that bias; they are cut where the figure ends. Where
the replicates do not differ the bootstrap says nothing, and so does this module.
Sources: Efron and Tibshirani 1993 (13.4, 5.7); Schuirmann 1987 (TOST); Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from balance.records import Bool, Float32, Float64, Int64

EQUIVALENCE = 0.005  # a difference in mAP smaller than this is of no interest
LEAST_SPREAD = 1e-9  # standard error up to which replicates count as alike


class Verdict(enum.StrEnum):
    """What is said of a difference. The last four: nothing can be said, for another reason each."""

    gain = "gain"
    loss = "loss"
    equivalent = "equivalent"
    not_resolved = "not resolved"
    cannot_tell = "cannot tell"
    too_few = "too few to judge"
    not_finished = "not finished"
    same_set = "same set"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its basic 95 % interval; `narrow_` bounds are the 90 % interval, for equivalence; error: bootstrap
    standard error. NaN: undefined."""

    value: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float
    error: float

    @property
    def can_tell(self) -> bool:
        """Whether the replicates are defined and differ."""
        return math.isfinite(self.value) and math.isfinite(self.error) and self.error > LEAST_SPREAD

    def verdict(self, margin: float | None = EQUIVALENCE) -> Verdict:
        """Of a difference: a gain or a loss where the interval lies beside 0; equivalent where the 90 % interval lies
        within ± margin (TOST). An interval beside 0 and within ± margin is a gain or a loss: a resolved, small one."""
        if not self.can_tell:
            return Verdict.cannot_tell
        if self.low > 0:
            return Verdict.gain
        if self.high < 0:
            return Verdict.loss
        if margin is not None and self.narrow_low > -margin and self.narrow_high < margin:
            return Verdict.equivalent
        return Verdict.not_resolved

    def words(self, margin: float | None = EQUIVALENCE) -> str:
        """The verdict on a difference as a sentence part."""
        verdict = self.verdict(margin)
        if verdict is Verdict.cannot_tell:
            return "cannot tell: the bootstrap replicates of this difference are all alike, or undefined"
        if verdict in (Verdict.gain, Verdict.loss):
            return f"{verdict} of {abs(self.value):.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        words = f"not resolved: effects beyond [{self.low:+.4f}, {self.high:+.4f}] excluded"
        if verdict is Verdict.equivalent:
            words += f"; equivalent within ±{margin} (two one-sided tests at 5 %)"
        return words


def resample(groups: Int64, num: int, rng: np.random.Generator) -> Float32:
    """Bootstrap weights (n, num) float32 of clips in groups: whole groups are drawn with replacement.

    groups: (n,) int64 group number of each clip (clips of one video), 0 … G − 1.
    """
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    out = np.empty((len(groups), num), dtype=np.float32)
    for b in range(num):
        drawn = np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups)
        out[:, b] = drawn[groups]
    return out


def estimate(value: float, replicates: Float64, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Basic intervals of a figure from its replicates (B,), cut to `bounds`.

    Replicates in which the figure is undefined or infinite are left out.
    """
    kept = replicates[np.isfinite(replicates)]
    if len(kept) < 2 or not math.isfinite(value):
        return Estimate(value if math.isfinite(value) else math.nan, *([math.nan] * 5))
    ends = (2.0 * value - float(q) for q in np.quantile(kept, [0.975, 0.95, 0.05, 0.025]))
    low, narrow_low, narrow_high, high = (min(max(end, bounds[0]), bounds[1]) for end in ends)
    return Estimate(float(value), low, high, narrow_low, narrow_high, float(kept.std(ddof=1)))


def against_draws(
    arm: Float64, arm_replicates: Float64, draws: Float64, draw_replicates: Float64, rng: np.random.Generator
) -> tuple[Float64, Float64]:
    """A figure's difference to the mean of its size-matched draws, and its two-level replicates.

    arm: (L,) or (1,); arm_replicates: (B, L); draws: (D, L); draw_replicates: (D, B, L), under the same clip weights as
    the arm's (paired) → (L,) and (B, L). Level one: the D draws are drawn with replacement, their deviations from
    their mean scaled to the variance between training sets alone (what the clips' noise adds to it is level two's).
    The arm's own set is one outcome of its rule, as each draw is of uniform picking, so one draw's deviation is added
    for it too: without that, a rule that is no better than random picking would be "resolved" as soon as its one set
    is lucky. Few draws give an uncertain variance, so the spread is widened by t/z at Welch and Satterthwaite's degrees
    of freedom. One draw alone: clip level only.
    """
    num_draws, num = draw_replicates.shape[:2]
    centre = draw_replicates.mean(axis=0)  # (B, L)
    replicates = arm_replicates - centre
    if num_draws > 1:
        more = num_draws / (num_draws - 1)
        deviation = draws - draws.mean(axis=0)  # (D, L)
        observed = np.square(deviation).sum(axis=0) / (num_draws - 1)
        of_clips = np.mean([_nan_std(one - centre) ** 2 for one in draw_replicates], axis=0) * more
        between = np.maximum(observed - of_clips, 0.0)
        deviation = deviation * np.sqrt(more * between / np.maximum(observed, 1e-300))
        total = _nan_std(replicates) ** 2 + between * (1 + 1 / num_draws)
        picked = rng.integers(0, num_draws, (num, num_draws + 1))
        replicates = replicates + deviation[picked[:, 0]] - deviation[picked[:, 1:]].mean(axis=1)
        uncertain = np.where(between > 0, observed, 0.0) * (1 + 1 / num_draws)
        freedom = (num_draws - 1) * np.square(total / np.maximum(uncertain, 1e-9 * np.maximum(total, 1e-300)))
        widen = scipy.special.stdtrit(np.clip(freedom, num_draws - 1, 1e6), 0.975) / scipy.special.ndtri(0.975)
        middle = _nan_mean(replicates)
        replicates = middle + (replicates - middle) * widen
    return arm - draws.mean(axis=0), replicates


def p_values(differences: Float64, replicates: Float64) -> Float64:
    """Two-sided p of each label's difference from a normal law with the bootstrap's standard error.

    differences: (L,), replicates: (B, L) → (L,); 1 where neither the difference nor any replicate moves, NaN where a
    label is undefined or its replicates are alike and not 0: then the bootstrap cannot tell.
    """
    error = _nan_std(replicates)
    moves = error > LEAST_SPREAD
    p = 2.0 * scipy.special.ndtr(-np.abs(differences) / np.where(moves, error, 1.0))
    return np.where(np.isnan(differences), np.nan, np.where(moves, p, np.where(differences == 0, 1.0, np.nan)))


def _nan_mean(values: Float64) -> Float64:
    """Mean of the defined values of each column; 0 where there is none."""
    defined = ~np.isnan(values)
    mean = np.where(defined, values, 0.0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    return np.asarray(mean, dtype=np.float64)


def _nan_std(values: Float64) -> Float64:
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    mean = _nan_mean(values)
    square = np.where(defined, (values - mean) ** 2, 0.0).sum(axis=0)
    return np.asarray(np.sqrt(square / np.maximum(count - 1, 1)), dtype=np.float64)


def benjamini_hochberg(p: Float64, rate: float) -> Bool:
    """Which hypotheses are rejected at this false discovery rate; NaN is no hypothesis: (L,) float → (L,) bool."""
    out = np.zeros(len(p), dtype=bool)
    tested = np.flatnonzero(~np.isnan(p))
    if len(tested) == 0:
        return out
    order = tested[np.argsort(p[tested], kind="stable")]
    passed = p[order] <= rate * np.arange(1, len(order) + 1) / len(order)
    if passed.any():
        out[order[: int(np.flatnonzero(passed)[-1]) + 1]] = True
    return out


def smallest_good(ks: Sequence[int], values: Float64, replicates: Float64, beats: Bool) -> int | None:
    """The smallest K whose paired shortfall to the best K is within one standard error, among those that beat their
    random arm; None if none does. ks: ascending; values: (num K,); replicates: (B, num K); beats: (num K,)."""
    allowed = np.flatnonzero(beats)
    if len(allowed) == 0:
        return None
    best = int(allowed[int(np.argmax(values[allowed]))])
    for i in map(int, allowed):
        gap = replicates[:, best] - replicates[:, i]
        if i == best or values[best] - values[i] <= _nan_std(gap[:, None])[0]:
            return int(ks[i])
    return None

"""What the figures support: intervals by the jackknife, two-level differences, equivalence, many labels.

In: point figures and how each changes when one video of the evaluation is left out (its deviations); out: an interval
and a verdict in words. Leaving out one video after another is exact and needs no random numbers; the draws' luck is
added as a second source of variance. Both are known from few values, so the interval is Student's t at Welch and
Satterthwaite's degrees of freedom: a handful of draws, or of videos that carry the figure, makes it wide. Where the
deviations do not differ the jackknife says nothing, and so does this module.
Sources: Efron and Tibshirani 1993 (11); Satterthwaite 1946; Schuirmann 1987 (TOST); Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from balance.records import Bool, Float64, Int64

EQUIVALENCE = 0.005  # a difference in mAP smaller than this is of no interest
LEAST_SPREAD = 1e-9  # standard error up to which deviations count as alike
POWER = 0.8  # chance with which the minimum detectable effect is resolved
RESOLVE = 0.01  # the effect in mAP for which the clips needed are said


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
    """A figure, its standard error with its degrees of freedom, and where the figure ends. of_draws: the part of the
    squared error that comes from the draws, which more evaluation clips do not lower. NaN: undefined."""

    value: float
    error: float
    freedom: float
    of_draws: float = 0.0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def can_tell(self) -> bool:
        """Whether the deviations are defined and differ."""
        return math.isfinite(self.value) and math.isfinite(self.error) and self.error > LEAST_SPREAD

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Both ends, cut to the bounds; NaN where the figure or its error is undefined."""
        reach = self.error * _t(0.5 + confidence / 2, self.freedom)
        low, high = self.value - reach, self.value + reach
        return max(low, self.bounds[0]) if low == low else low, min(high, self.bounds[1]) if high == high else high

    def verdict(self, margin: float | None = EQUIVALENCE) -> Verdict:
        """Of a difference: a gain or a loss where the interval lies beside 0; equivalent where the 90 % interval lies
        within ± margin (TOST). An interval beside 0 and within ± margin is a gain or a loss: a resolved, small one."""
        if not self.can_tell:
            return Verdict.cannot_tell
        low, high = self.interval()
        if low > 0:
            return Verdict.gain
        if high < 0:
            return Verdict.loss
        narrow_low, narrow_high = self.interval(0.9)
        if margin is not None and narrow_low > -margin and narrow_high < margin:
            return Verdict.equivalent
        return Verdict.not_resolved

    def words(self, margin: float | None = EQUIVALENCE) -> str:
        """The verdict on a difference as a sentence part."""
        verdict, (low, high) = self.verdict(margin), self.interval()
        if verdict is Verdict.cannot_tell:
            return "cannot tell: this difference stays the same whichever evaluation clip is left out, or is undefined"
        if verdict in (Verdict.gain, Verdict.loss):
            return f"{verdict} of {abs(self.value):.4f} [{low:+.4f}, {high:+.4f}]"
        words = f"not resolved: effects beyond [{low:+.4f}, {high:+.4f}] excluded"
        if verdict is Verdict.equivalent:
            words += f"; equivalent within ±{margin} (two one-sided tests at 5 %)"
        return words

    def detectable(self) -> float:
        """The minimum detectable effect: a true difference of this size is resolved with probability POWER."""
        return self.error * (_t(0.975, self.freedom) + _t(POWER, self.freedom)) if self.can_tell else math.nan

    def videos_for(self, effect: float, now: int) -> float:
        """How many evaluation videos would make `effect` the minimum detectable one, `now` being there; inf where the
        draws' part of the error alone is larger; NaN where nothing can be told."""
        if not self.can_tell:
            return math.nan
        wanted = (effect / (_t(0.975, self.freedom) + _t(POWER, self.freedom))) ** 2 - self.of_draws
        return math.ceil(now * (self.error**2 - self.of_draws) / wanted) if wanted > 0 else math.inf


def _t(quantile: float, freedom: float) -> float:
    return float(scipy.special.stdtrit(min(max(freedom, 1.0), 1e6), quantile))


def variance(deviations: Float64) -> tuple[Float64, Float64]:
    """(jackknife variance, its degrees of freedom), (L,) each, of figures from their deviations (G, L) per video left
    out. Few videos that carry a figure give few degrees: 2 G / (kurtosis − 1), at most G − 1."""
    num = len(deviations)
    if num < 2:
        nothing = np.full(deviations.shape[1], np.nan)
        return nothing, nothing
    centred = deviations - deviations.mean(axis=0)
    square = np.square(centred)
    spread = square.sum(axis=0) * (num - 1) / num
    second, fourth = square.mean(axis=0), np.square(square).mean(axis=0)
    kurtosis = fourth / np.maximum(second**2, 1e-300)
    return spread, np.clip(2 * num / np.maximum(kurtosis - 1, 1e-3), 1.0, num - 1)


def estimate(value: float, deviations: Float64, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """A figure of one training set from its deviations (G,)."""
    spread, freedom = variance(deviations[:, None])
    return Estimate(value, math.sqrt(spread[0]) if spread[0] == spread[0] else math.nan, float(freedom[0]), 0.0, bounds)


def mean_of_draws(
    values: Float64, deviations: Float64, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """The mean figure of D draws (D,), deviations (D, G): the clips' variance and the draws' own."""
    if len(values) == 1:
        return estimate(float(values[0]), deviations[0], bounds)
    of_clips, freedom = variance(deviations.mean(axis=0)[:, None])
    between, uncertain = _between(values[:, None], deviations[:, :, None])
    return _joined(
        float(values.mean()), of_clips, freedom, between, uncertain, 1 / len(values), len(values) - 1, bounds
    )


def against_draws(
    arm: Float64, arm_deviations: Float64, draws: Float64, draw_deviations: Float64
) -> tuple[Float64, Float64, Float64, Float64]:
    """Figures' differences to the mean of their size-matched draws, paired over the evaluation clips.

    arm: (L,); arm_deviations: (G, L); draws: (D, L); draw_deviations: (D, G, L) → (difference, variance, degrees of
    freedom, the draws' part of the variance), (L,) each. The arm's own set is one outcome of its rule, as each draw is
    of uniform picking, so the variance between training sets counts 1 + 1/D times: without that, a rule that is no
    better than random picking would be "resolved" as soon as its one set is lucky. What the clips' noise adds to the
    draws' spread is taken out of it, for it is counted with the clips. One draw alone: the clips' noise only.
    """
    num_draws = len(draws)
    difference = arm - draws.mean(axis=0)
    of_clips, freedom = variance(arm_deviations - draw_deviations.mean(axis=0))
    if num_draws < 2:
        return difference, of_clips, freedom, np.zeros_like(of_clips)
    between, uncertain = _between(draws, draw_deviations)
    times = 1 + 1 / num_draws
    total = of_clips + between * times
    freedom = _satterthwaite(total, of_clips, freedom, uncertain * times, num_draws - 1)
    return difference, total, freedom, between * times


def difference(
    arm: float,
    arm_deviations: Float64,
    draws: Float64,
    draw_deviations: Float64,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """`against_draws` of one figure: arm_deviations (G,), draws (D,), draw_deviations (D, G)."""
    value, total, freedom, of_draws = against_draws(
        np.array([arm]), arm_deviations[:, None], draws[:, None], draw_deviations[:, :, None]
    )
    error = math.sqrt(total[0]) if total[0] == total[0] else math.nan
    return Estimate(float(value[0]), error, float(freedom[0]), float(of_draws[0]), bounds)


def between_sets(
    one: tuple[float, Float64],
    other: tuple[float, Float64],
    draws: Float64,
    draw_deviations: Float64,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """One training set's figure minus another's, each (value, deviations (G,)), where each rule has one set: the luck
    of a set is taken to be that of the random draws of the same size, (D,) and (D, G), and counts twice."""
    of_clips, freedom = variance((one[1] - other[1])[:, None])
    between, uncertain = _between(draws[:, None], draw_deviations[:, :, None])
    return _joined(one[0] - other[0], of_clips, freedom, between, uncertain, 2.0, len(draws) - 1, bounds)


def _between(draws: Float64, deviations: Float64) -> tuple[Float64, Float64]:
    """(variance between training sets alone, what was observed and is uncertain by its D − 1 degrees), (L,) each."""
    num_draws = len(draws)
    observed = draws.var(axis=0, ddof=1)
    centre = deviations.mean(axis=0)
    of_clips = np.mean([variance(one - centre)[0] for one in deviations], axis=0) * num_draws / (num_draws - 1)
    between = np.maximum(observed - of_clips, 0.0)
    return between, np.where(between > 0, observed, 0.0)


def _satterthwaite(total: Float64, first: Float64, first_df: Float64, second: Float64, second_df: float) -> Float64:
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (first**2 / first_df + second**2 / second_df)
    return np.asarray(np.where(np.isfinite(freedom), np.maximum(freedom, 1.0), first_df), dtype=np.float64)


def _joined(
    value: float,
    of_clips: Float64,
    freedom: Float64,
    between: Float64,
    uncertain: Float64,
    times: float,
    draws_df: float,
    bounds: tuple[float, float],
) -> Estimate:
    total = of_clips + between * times
    joined = _satterthwaite(total, of_clips, freedom, uncertain * times, draws_df)
    error = math.sqrt(total[0]) if total[0] == total[0] else math.nan
    return Estimate(value, error, float(joined[0]), float(between[0] * times), bounds)


def p_values(differences: Float64, variances: Float64, freedom: Float64) -> Float64:
    """Two-sided p of each label's difference by Student's t, (L,); 1 where neither the difference nor any deviation
    moves, NaN where a label is undefined or its deviations are alike and not 0: then the jackknife cannot tell."""
    error = np.sqrt(np.where(np.isnan(variances), 0.0, variances))
    moves = error > LEAST_SPREAD
    degrees = np.where(np.isfinite(freedom), np.clip(freedom, 1.0, 1e6), 1.0)
    p = 2.0 * scipy.special.stdtr(degrees, -np.abs(differences) / np.where(moves, error, 1.0))
    return np.where(np.isnan(differences), np.nan, np.where(moves, p, np.where(differences == 0, 1.0, np.nan)))


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


def smallest_good(ks: Sequence[int], values: Float64, deviations: Float64, beats: Bool) -> int | None:
    """The smallest K whose paired shortfall to the best K is within one standard error, among those that beat their
    random arm; None if none does. ks: ascending; values: (num K,); deviations: (G, num K); beats: (num K,)."""
    allowed = np.flatnonzero(beats)
    if len(allowed) == 0:
        return None
    best = int(allowed[int(np.argmax(values[allowed]))])
    for i in map(int, allowed):
        error = math.sqrt(variance((deviations[:, best] - deviations[:, i])[:, None])[0][0])
        if i == best or values[best] - values[i] <= error:
            return int(ks[i])
    return None


def by_group(deviations: Float64, groups: Int64) -> Float64:
    """Deviations per clip left out (n, …) → per video left out (G, …): a video's are the sum of its clips'."""
    out = np.zeros((int(groups.max(initial=-1)) + 1, *deviations.shape[1:]))
    np.add.at(out, groups, deviations)
    return out

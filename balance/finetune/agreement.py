"""What the trainings found, and whether the probe foresaw it: levels, gains over other sets, rank correlation.

In: of every arm the mAP of its trainings and of the probe, each with its deviations (its change with one evaluation
video left out); out: `Findings`, the content of finetune.json. A difference has two sources of error: the evaluation
clips (jackknife, paired) and the trainings (other weights, another random set), so its interval is t at Satterthwaite's
degrees of freedom: three trainings are few, and the interval says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from balance.finetune.config import FinetuneConfig
from balance.probe import training_sets
from balance.probe.findings import Interval, rounded
from balance.probe.intervals import Estimate, Verdict, variance
from balance.records import Float64

FEWEST_ARMS = 4  # whose order can be compared at all
SIMULATED = 4000  # orders drawn from the errors of all arms


@dataclass(frozen=True, slots=True, eq=False)
class ArmScores:
    """An arm. values: (R,) mAP of its trainings; deviations: (R, G) their change with each evaluation video left out;
    probe, probe_deviations: the probe's mAP (mean over its draws) and its (G,) deviations."""

    title: str
    rule: str
    k: int | None
    num_clips: int
    values: Float64
    deviations: Float64
    probe: float
    probe_deviations: Float64


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm's mAP by training (mean, 95 % interval, each training) and by the probe."""

    arm: str
    rule: str
    k: int | None
    num_clips: int
    map: Interval
    map_by_training: tuple[float | None, ...]
    probe_map: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """An arm minus a reference arm, by training; `words` says what that supports; probe: the probe's difference."""

    arm: str
    against: str
    k: int | None
    map: Interval
    verdict: Verdict
    words: str
    probe: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Spearman's ρ and Kendall's τ of the arms' order by probe and by training; low, high: of ρ, over clips and
    trainings; p: of ρ, exact over all orders (5,040 drawn ones above seven arms)."""

    num_arms: int
    spearman: float | None
    low: float | None
    high: float | None
    p: float | None
    kendall: float | None
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All of finetune.json but the data set's name."""

    network: str
    device: str
    precision: str
    steps: int
    batch_size: int
    repeats: int
    clips_left_out: int
    arms: tuple[ArmResult, ...]
    gains: tuple[Gain, ...]
    agreement: Agreement
    sentences: tuple[str, ...]
    limits: tuple[str, ...]


def level(arm: ArmScores) -> Estimate:
    """The arm's mean mAP."""
    return _estimate(float(arm.values.mean()), arm.deviations.mean(axis=0), [arm.values], (0.0, 1.0))


def difference(arm: ArmScores, reference: ArmScores) -> Estimate:
    """The arm's mean mAP minus the reference's, paired over the evaluation clips."""
    deviations = arm.deviations.mean(axis=0) - reference.deviations.mean(axis=0)
    value = float(arm.values.mean() - reference.values.mean())
    return _estimate(value, deviations, [arm.values, reference.values], (-1.0, 1.0))


def _estimate(value: float, deviations: Float64, groups: Sequence[Float64], bounds: tuple[float, float]) -> Estimate:
    """A mean, or a difference of means: Var = Var(clips) + Σ s²/R over the groups of R trainings."""
    spread, freedom = variance(deviations[:, None])
    parts = [(float(spread[0]), float(freedom[0]))]
    parts += [(float(x.var(ddof=1)) / len(x), len(x) - 1.0) for x in groups]
    total = sum(part for part, _ in parts)
    uncertain = sum(part**2 / degrees for part, degrees in parts)  # Satterthwaite 1946
    of_trainings = sum(part for part, _ in parts[1:])
    return Estimate(value, math.sqrt(total), total**2 / uncertain if uncertain > 0 else 1e6, of_trainings, bounds)


def agreement(arms: Sequence[ArmScores], rng: np.random.Generator) -> Agreement:
    """Whether the probe orders the arms as training does."""
    if len(arms) < FEWEST_ARMS:
        words = f"{len(arms)} training sets are too few to compare their order; at least {FEWEST_ARMS}"
        return Agreement(len(arms), None, None, None, None, None, words)
    probe, trained = np.array([arm.probe for arm in arms]), np.array([arm.values.mean() for arm in arms])
    rho = _spearman(probe, trained)
    if not math.isfinite(rho):
        words = "cannot tell: the probe or the trainings give all training sets one mAP"
        return Agreement(len(arms), None, None, None, None, None, words)
    simulated = [_spearman(one[: len(arms)], one[len(arms) :]) for one in _drawn(arms, rng)]
    low, high = (float(x) for x in np.nanquantile(simulated, [0.025, 0.975]))
    if low > 0:
        verdict = "the probe's order foretells training's"
    elif high < 0:
        verdict = "the probe's order is the reverse of training's"
    else:
        verdict = "whether the probe's order foretells training's is not resolved"
    return Agreement(
        num_arms=len(arms),
        spearman=rounded(rho),
        low=rounded(low),
        high=rounded(high),
        p=rounded(_p_value(probe, trained, rng)),
        kendall=rounded(float(scipy.stats.kendalltau(probe, trained).statistic)),
        words=f"{verdict}: Spearman's ρ over {len(arms)} training sets is {rho:.2f} [{low:.2f}, {high:.2f}]",
    )


def _drawn(arms: Sequence[ArmScores], rng: np.random.Generator) -> Float64:
    """(SIMULATED, 2 A) mAP of all arms by the probe, then by training: normal around what was found, with the
    jackknife's covariance over the evaluation clips and the trainings' own variance."""
    deviations = np.stack([*(arm.probe_deviations for arm in arms), *(arm.deviations.mean(axis=0) for arm in arms)])
    num = deviations.shape[1]
    centred = (deviations - deviations.mean(axis=1, keepdims=True)) * math.sqrt((num - 1) / num)
    of_clips = rng.standard_normal((SIMULATED, num)) @ centred.T
    found = np.array([arm.probe for arm in arms] + [arm.values.mean() for arm in arms])
    own = np.array([0.0] * len(arms) + [math.sqrt(arm.values.var(ddof=1) / len(arm.values)) for arm in arms])
    return np.asarray(found + of_clips + rng.standard_normal((SIMULATED, len(found))) * own)


def _spearman(one: Float64, other: Float64) -> float:
    if not np.isfinite([*one, *other]).all() or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    ranks = scipy.stats.rankdata([one, other], axis=1)
    return float(np.corrcoef(ranks)[0, 1])


def _p_value(probe: Float64, trained: Float64, rng: np.random.Generator) -> float:
    test = scipy.stats.permutation_test(
        (probe,),
        lambda some: _spearman(some, trained),
        permutation_type="pairings",
        n_resamples=math.factorial(7),
        rng=rng,
    )
    return float(test.pvalue)


LIMITS = (
    "One network, one recipe, equal steps: a longer training or another network may order the sets otherwise.",
    "Intervals hold for new evaluation clips and new trainings (random arms: new random sets), not for other seeds or "
    "pools; differences to the seeds alone and to the whole pool are between these very sets.",
)


def findings(
    arms: Sequence[ArmScores],
    agreed: Agreement,
    *,
    network: str,
    device: str,
    precision: str,
    config: FinetuneConfig,
    clips_left_out: int,
) -> Findings:
    """Levels, gains and sentences of these arms."""
    gains = [_gain(arm, reference) for arm in arms for reference in _references(arm, arms)]
    sentences = [f"{agreed.words}."]
    sentences += [f"mAP after training, {gain.arm} against {gain.against}: {gain.words}." for gain in gains]
    return Findings(
        network=network,
        device=device,
        precision=precision,
        steps=config.steps,
        batch_size=config.batch_size,
        repeats=config.repeats,
        clips_left_out=clips_left_out,
        arms=tuple(_result(arm) for arm in arms),
        gains=tuple(gains),
        agreement=agreed,
        sentences=tuple(
            sentence[:1].upper() + sentence[1:] if not sentence.startswith("mAP") else sentence
            for sentence in sentences
        ),
        limits=LIMITS,
    )


def _references(arm: ArmScores, arms: Sequence[ArmScores]) -> list[ArmScores]:
    """What an arm of neighbours is compared with: other rules of its size, the seeds alone and the whole pool."""
    if arm.rule != training_sets.NEIGHBOURS:
        return []
    whole = (training_sets.SEEDS, training_sets.POOL, training_sets.POOL_WEIGHTED)
    return [other for other in arms if other is not arm and (other.k == arm.k or other.rule in whole)]


def _gain(arm: ArmScores, reference: ArmScores) -> Gain:
    estimate = difference(arm, reference)
    return Gain(
        arm=arm.title,
        against=reference.title,
        k=arm.k,
        map=Interval.of(estimate),
        verdict=estimate.verdict(),
        words=estimate.words(),
        probe=rounded(arm.probe - reference.probe),
    )


def _result(arm: ArmScores) -> ArmResult:
    return ArmResult(
        arm=arm.title,
        rule=arm.rule,
        k=arm.k,
        num_clips=arm.num_clips,
        map=Interval.of(level(arm)),
        map_by_training=tuple(rounded(value) for value in arm.values.tolist()),
        probe_map=rounded(arm.probe),
    )

"""What one more neighbour is worth, by rank and by label, and the K that this supports.

In: the probe's table, whose neighbours' training sets are nested (K = 0 are the seeds alone); out: the steps of the
curve with intervals, and a K per label where held-out seeds resolve that it serves the label better than the K of all.
K is chosen on held-out seeds; the curve's own figures are of the evaluation clips. Price: K's between are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balance.probe import intervals, training_sets
from balance.probe.findings import LabelValue, Step, ValueOfNeighbours, rounded
from balance.probe.intervals import Estimate
from balance.probe.ranking_metrics import mean
from balance.probe.results import LINEAR, FitResult, Table
from balance.records import Float64, Int64

FALSE_DISCOVERIES = 0.1  # among the labels that are given a K of their own


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """ks: ascending, 0 first; places: of the fits in the table; ap, deviations: (K, L), (K, G, L) on held-out seeds."""

    ks: list[int]
    places: list[int]
    ap: Float64
    deviations: Float64


def value_of_neighbours(table: Table, label_ids: Sequence[str], recommended: int | None) -> ValueOfNeighbours | None:
    """The curve and the K's that it supports; None where no nested sets are in the table. recommended: the K of all, if
    one is; else the smallest within one standard error of the best on held-out seeds."""
    curve = _curve(table.fits)
    if set(curve.ks) <= {0}:
        return None
    single = recommended or _best_k(curve.ks, [table.fits[i] for i in curve.places])
    return ValueOfNeighbours(
        ks=tuple(curve.ks),
        steps=tuple(_step(table, curve, i) for i in range(1, len(curve.ks))),
        k=single,
        labels=tuple(_labels(curve, label_ids, single)),
    )


def own_ks(fits: Sequence[FitResult], single: int) -> Int64:
    """The K of each label, (L,): `single`, or the one that held-out seeds resolve to serve it better."""
    curve = _curve(fits)
    return np.array(curve.ks, dtype=np.int64)[_own(curve, curve.ks.index(single))]


def _curve(fits: Sequence[FitResult]) -> _Curve:
    rules = (training_sets.SEEDS, training_sets.NEIGHBOURS)
    of_k = {fit.arm.k or 0: i for i, fit in enumerate(fits) if fit.arm.rule in rules}
    ks = sorted(of_k)
    nested = [fits[of_k[k]] for k in ks]
    return _Curve(
        ks, [of_k[k] for k in ks], np.stack([fit.heldout for fit in nested]),
        np.stack([fit.label_deviations.astype(np.float64) for fit in nested]),
    )  # fmt: skip


def _best_k(ks: Sequence[int], fits: Sequence[FitResult]) -> int:
    kept = [(k, fit) for k, fit in zip(ks, fits, strict=True) if k]
    values = np.array([mean(fit.heldout) for _, fit in kept])
    deviations = np.stack([fit.heldout_deviations for _, fit in kept], axis=1)
    best = intervals.smallest_good([k for k, _ in kept], np.nan_to_num(values), deviations, np.ones(len(kept), bool))
    assert best is not None
    return best


def _step(table: Table, curve: _Curve, i: int) -> Step:
    """From one K of the curve to the next: mAP of the linear reading on the evaluation clips."""
    before, after = (table.evaluations[curve.places[j]][LINEAR].summary("map") for j in (i - 1, i))
    estimate = intervals.estimate(after[0] - before[0], after[1] - before[1], (-1.0, 1.0))
    sizes = [len(table.fits[curve.places[j]].arm.rows) for j in (i - 1, i)]
    added = sizes[1] - sizes[0]
    low, high = estimate.interval()
    per_clip = [rounded(1000 * value / added) if added else None for value in (estimate.value, low, high)]
    return Step(
        from_k=curve.ks[i - 1],
        to_k=curve.ks[i],
        added_clips=added,
        gain=rounded(estimate.value),
        low=rounded(low),
        high=rounded(high),
        per_1000_clips=per_clip[0],
        per_1000_clips_low=per_clip[1],
        per_1000_clips_high=per_clip[2],
        verdict=estimate.verdict(None),
    )


def _labels(curve: _Curve, label_ids: Sequence[str], single: int) -> list[LabelValue]:
    """Every label's steps on held-out seeds, and its K."""
    gains = [_differences(curve, i, i - 1) for i in range(1, len(curve.ks))]
    own = _own(curve, curve.ks.index(single))
    out = []
    for label, name in enumerate(label_ids):
        each = [
            Estimate(float(value[label]), float(np.sqrt(spread[label])), float(freedom[label]), 0.0, (-1.0, 1.0))
            for value, spread, freedom in gains
        ]
        ends = [one.interval() for one in each]
        out.append(
            LabelValue(
                id=name,
                k=curve.ks[int(own[label])],
                gain=tuple(rounded(one.value) for one in each),
                low=tuple(rounded(low) for low, _ in ends),
                high=tuple(rounded(high) for _, high in ends),
            )
        )
    return out


def _own(curve: _Curve, at: int) -> Int64:
    """The place of each label's K in the curve, (L,); at: that of the K of all."""
    others = [i for i, k in enumerate(curve.ks) if k and i != at]
    better = np.zeros(curve.ap.shape, dtype=bool)
    if others:
        against = [_differences(curve, i, at) for i in others]
        p = np.stack([intervals.p_values(*one) for one in against])
        p[np.stack([one[0] for one in against]) <= 0] = 1.0
        better[others] = intervals.benjamini_hochberg(p.ravel(), FALSE_DISCOVERIES).reshape(p.shape)
    return np.where(better.any(axis=0), np.where(better, curve.ap, -np.inf).argmax(axis=0), at).astype(np.int64)


def _differences(curve: _Curve, one: int, other: int) -> tuple[Float64, Float64, Float64]:
    """AP at one K minus that at another, their variance and degrees of freedom, (L,) each."""
    spread, freedom = intervals.variance(curve.deviations[one] - curve.deviations[other])
    return curve.ap[one] - curve.ap[other], spread, freedom

"""Ranking figures of many labels: AP, AP at another prior, AUC, d′, and how each changes with one clip left out.

In: scores (n, L) and the true labels; out: figures (L,), and the exact change of a mean over labels for each of the n
clips left out, from which `intervals` makes standard errors. A label's scores are never sorted as a whole: each clip is
placed among the label's positives, whose running sums then give every figure and every deletion. Tied scores count as
one threshold, as in scikit-learn: a constant score has the AP of the label's share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from balance.records import Bool, Float32, Float64, Int64


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """One value per label, (L,) float64 each; NaN where a label has no positive or no negative clip.

    ap: average precision; ap_prior: the same with positives and negatives reweighted to a given share of positives;
    auc: area under the ROC curve.
    """

    ap: Float64
    ap_prior: Float64
    auc: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Label:
    """One label's clips, placed among its positives in groups of equal score, best first.

    group: (n,) the group at or after each clip (after all: the number of groups); tied: (n,) whether the clip has that
    group's score; positive: (n,) bool; sizes, true, false, ties: (g,) positives of each group, positives down to and
    with it, negatives down to and with it, negatives that tie with it.
    """

    group: Int64
    tied: Bool
    positive: Bool
    sizes: Float64
    true: Float64
    false: Float64
    ties: Float64

    @property
    def num_positive(self) -> float:
        return float(self.true[-1])

    @property
    def num_negative(self) -> float:
        return len(self.group) - self.num_positive


def _place(scores: Float32, positives: Int64) -> _Label:
    of_positives, sizes = np.unique(-scores[positives], return_counts=True)  # ascending: the best score first
    group = np.searchsorted(of_positives, -scores)
    num = len(of_positives)
    tied = of_positives[np.minimum(group, num - 1)] == -scores
    positive = np.zeros(len(scores), dtype=bool)
    positive[positives] = True
    negatives = np.bincount(group[~positive], minlength=num + 1)[:num]
    ties = np.bincount(group[~positive & tied], minlength=num + 1)[:num]
    return _Label(
        group, tied, positive, sizes.astype(np.float64), np.cumsum(sizes, dtype=np.float64),
        np.cumsum(negatives, dtype=np.float64), ties.astype(np.float64),
    )  # fmt: skip


def _precision(true: Float64, false: Float64, positives: float, negatives: float, prior: float | None) -> Float64:
    """Precision at thresholds; with a prior as if the share of positives were that."""
    if prior is not None:
        true, false = true * (prior / max(positives, 1.0)), false * ((1.0 - prior) / max(negatives, 1.0))
    return np.asarray(np.where(true > 0, true / np.where(true > 0, true + false, 1.0), 0.0), dtype=np.float64)


def _ap(at: _Label, prior: float | None) -> float:
    precision = _precision(at.true, at.false, at.num_positive, at.num_negative, prior)
    return float((at.sizes * precision).sum() / at.num_positive)


def _ap_without(at: _Label, prior: float | None) -> Float64:
    """AP without each clip, (n,): thresholds before the clip keep their counts, those from it on lose one; NaN for the
    only positive, or the only negative."""
    positives, negatives = at.num_positive, at.num_negative

    def running(true: Float64, false: Float64, num_positive: float, num_negative: float) -> Float64:
        terms = at.sizes * _precision(true, false, num_positive, num_negative, prior)
        return np.concatenate([[0.0], np.cumsum(terms)])

    before = running(at.true, at.false, positives - 1, negatives)
    after = running(at.true - 1, at.false, positives - 1, negatives)
    own = _precision(at.true - 1, at.false, positives - 1, negatives, prior)
    of_positive = (before[:-1] + after[-1] - after[:-1] - own) / max(positives - 1, 1.0)
    before = running(at.true, at.false, positives, negatives - 1)
    after = running(at.true, np.maximum(at.false - 1, 0.0), positives, negatives - 1)
    of_negative = (before + after[-1] - after) / positives
    if positives < 2:
        of_positive[:] = np.nan
    if negatives < 2:
        of_negative[:] = np.nan
    num = len(at.sizes)
    out = np.where(at.positive, of_positive[np.minimum(at.group, num - 1)], of_negative[at.group])
    return np.asarray(out, dtype=np.float64)


def _auc(at: _Label) -> float:
    wrong = (at.sizes * (at.false - at.ties / 2)).sum()
    return float(1.0 - wrong / (at.num_positive * at.num_negative))


def _auc_without(at: _Label) -> Float64:
    """AUC without each clip, (n,); NaN for the only positive, or the only negative."""
    positives, negatives = at.num_positive, at.num_negative
    middle = at.false - at.ties / 2
    wrong = (at.sizes * middle).sum()
    above = np.concatenate([[0.0], at.true])[at.group]  # positives that score higher than the clip
    own_size = np.append(at.sizes, 0.0)[at.group]
    below = positives - above - np.where(at.tied, own_size / 2, 0.0)
    of_positive = 1.0 - (wrong - np.append(middle, 0.0)[at.group]) / (max(positives - 1, 1.0) * negatives)
    of_negative = 1.0 - (wrong - below) / (positives * max(negatives - 1, 1.0))
    if positives < 2:
        of_positive[:] = np.nan
    if negatives < 2:
        of_negative[:] = np.nan
    return np.asarray(np.where(at.positive, of_positive, of_negative), dtype=np.float64)


def _usable(prior: Float64 | None, label: int) -> float | None:
    """The share to reweight to; NaN where it is none."""
    if prior is None:
        return None
    share = float(prior[label])
    return share if 0.0 < share < 1.0 else np.nan


class Ranking:
    """Scores (n, L) of one model against the true labels; labels: CSR (n, L) of ones; prior: (L,) share of positives
    that `ap_prior` is reweighted to (default: AP again)."""

    def __init__(self, scores: Float32, labels: Any, prior: Float64 | None = None) -> None:
        assert scores.shape == labels.shape
        self._scores, self._prior = scores, prior
        self._by_label = labels.tocsc()
        counts = np.diff(self._by_label.indptr)
        self._defined = np.flatnonzero((counts > 0) & (counts < len(scores)))

    def _placed(self, columns: Int64) -> Iterator[tuple[int, _Label]]:
        first = self._by_label.indptr
        for label in np.intersect1d(self._defined, columns):
            positives = self._by_label.indices[first[label] : first[label + 1]]
            yield int(label), _place(self._scores[:, label], positives)

    def figures(self) -> Figures:
        """Figures of every label. Group g of equal scores has precision TP_g / (TP_g + FP_g);
        AP = Σ (recall_g − recall_{g−1}) precision_g; AUC counts ties half."""
        out = Figures(*(np.full(self._scores.shape[1], np.nan) for _ in range(3)))
        for label, at in self._placed(np.arange(self._scores.shape[1])):
            out.ap[label], out.auc[label] = _ap(at, None), _auc(at)
            out.ap_prior[label] = _ap(at, _usable(self._prior, label))
        return out

    def without_each_clip(self, columns: Int64) -> Float64:
        """How the AP of these labels changes with each clip left out: (n, len(columns)); 0 where it is undefined."""
        out = np.zeros((len(self._scores), len(columns)))
        place = {int(label): i for i, label in enumerate(columns)}
        for label, at in self._placed(columns):
            out[:, place[label]] = np.nan_to_num(_ap_without(at, None) - _ap(at, None))
        return out

    def evaluate(self, sets: Mapping[str, Int64]) -> tuple[Figures, dict[str, float], dict[str, Float64]]:
        """(figures of every label, means over sets of labels, the means' deviations with each clip left out (n,)).

        sets: name -> labels. The means of set `x` are `map_x`, `map_x_prior`; d′ is over the first set. Without the
        only clip of a label the mean is over the other labels.
        """
        figures = self.figures()
        first = next(iter(sets))
        wanted = {
            f"map{name}{end}": (name, kind) for name in sets for end, kind in (("", "ap"), ("_prior", "ap_prior"))
        }
        wanted["d_prime"] = (first, "auc")
        means = {out: mean(getattr(figures, kind)[sets[name]]) for out, (name, kind) in wanted.items()}
        sums = {out: np.zeros(len(self._scores)) for out in wanted}
        gone = {out: np.zeros(len(self._scores)) for out in wanted}  # labels that have no figure without the clip
        weight = {name: np.bincount(labels, minlength=self._scores.shape[1]) for name, labels in sets.items()}
        count = {
            out: int((~np.isnan(getattr(figures, kind)[sets[name]])).sum()) for out, (name, kind) in wanted.items()
        }
        for label, at in self._placed(np.unique(np.concatenate(list(sets.values())))):
            of = {
                "ap": (_ap_without(at, None), figures.ap[label]),
                "ap_prior": (_ap_without(at, _usable(self._prior, label)), figures.ap_prior[label]),
                "auc": (_auc_without(at), figures.auc[label]),
            }
            for out, (name, kind) in wanted.items():
                without, value = of[kind]
                if (times := weight[name][label]) and not np.isnan(value):
                    lost = np.isnan(without)
                    gone[out] += times * lost
                    sums[out] += times * (np.where(lost, means[out], without) - value)
        deviations = {out: sums[out] / np.maximum(count[out] - gone[out], 1) for out in wanted}
        auc = means["d_prime"]
        means["d_prime"] = float(d_prime(np.array(auc)))
        deviations["d_prime"] = np.nan_to_num(d_prime(auc + deviations["d_prime"]) - means["d_prime"])
        return figures, means, deviations


def mean(values: Float64) -> float:
    """Mean of the values that are defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def d_prime(mean_auc: Float64) -> Float64:
    """√2 Φ⁻¹(mean AUC), the AUC averaged over labels first, as PANNs and AST report it; NaN where the mean is 0 or 1:
    d′ is infinite there."""
    value = np.sqrt(2.0) * scipy.special.ndtri(mean_auc)
    return np.asarray(np.where(np.isfinite(value), value, np.nan), dtype=np.float64)

"""Ranking figures of many labels at once, under any weights of the clips: AP, AP at another prior, AUC, d′.

In: scores (n, L) and the true labels; out: (B, L) figures for B weightings of the n clips. The order of the scores is
computed once; a bootstrap replicate is only another weight vector, so B replicates are one sparse matrix times a
dense (n, B) matrix. Price: the order kept as segments, 4 bytes per clip and label. Tied scores count as one threshold,
as in scikit-learn: a constant score has the AP of the label's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.special

from balance.records import Float32, Float64, Int64

LABELS_PER_BLOCK = 32  # bounds the (positives, B) intermediates: 32 labels of 100 positives x 1,000 replicates = 50 MB


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """One value per weighting and label, (B, L) float64 each; NaN where a label has no positive or no negative weight.

    ap: average precision; ap_prior: the same with positives and negatives reweighted to a given share of positives;
    auc: area under the ROC curve.
    """

    ap: Float64
    ap_prior: Float64
    auc: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    labels: Int64  # columns of the figures
    first: Int64  # (len(labels) + 1,) first group of each label
    positives: Any  # CSR (groups, n): the positives of each tied group
    gaps: Any  # CSR (groups, n): the negatives between the previous group and this one
    ties: Any  # CSR (groups, n): the negatives that tie with this group's positives


class Ranking:
    """Scores (n, L) of one model, ordered label by label against the true labels; labels: CSR (n, L) of ones."""

    def __init__(self, scores: Float32, labels: Any) -> None:
        assert scores.shape == labels.shape
        self.shape: tuple[int, int] = (len(scores), scores.shape[1])
        by_label = labels.tocsc()
        counts: Int64 = np.diff(by_label.indptr)
        usable = np.flatnonzero((counts > 0) & (counts < scores.shape[0]))
        self._blocks = []
        for start in range(0, len(usable), LABELS_PER_BLOCK):
            chosen = usable[start : start + LABELS_PER_BLOCK]
            parts = [
                _groups(scores[:, c], by_label.indices[by_label.indptr[c] : by_label.indptr[c + 1]]) for c in chosen
            ]
            first = np.concatenate([[0], np.cumsum([p[0] for p in parts])]).astype(np.int64)
            matrices = []
            for kind in (1, 2, 3):
                rows = np.concatenate([p[kind][0] + at for p, at in zip(parts, first[:-1], strict=True)])
                clips = np.concatenate([p[kind][1] for p in parts])
                ones = np.ones(len(rows), dtype=np.float32)
                matrices.append(scipy.sparse.csr_matrix((ones, (rows, clips)), shape=(first[-1], scores.shape[0])))
            self._blocks.append(_Block(chosen, first, *matrices))

    def figures(self, weights: Float32 | None = None, prior: Float64 | None = None) -> Figures:
        """Figures under each column of weights (n, B) ≥ 0 (default: one column of ones).

        prior: (L,) share of positives to reweight to (default: AP again). Tied group g of a label has precision
        TP_g / (TP_g + FP_g); AP = Σ (recall_g − recall_{g−1}) precision_g; AUC counts ties half.
        """
        n, num_labels = self.shape
        if weights is None:
            weights = np.ones((n, 1), dtype=np.float32)
        total = weights.sum(axis=0, dtype=np.float64)  # (B,)
        out = [np.full((weights.shape[1], num_labels), np.nan) for _ in range(3)]
        for block in self._blocks:
            positive = (block.positives @ weights).astype(np.float64)  # (groups, B)
            gap = (block.gaps @ weights).astype(np.float64)
            tie = (block.ties @ weights).astype(np.float64) if block.ties.nnz else None
            for i, label in enumerate(block.labels):
                at = slice(block.first[i], block.first[i + 1])
                share = None if prior is None else float(prior[label])
                values = _label_figures(positive[at], gap[at], None if tie is None else tie[at], total, share)
                for target, value in zip(out, values, strict=True):
                    target[:, label] = value
        return Figures(*out)


def _groups(scores: Float32, positives: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Of one label: number of tied groups with a positive, then (group, clip) pairs of positives, gaps and ties."""
    order = np.argsort(-scores, kind="stable")
    is_positive = np.zeros(len(scores), dtype=bool)
    is_positive[positives] = True
    is_positive = is_positive[order]
    ordered = scores[order]
    level = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])  # threshold number of each rank
    with_positive = np.unique(level[is_positive])
    group = np.searchsorted(with_positive, level)  # the group at or after each rank; past the last: num groups
    num = len(with_positive)
    inside = group < num
    tied = inside & (with_positive[np.minimum(group, num - 1)] == level)
    negative = ~is_positive
    pick = (is_positive, negative & inside & ~tied, negative & tied)
    pairs = [(group[mask], order[mask]) for mask in pick]
    return num, *pairs


def _label_figures(
    positive: Float64, gap: Float64, tie: Float64 | None, total: Float64, prior: float | None
) -> tuple[Float64, Float64, Float64]:
    true = np.cumsum(positive, axis=0)  # (groups, B)
    false = np.cumsum(gap if tie is None else gap + tie, axis=0)
    all_true = true[-1]
    all_false = total - all_true
    with np.errstate(divide="ignore", invalid="ignore"):
        recall_step = positive / all_true
        ap = (recall_step * np.where(true > 0, true / (true + false), 0.0)).sum(axis=0)
        middle = false if tie is None else false - tie / 2
        auc = 1.0 - (positive * middle).sum(axis=0) / (all_true * all_false)
        if prior is None:
            shifted = ap
        elif not 0.0 < prior < 1.0:
            shifted = np.full_like(ap, np.nan)
        else:
            up, down = true * (prior / all_true), false * ((1.0 - prior) / all_false)
            shifted = (recall_step * np.where(up > 0, up / (up + down), 0.0)).sum(axis=0)
    defined = (all_true > 0) & (all_false > 0)
    return (
        np.where(defined, ap, np.nan),
        np.where(defined, shifted, np.nan),
        np.where(defined, auc, np.nan),
    )


def macro(values: Float64) -> Float64:
    """Mean over the labels that are defined: (B, L) → (B,); NaN where none is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def d_prime(auc: Float64) -> Float64:
    """√2 Φ⁻¹(mean AUC), the AUC averaged over labels first, as PANNs and AST report it: (B, L) → (B,).

    NaN where the mean is 0 or 1: d′ is infinite there.
    """
    mean = macro(auc)
    value = np.sqrt(2.0) * scipy.special.ndtri(mean)
    return np.where(np.isfinite(value), value, np.nan)

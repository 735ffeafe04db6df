"""How well neighbours keep the labels of their seeds, and what uniform picks would have given.

In: label sets of seeds and pool over one vocabulary, and the neighbours. Out: the numbers of the summary. The random
baselines are expectations in closed form, not draws: a draw would add noise, depend on a seed, and cost as much as the
measurement. Pairs are expanded a million at a time (22,160 seeds x 512 neighbours are 11.3 M pairs), so memory stays
near 100 MB whatever K is. Means are `math.fsum` over seeds, in seed order, so that the summary's digits do not depend
on a library's order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from balance.records import Bool, Float64, Int32, Int64, Labels, Neighbours

PAIRS_PER_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """The (seed, neighbour) pairs of c seeds, in (seed, rank) order, with the neighbours' labels side by side.

    seeds: which rows of the neighbours; has: (c, L) bool, whether a seed has a label; pair p has the neighbour's labels
    codes[offsets[p]:offsets[p + 1]]; hits, seed_of: beside codes, whether the seed has that label too, and which seed
    of the chunk it is.
    """

    seeds: slice
    has: Bool
    offsets: Int64
    codes: Int32
    hits: Bool
    seed_of: Int64


def _chunks(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> Iterator[_Chunk]:
    assert seed_labels.names == pool_labels.names, "one vocabulary"
    k = neighbours.k
    num_labels = len(seed_labels.names)
    step = max(1, PAIRS_PER_CHUNK // max(k, num_labels))
    for start in range(0, len(neighbours.seed_rows), step):
        seeds = slice(start, min(start + step, len(neighbours.seed_rows)))
        mine = seed_labels.take(neighbours.seed_rows[seeds])
        has = np.zeros((len(mine), num_labels), dtype=np.bool_)
        has[np.repeat(np.arange(len(mine)), mine.sizes()), mine.codes] = True
        theirs = pool_labels.take(neighbours.pool_rows[seeds].reshape(-1).astype(np.int64))
        labels_per_seed = np.diff(theirs.offsets[::k])
        seed_of = np.repeat(np.arange(len(mine), dtype=np.int64), labels_per_seed)
        yield _Chunk(seeds, has, theirs.offsets, theirs.codes, has[seed_of, theirs.codes], seed_of)


def overlaps(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> npt.NDArray[np.int16]:
    """|labels(seed) ∩ labels(neighbour)| of every pair, (S, K) int16.

    seed_labels, pool_labels: of the whole seed and pool index, over one vocabulary.
    """
    out = np.zeros(neighbours.pool_rows.shape, dtype=np.int16)
    for chunk in _chunks(seed_labels, pool_labels, neighbours):
        before = np.concatenate([[0], np.cumsum(chunk.hits, dtype=np.int64)])
        out[chunk.seeds] = (before[chunk.offsets[1:]] - before[chunk.offsets[:-1]]).reshape(-1, neighbours.k)
    return out


def hits_by_rank(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> Int64:
    """Seeds that have label l and whose neighbour at rank r + 1 has l too, counted: (K, L) int64."""
    num_labels = len(seed_labels.names)
    out = np.zeros(neighbours.k * num_labels, dtype=np.int64)
    for chunk in _chunks(seed_labels, pool_labels, neighbours):
        rank_of = np.repeat(np.arange(len(chunk.offsets) - 1) % neighbours.k, np.diff(chunk.offsets))
        out += np.bincount(rank_of[chunk.hits] * num_labels + chunk.codes[chunk.hits], minlength=len(out))
    return out.reshape(neighbours.k, num_labels)


def agreement_by_seed(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> Float64:
    """Mean over a seed's neighbours of |labels(seed) ∩ labels(neighbour)| / |labels(seed)|; nan without labels.

    (S,) float64, beside `neighbours.seed_rows`.
    """
    found = overlaps(seed_labels, pool_labels, neighbours).sum(axis=1, dtype=np.int64)
    return _over(found, seed_labels.sizes()[neighbours.seed_rows] * neighbours.k)


def label_agreement(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> float | None:
    """Label agreement@k: mean over seeds and neighbours of |labels(seed) ∩ labels(neighbour)| / |labels(seed)|.

    seed_labels, pool_labels: of the whole seed and pool index, over one vocabulary; `neighbours` points into both.
    Seeds without labels are left out; None if none is left.
    """
    return _mean(agreement_by_seed(seed_labels, pool_labels, neighbours))


def label_recall(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> float | None:
    """Label recall@k: mean over seeds of |labels(seed) ∩ union of the neighbours' labels| / |labels(seed)|.

    Arguments and seeds left out as in `label_agreement`. It saturates: read it beside `label_recall_random`.
    """
    found = np.zeros(len(neighbours.seed_rows), dtype=np.int64)
    for chunk in _chunks(seed_labels, pool_labels, neighbours):
        seen = np.zeros_like(chunk.has)
        seen[chunk.seed_of[chunk.hits], chunk.codes[chunk.hits]] = True
        found[chunk.seeds] = seen.sum(axis=1)
    return _mean(_over(found, seed_labels.sizes()[neighbours.seed_rows]))


def label_agreement_random(seed_labels: Labels, eligible_labels: Labels) -> float | None:
    """What `label_agreement` is on average for uniform picks from the eligible pool, for any k.

    seed_labels: of the seeds with an embedding; eligible_labels: of the clips that may be neighbours; one vocabulary.
    Each pick has label l with probability count(l) / N, so a seed expects the mean share of its labels.
    """
    if not len(eligible_labels):
        return None
    return _expected(seed_labels, eligible_labels.counts() / len(eligible_labels))


def label_recall_random(seed_labels: Labels, eligible_labels: Labels, k: int) -> float | None:
    """What `label_recall` is on average for k uniform picks without replacement from the eligible pool.

    Arguments as in `label_agreement_random`. Label l is missed by all k picks with the hypergeometric probability
    C(N − c, k) / C(N, k), taken through log-gamma: exact to about 1e-8 at N = 2 M.
    """
    total = len(eligible_labels)
    if not total:
        return None
    count = eligible_labels.counts().astype(np.float64)
    possible = total - count >= k  # else every draw of k holds the label
    rest = np.where(possible, total - count, k)
    log_missed = gammaln(rest + 1) - gammaln(rest - k + 1) - gammaln(total + 1.0) + gammaln(total - k + 1.0)
    missed = np.where(possible, np.exp(np.minimum(log_missed, 0.0)), 0.0)
    return _expected(seed_labels, np.where(count > 0, 1.0 - missed, 0.0))


def label_entropy(labels: Labels, num_labels: int) -> float | None:
    """Normalised entropy H / ln(num_labels) of the label counts of these clips; None without labels or of one label.

    num_labels: the labels in use in seeds and pool together.
    """
    return entropy_of(labels.counts(), num_labels)


def entropy_of(counts: Int64, num_labels: int) -> float | None:
    """Normalised entropy of label counts, H / ln(num_labels), as in `label_entropy`."""
    total = int(counts.sum())
    if total == 0 or num_labels < 2:
        return None
    terms = (c / total * math.log(c / total) for c in counts[counts > 0].tolist())
    return -math.fsum(terms) / math.log(num_labels) + 0.0  # + 0.0: one label alone gives 0, not −0


def _expected(seed_labels: Labels, chance: Float64) -> float | None:
    """Mean over seeds with labels of the mean chance of their labels."""
    sums = np.concatenate([[0.0], np.cumsum(chance[seed_labels.codes])])
    found = sums[seed_labels.offsets[1:]] - sums[seed_labels.offsets[:-1]]
    return _mean(_over(found, seed_labels.sizes()))


def _over(found: npt.NDArray[np.int64] | Float64, of: Int64) -> Float64:
    """found / of, nan where `of` is 0."""
    share = np.full(len(of), np.nan)
    np.divide(found, of, out=share, where=of > 0)
    return share


def _mean(values: Float64) -> float | None:
    """Mean of what is not nan, the same digits on every machine; None over nothing."""
    kept = values[~np.isnan(values)]
    return math.fsum(kept.tolist()) / len(kept) if len(kept) else None

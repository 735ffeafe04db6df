"""How well neighbours keep the labels of their seeds, and what uniform picks would have given.

In: label sets of seeds and pool over one vocabulary, and the neighbours. Out: the numbers of the summary and the
columns of the union. The random baselines are expectations in closed form, not draws: a draw would add noise, depend
on a seed, and cost as much as the measurement. Pairs are expanded a million at a time (22,160 seeds x 512 neighbours
are 11.3 M pairs), so memory stays near 100 MB whatever K is. Means are `math.fsum` over seeds, in seed order, so that
the summary's digits do not depend on a library's order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from balance.records import Bool, Float32, Float64, Int32, Int64, Labels, Neighbours

PAIRS_A_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Union:
    """The distinct neighbours, one row a pool clip, in pool order.

    pool_rows: (U,) int64 ascending; num_seeds: (U,) int64 seeds that have it in their top K; best_seed: (U,) int64
    index into `Neighbours.seed_rows`; best_rank: (U,) int32 from 1; best_similarity: (U,) float32. The three `best_`
    are of one pair: highest similarity, then lower rank, then seed order.
    """

    pool_rows: Int64
    num_seeds: Int64
    best_seed: Int64
    best_rank: Int32
    best_similarity: Float32

    def __len__(self) -> int:
        return len(self.pool_rows)

    def take(self, at: Int64) -> Union:
        """These rows, in their order."""
        return Union(
            pool_rows=self.pool_rows[at],
            num_seeds=self.num_seeds[at],
            best_seed=self.best_seed[at],
            best_rank=self.best_rank[at],
            best_similarity=self.best_similarity[at],
        )


def union_of(neighbours: Neighbours) -> Union:
    """The distinct neighbours with their best pair. O(pairs + pool), no sort of the pairs."""
    num_seeds, k = neighbours.pool_rows.shape
    flat = neighbours.pool_rows.reshape(-1)
    size = int(flat.max(initial=-1)) + 1
    counts = np.bincount(flat, minlength=size).astype(np.int64)
    best = np.full(size, -np.inf, dtype=np.float32)
    np.maximum.at(best, flat, neighbours.similarities.reshape(-1))
    key = np.full(size, num_seeds * k, dtype=np.int64)  # rank, then seed order
    for rank in range(k):
        rows = neighbours.pool_rows[:, rank]
        at = np.flatnonzero(neighbours.similarities[:, rank] == best[rows])
        np.minimum.at(key, rows[at], rank * num_seeds + at)
    pool_rows = np.flatnonzero(counts).astype(np.int64)
    chosen = key[pool_rows]
    return Union(
        pool_rows=pool_rows,
        num_seeds=counts[pool_rows],
        best_seed=chosen % max(num_seeds, 1),
        best_rank=(chosen // max(num_seeds, 1) + 1).astype(np.int32),
        best_similarity=best[pool_rows],
    )


def union_sizes(neighbours: Neighbours) -> Int64:
    """Distinct neighbours at every K: entry r is the union's size at K = r + 1. (K,) int64."""
    k = neighbours.k
    size = int(neighbours.pool_rows.max(initial=-1)) + 1
    first = np.full(size, k, dtype=np.int32)
    for rank in range(k - 1, -1, -1):  # the lowest rank is written last
        first[neighbours.pool_rows[:, rank]] = rank
    return np.cumsum(np.bincount(first, minlength=k + 1)[:k]).astype(np.int64)


def uniform_share(num_seeds: int, num_pool: int, k: int) -> float | None:
    """Expected share of the pool in the union if each seed picked k of num_pool clips uniformly, without replacement.

    A clip escapes one seed with probability 1 − k/N and all S with (1 − k/N)^S. None for an empty pool.
    """
    return 1.0 - (1.0 - k / num_pool) ** num_seeds if num_pool else None


def _pairs(
    seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours
) -> Iterator[tuple[slice, Bool, Int64, Int32, Bool, Int64]]:
    """Chunks of seeds: (seeds, has, offsets, codes, hits, seed_of).

    has: (c, L) whether seed i has label l. The chunk's pairs in (seed, rank) order: pair p has the neighbour's labels
    codes[offsets[p]:offsets[p + 1]]; hits and seed_of, beside codes, say whether the seed has that label and which
    seed of the chunk it is.
    """
    assert seed_labels.names == pool_labels.names, "one vocabulary"
    k = neighbours.k
    num_labels = len(seed_labels.names)
    step = max(1, PAIRS_A_CHUNK // max(k, num_labels))
    for start in range(0, len(neighbours.seed_rows), step):
        seeds = slice(start, min(start + step, len(neighbours.seed_rows)))
        mine = seed_labels.take(neighbours.seed_rows[seeds])
        has = np.zeros((len(mine), num_labels), dtype=np.bool_)
        has[np.repeat(np.arange(len(mine)), mine.sizes()), mine.codes] = True
        theirs = pool_labels.take(neighbours.pool_rows[seeds].reshape(-1).astype(np.int64))
        per_seed = np.diff(theirs.offsets[::k])
        seed_of = np.repeat(np.arange(len(mine), dtype=np.int64), per_seed)
        yield seeds, has, theirs.offsets, theirs.codes, has[seed_of, theirs.codes], seed_of


def overlaps(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> npt.NDArray[np.int16]:
    """|labels(seed) ∩ labels(neighbour)| of every pair, (S, K) int16.

    seed_labels, pool_labels: of the whole seed and pool index, over one vocabulary.
    """
    out = np.zeros(neighbours.pool_rows.shape, dtype=np.int16)
    for seeds, _, offsets, _, hits, _ in _pairs(seed_labels, pool_labels, neighbours):
        before = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)])
        out[seeds] = (before[offsets[1:]] - before[offsets[:-1]]).reshape(-1, neighbours.k)
    return out


def hits_by_rank(seed_labels: Labels, pool_labels: Labels, neighbours: Neighbours) -> Int64:
    """How many seeds that have label l have a rank r + 1 neighbour with l too, (K, L) int64."""
    num_labels = len(seed_labels.names)
    out = np.zeros(neighbours.k * num_labels, dtype=np.int64)
    for _, _, offsets, codes, hits, _ in _pairs(seed_labels, pool_labels, neighbours):
        rank_of = np.repeat(np.arange(len(offsets) - 1) % neighbours.k, np.diff(offsets))
        out += np.bincount(rank_of[hits] * num_labels + codes[hits], minlength=len(out))
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
    for seeds, has, _, codes, hits, seed_of in _pairs(seed_labels, pool_labels, neighbours):
        seen = np.zeros_like(has)
        seen[seed_of[hits], codes[hits]] = True
        found[seeds] = seen.sum(axis=1)
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

"""The distinct neighbours of all seeds: which clips they are, whose, and how many there are at every K.

In: the neighbours of a search. Out: `Union`, columns in pool order, and sizes beside what uniform picks would give.
Everything is counted over pool rows, without a sort of the pairs: 22,160 seeds x 512 neighbours are 11.3 M pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from balance.records import Float32, Int32, Int64, Neighbours


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

    def with_rows(self, pool_rows: Int64) -> Union:
        """These pool clips too. What no seed has: num_seeds 0, best_seed −1, best_rank 0, best_similarity NaN."""
        new = np.setdiff1d(pool_rows, self.pool_rows)
        rows = np.concatenate([self.pool_rows, new])
        none = np.zeros(len(new), dtype=np.int64)
        return Union(
            pool_rows=rows,
            num_seeds=np.concatenate([self.num_seeds, none]),
            best_seed=np.concatenate([self.best_seed, none - 1]),
            best_rank=np.concatenate([self.best_rank, none.astype(np.int32)]),
            best_similarity=np.concatenate([self.best_similarity, np.full(len(new), np.nan, dtype=np.float32)]),
        ).take(np.argsort(rows))


def union_of(neighbours: Neighbours, ks: Int64 | None = None) -> Union:
    """The distinct neighbours with their best pair. O(pairs + pool), no sort of the pairs.

    ks: (S,) int64, how many each seed takes; None: all.
    """
    num_seeds, k = neighbours.pool_rows.shape
    flat = neighbours.pool_rows.reshape(-1)
    size = int(flat.max(initial=-1)) + 1
    taken = slice(None) if ks is None else (np.arange(k) < ks[:, None]).reshape(-1)
    counts = np.bincount(flat[taken], minlength=size).astype(np.int64)
    best = np.full(size, -np.inf, dtype=np.float32)
    np.maximum.at(best, flat[taken], neighbours.similarities.reshape(-1)[taken])
    key = np.full(size, num_seeds * k, dtype=np.int64)  # rank, then seed order
    for rank in range(k):
        rows = neighbours.pool_rows[:, rank]
        is_best = neighbours.similarities[:, rank] == best[rows]
        at = np.flatnonzero(is_best if ks is None else is_best & (rank < ks))
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

"""Neighbours that several encoders agree on come first; and how far the encoders agree.

In: the top K of each encoder over one pool, best first; the first encoder's vectors. Out: for each seed the K best of
all that any of them lists: those in most lists first, of these the lowest mean rank (over the lists that have it), of
equal ones the first encoder's similarity, then pool order. Exact and the same bytes everywhere: ranks are integers, and
similarities that the first encoder's list does not hold are computed as the search computes them. The price: the order
within a seed does not follow its similarities any more, and a smaller K is not a slice of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from balance.records import Float32, Float64, Int32, Int64, Vectors
from balance.search.rescore import cosines, hear_sparse_warning, lengths_of

_SEEDS_AT_ONCE = 256  # with K = 512 and three encoders up to 390,000 pairs and as many pool rows


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """positions: (S, K) int32 of the pool; similarities: (S, K) float32 by the first encoder; num_lists: (S, K) int8
    encoders that have it in their top K; agreement: (S,) float64 share of the first encoder's top K that another has
    too, mean over those others that know the seed (NaN where none does)."""

    positions: Int32
    similarities: Float32
    num_lists: Int64
    agreement: Float64


def find(first: Int32, similarities: Float32, others: Sequence[Int32], seeds: Float32, pool: Vectors) -> Consensus:
    """first: (S, K) positions in the pool, with their similarities; others: the same of each other encoder, (S, K_i),
    −1 where there is none; seeds (S, dim), pool: of the first encoder."""
    num_seeds = len(first)
    hear_sparse_warning()
    found = [
        _some(
            first[at : at + _SEEDS_AT_ONCE],
            similarities[at : at + _SEEDS_AT_ONCE],
            [other[at : at + _SEEDS_AT_ONCE] for other in others],
            seeds[at : at + _SEEDS_AT_ONCE],
            pool,
        )
        for at in range(0, num_seeds, _SEEDS_AT_ONCE)
    ]
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Consensus(columns[0], columns[1], columns[2], columns[3])


def _some(
    first: Int32, similarities: Float32, others: list[Int32], seeds: Float32, pool: Vectors
) -> tuple[Int32, Float32, Int64, Float64]:
    num_seeds, k = first.shape
    num_pool = pool.shape[0]
    keys, ranks = [], []
    for listed in (first, *others):
        seed, rank = np.nonzero(listed >= 0)
        keys.append(seed * num_pool + listed[seed, rank])
        ranks.append(rank + 1)
    pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
    num_lists = np.bincount(place, minlength=len(pairs))
    ranks_sum = np.bincount(place, weights=np.concatenate(ranks), minlength=len(pairs)).astype(np.int64)
    seed_at, position = pairs // num_pool, pairs % num_pool
    values = np.empty(len(pairs), dtype=np.float32)
    is_first = np.zeros(len(pairs), dtype=bool)
    own = np.searchsorted(pairs, keys[0])
    values[own], is_first[own] = similarities.reshape(-1), True
    if not is_first.all():
        values[~is_first] = _similarities(seeds, pool, seed_at[~is_first], position[~is_first])
    # of one seed and one number of lists, the mean ranks are in the order of their sums
    order = np.lexsort((position, -values, ranks_sum, -num_lists, seed_at))
    starts = np.searchsorted(seed_at[order], np.arange(num_seeds))
    kept = order[(starts[:, None] + np.arange(k)).reshape(-1)].reshape(num_seeds, k)
    shares = []
    for listed, key in zip(others, keys[1:], strict=True):
        both = np.bincount((key[is_first[np.searchsorted(pairs, key)]]) // num_pool, minlength=num_seeds)
        shares.append(np.where((listed >= 0).any(axis=1), both / k, np.nan))
    return position[kept].astype(np.int32), values[kept], num_lists[kept], _mean(np.stack(shares))


def _mean(shares: Float64) -> Float64:
    """(others, S) -> (S,), over those that know the seed."""
    known = ~np.isnan(shares)
    counts = known.sum(axis=0)
    return np.where(counts > 0, np.where(known, shares, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _similarities(seeds: Float32, pool: Vectors, seed_at: Int64, position: Int64) -> Float32:
    """The contract's similarity of these pairs (seed_at ascending)."""
    rows, row_at = np.unique(position, return_inverse=True)
    seeds64 = torch.from_numpy(seeds.astype(np.float64))
    rows64 = torch.from_numpy(pool.take(rows).astype(np.float64))
    below = torch.full((len(seeds),), -2.0)  # every pair counts
    given = (torch.from_numpy(seed_at), torch.from_numpy(row_at.reshape(-1)))
    return np.asarray(cosines(seeds64, lengths_of(seeds64), rows64, lengths_of(rows64), *given, below).numpy())

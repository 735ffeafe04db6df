"""What each control does to the union of the neighbours, as functions on columns.

In: pool rows of the union with their lowest ranks, label sets, clip facts. Out: masks, places, draws. Copies are taken
greedily, one decision a clip in (lowest rank, pool order), because connected components percolate: a chain of slight
resemblances would tie thousands of clips together. Only clips that have a copy at all enter that Python loop.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from balance.curation.label_cap import label_sets
from balance.records import Bool, Float64, Int32, Int64, Labels, Neighbours, Split
from balance.stats.labels import Union


def lowest_ranks(neighbours: Neighbours, union: Union) -> Int32:
    """The lowest rank (from 1) that any seed gives each clip of the union, (U,) int32."""
    size = int(union.pool_rows.max(initial=-1)) + 1
    lowest = np.zeros(size, dtype=np.int32)
    for rank in range(neighbours.k, 0, -1):  # the lowest is written last
        lowest[neighbours.pool_rows[:, rank - 1]] = rank
    return lowest[union.pool_rows]


def take_union(union: Union, at: Int64) -> Union:
    """These rows of a union."""
    return Union(
        pool_rows=union.pool_rows[at],
        num_seeds=union.num_seeds[at],
        best_seed=union.best_seed[at],
        best_rank=union.best_rank[at],
        best_similarity=union.best_similarity[at],
    )


def sound_codes(first: Split, second: Split, second_rows: Int64) -> Int64:
    """One number a clip, equal where the decoded samples are (by pcm_sha1); −1 for clips of only zeros.

    Of all embedded clips of `first`, then of `second_rows` (index rows with an embedding); (n,) int64.
    """
    assert first.facts is not None
    assert second.facts is not None
    at = np.searchsorted(second.embedded, second_rows)
    sha1 = np.ascontiguousarray(np.concatenate([first.facts.pcm_sha1, second.facts.pcm_sha1[at]]))
    silent = np.concatenate([first.facts.rms_db, second.facts.rms_db[at]]) == -np.inf
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(20), len(sha1), [None, pa.py_buffer(sha1)])
    codes = column.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.where(silent, -1, codes)


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """Neighbours that copy a seed or a kept neighbour, in pool order.

    at: (d,) int64 places in the union; by: (d,) int64 node of the clip that stays (seeds 0 … S − 1 in order, then the
    union); exact: (d,) equal samples; value: (d,) float64 correlation, 1 where exact.
    """

    at: Int64
    by: Int64
    exact: Bool
    value: Float64


def drop_copies(
    seeds: Split,
    pool: Split,
    pool_rows: Int64,
    lowest: Int32,
    acoustic: tuple[Int64, Int64, Float64] | None,
) -> Dropped:
    """Greedy in (lowest rank, pool order): a neighbour goes if it copies a seed or a neighbour that stays.

    Of several it is said to copy one with equal samples, else the one of highest correlation, then the first. acoustic:
    pairs (node, node, correlation), in any order.
    """
    num_seeds = len(seeds.embedded)
    codes = sound_codes(seeds, pool, pool_rows)
    often = np.bincount(codes[codes >= 0], minlength=1) > 1
    involved = (codes >= 0) & often[np.maximum(codes, 0)]
    similar: dict[int, list[tuple[float, int]]] = defaultdict(list)
    if acoustic is not None:
        for a, b, value in zip(*(column.tolist() for column in acoustic), strict=True):
            similar[a].append((-value, b))
            similar[b].append((-value, a))
        involved[list(similar)] = True
    keepers: dict[int, int] = {}
    for node in np.flatnonzero(involved[:num_seeds]).tolist():
        keepers.setdefault(int(codes[node]), node)
    candidates = np.flatnonzero(involved[num_seeds:])
    kept = set(range(num_seeds))
    out: list[tuple[int, int, bool, float]] = []
    for at in candidates[np.lexsort((candidates, lowest[candidates]))].tolist():
        node, code = num_seeds + at, int(codes[num_seeds + at])
        if code >= 0 and code in keepers:
            out.append((at, keepers[code], True, 1.0))
            continue
        partner = min((pair for pair in similar.get(node, []) if pair[1] in kept), default=None)
        if partner is not None:
            out.append((at, partner[1], False, -partner[0]))
            continue
        kept.add(node)
        keepers.setdefault(code, node)
    out.sort()
    return Dropped(
        np.array([x[0] for x in out], dtype=np.int64),
        np.array([x[1] for x in out], dtype=np.int64),
        np.array([x[2] for x in out], dtype=np.bool_),
        np.array([x[3] for x in out], dtype=np.float64),
    )


def largest_group(dropped: Dropped) -> tuple[int, int]:
    """(clips, node that stays) of the largest group: a kept clip and what was dropped for it; (0, 0) if none."""
    counts = Counter(dropped.by.tolist())
    if not counts:
        return 0, 0
    node = min(counts, key=lambda n: (-counts[n], n))
    return counts[node] + 1, node


def metaclip_chances(candidates: Labels, per_label: int) -> Float64:
    """Probability of each candidate to stay, (n,) float64: 1 − Π over its labels of (1 − t / max(count, t)).

    MetaCLIP's balancing (Xu et al. 2024, "Demystifying CLIP Data", algorithm 1) with the labels as its entries; count
    over the candidates. A clip without labels has probability 0.
    """
    misses = 1.0 - per_label / np.maximum(candidates.counts(), per_label)
    chances = np.zeros(len(candidates))
    some = np.flatnonzero(candidates.sizes())
    if len(some):
        chances[some] = 1.0 - np.multiply.reduceat(misses[candidates.codes], candidates.offsets[some])
    return chances


def within_budget(lowest: Int32, room: int, rng: np.random.Generator) -> tuple[Bool, int]:
    """(mask of the clips taken rank by rank, the rank reached): whole ranks while they fit, the last by a draw."""
    if room >= len(lowest):
        return np.ones(len(lowest), dtype=np.bool_), int(lowest.max(initial=0))
    upto = np.cumsum(np.bincount(lowest))  # clips of rank r or lower
    rank = int(np.searchsorted(upto, room, side="left"))
    chosen = lowest < rank
    last = np.flatnonzero(lowest == rank)
    chosen[rng.choice(last, room - int(chosen.sum()), replace=False)] = True
    return chosen, rank


def random_draw(eligible: Int64, size: int, rng: np.random.Generator) -> Int64:
    """`size` eligible pool rows, uniform without replacement, ascending."""
    return np.sort(eligible[rng.choice(len(eligible), size, replace=False, shuffle=False)])


class Stratified:
    """Draws with the same number of clips of every label set as the chosen neighbours, as far as the pool allows."""

    def __init__(self, labels: Labels, eligible: Int64, chosen: Int64) -> None:
        self._eligible = eligible
        both = np.concatenate([eligible, chosen])
        of = label_sets(labels.take(both)).of
        self._of = of[: len(eligible)]
        wanted = np.bincount(of[len(eligible) :], minlength=int(of.max(initial=-1)) + 1)
        there = np.bincount(self._of, minlength=len(wanted))
        self._take = np.minimum(wanted, there)
        self._first = np.cumsum(there) - there
        self.residual = int((wanted - self._take).sum())

    def draw(self, rng: np.random.Generator) -> Int64:
        """Pool rows, ascending."""
        order = np.lexsort((rng.random(len(self._of)), self._of))
        of = self._of[order]
        place = np.arange(len(order)) - self._first[of]
        return np.sort(self._eligible[order[place < self._take[of]]])

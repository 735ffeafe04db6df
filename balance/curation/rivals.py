"""Rules that choose pool clips without looking at the seeds: what the neighbours must be measured against.

In: the pool (`Pool`: vectors of the encoder that chose the neighbours, label sets), a size; out: pool rows, ascending.
Every rule is a function of (pool, size, rng), so that a table of them is a dictionary. Clustering is dear and serves
three rules, so the pool keeps it. Price: the pool's vectors in memory, 4 bytes x dim per clip.
Sources: see each function.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from balance.curation.balance import metaclip_chances
from balance.records import Float32, Float64, Int64, Labels, Vectors

CLIPS_PER_CLUSTER = 50  # of the lowest level, on average; each level above has CLUSTERS_PER_CLUSTER times fewer
CLUSTERS_PER_CLUSTER = 10
MOST_CLUSTERS = 2048
ROWS_PER_CLUSTER = 32  # sampled for Lloyd's steps; all clips are assigned at the end
LLOYD_STEPS = 8
RESAMPLED = 8  # clips nearest to each centroid that the centroids above are made of (Vo et al.)
BLOCK_ROWS = 8192
ROUNDS = 2048  # of k-center greedy: more centres than that are taken several a round
Rule: TypeAlias = Callable[["Pool", int, np.random.Generator], Int64]


class Pool:
    """vectors: of the clips that may be chosen, (P, dim); labels: their label sets. clusters: levels, made once."""

    def __init__(self, vectors: Vectors, labels: Labels, rng_seed: int) -> None:
        self.vectors, self.labels, self._seed = vectors, labels, rng_seed
        self._unit: Tensor | None = None
        self._levels: list[Level] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unit(self) -> Tensor:
        """The vectors at unit length, (P, dim) float32; a zero vector stays."""
        if self._unit is None:
            num, dim = self.vectors.shape
            out = torch.empty((num, dim))
            for start in range(0, num, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, num)
                rows = torch.from_numpy(self.vectors.read(start, stop))
                out[start:stop] = torch.nn.functional.normalize(rows, dim=1)
            self._unit = out
        return self._unit

    @property
    def levels(self) -> list[Level]:
        """Clusters of clips, clusters of clusters, …: at least two levels."""
        if self._levels is None:
            self._levels = hierarchy(self.unit, np.random.default_rng([self._seed, 20]))
        return self._levels


class Level:
    """One level of clusters. of: (n,) the cluster of each item of the level below; centres: (c, dim) unit length;
    similarity: (n,) cosine of each item to its centre."""

    def __init__(self, of: Int64, centres: Tensor, similarity: Float32) -> None:
        self.of, self.centres, self.similarity = of, centres, similarity

    def members(self) -> list[Int64]:
        """The items of each cluster, ascending."""
        order = np.argsort(self.of, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.of, minlength=len(self.centres)))[:-1])


def assign(rows: Tensor, centres: Tensor) -> tuple[Int64, Float32]:
    """The nearest centre of each unit vector, and the cosine to it."""
    of, best = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        values, where = (rows[start : start + BLOCK_ROWS] @ centres.T).max(dim=1)
        of[start : start + len(values)], best[start : start + len(values)] = where.numpy(), values.numpy()
    return of, best


def cluster(rows: Tensor, num: int, rng: np.random.Generator) -> Level:
    """Spherical k-means of unit vectors (n, dim): Lloyd's steps on a sample, then every row to its nearest centre.

    Starts from random rows; a centre without rows starts anew from one.
    """
    sample = rows[torch.from_numpy(rng.permutation(len(rows))[: num * ROWS_PER_CLUSTER])]
    centres = sample[torch.from_numpy(rng.permutation(len(sample))[:num])].clone()
    for _ in range(LLOYD_STEPS):
        of = torch.from_numpy(assign(sample, centres)[0])
        sums = torch.zeros_like(centres).index_add_(0, of, sample)
        empty = torch.bincount(of, minlength=num) == 0
        if empty.any():
            sums[empty] = sample[torch.from_numpy(rng.integers(0, len(sample), int(empty.sum())))]
        centres = torch.nn.functional.normalize(sums, dim=1)
    return _level(rows, centres)


def _level(rows: Tensor, centres: Tensor) -> Level:
    of, similarity = assign(rows, centres)
    return Level(of, centres, similarity)


def hierarchy(rows: Tensor, rng: np.random.Generator) -> list[Level]:
    """Levels of clusters, lowest first (Vo et al. 2024, "Automatic data curation for self-supervised learning: a
    clustering-based approach", algorithm 1): each level clusters the centroids of the one below, which are then made
    anew from the clips nearest to them, so that dense regions do not pull all centroids."""
    num = max(2, min(MOST_CLUSTERS, len(rows) // CLIPS_PER_CLUSTER, len(rows)))
    levels = [cluster(rows, min(num, len(rows)), rng)]
    while len(levels) < 2 or len(levels[-1].centres) > CLUSTERS_PER_CLUSTER**2:
        below = levels[-1]
        above = cluster(below.centres, max(1, len(below.centres) // CLUSTERS_PER_CLUSTER), rng)
        for _ in range(2):  # resampled: each centroid is the mean of the items nearest to it
            nearest = [x[np.argsort(-above.similarity[x], kind="stable")[:RESAMPLED]] for x in above.members()]
            means = [
                below.centres[torch.from_numpy(x)].mean(0) if len(x) else centre
                for x, centre in zip(nearest, above.centres, strict=True)
            ]
            centres = torch.nn.functional.normalize(torch.stack(means), dim=1)
            above = _level(below.centres, centres)
        levels.append(above)
    return levels


def share_out(sizes: Int64, size: int) -> Int64:
    """How many of each cluster, as evenly as its size allows: min(n, sizes) with the n whose sum is `size`, the rest of
    less than a whole round to the first clusters that have more (Vo et al., section 3.3)."""
    size = min(size, int(sizes.sum()))
    ordered = np.sort(sizes)
    before = np.concatenate([[0], np.cumsum(ordered)[:-1]])
    full = before + ordered * np.arange(len(sizes), 0, -1)  # taken when everyone gives as many as the i-th has
    at = int(np.searchsorted(full, size, side="right"))
    if at == len(sizes):
        return sizes.copy()
    level = (size - int(before[at])) // (len(sizes) - at)
    out = np.minimum(sizes, level)
    more = np.flatnonzero(sizes > level)[: size - int(out.sum())]
    out[more] += 1
    return out


def hierarchical_kmeans(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """Balanced over clusters of clusters, then over clusters, at random within (Vo et al. 2024, balanced sampling)."""
    levels = pool.levels
    members = [level.members() for level in levels]
    counts = [np.bincount(levels[0].of, minlength=len(levels[0].centres))]  # clips below each cluster
    for level in levels[1:]:
        counts.append(np.bincount(level.of, weights=counts[-1], minlength=len(level.centres)).astype(np.int64))
    wanted = share_out(counts[-1], size)
    for at in range(len(levels) - 1, 0, -1):
        below = np.zeros(len(levels[at - 1].centres), dtype=np.int64)
        for own, share in zip(members[at], wanted, strict=True):
            below[own] = share_out(counts[at - 1][own], int(share)) if share else 0
        wanted = below
    chosen = [rng.permutation(own)[:share] for own, share in zip(members[0], wanted, strict=True)]
    return np.sort(np.concatenate(chosen))


def class_balanced(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """Labels in turn: always one more clip of the label that has fewest so far, its clips in random order (the aim of
    AudioSet-500K, Nagrani et al. 2021, "Attention bottlenecks for multimodal fusion"). Clips without labels come last.
    """
    shuffled = rng.permutation(len(pool))
    labels = pool.labels.take(shuffled)
    by_label = labels.matrix().tocsc()
    at, ends = by_label.indptr[:-1].tolist(), by_label.indptr[1:].tolist()
    have = [0] * len(at)
    queue = [(0, label) for label in rng.permutation(len(at)).tolist()]
    heapq.heapify(queue)
    taken = np.zeros(len(pool), dtype=bool)
    num, offsets, codes = 0, labels.offsets, labels.codes
    while queue and num < size:
        count, label = heapq.heappop(queue)
        if count < have[label]:  # it has got clips through other labels meanwhile
            heapq.heappush(queue, (have[label], label))
            continue
        while at[label] < ends[label] and taken[by_label.indices[at[label]]]:
            at[label] += 1
        if at[label] == ends[label]:
            continue
        clip = int(by_label.indices[at[label]])
        taken[clip] = True
        num += 1
        for other in codes[offsets[clip] : offsets[clip + 1]].tolist():
            have[other] += 1
        heapq.heappush(queue, (have[label], label))
    rest = np.flatnonzero(~taken)[: size - num]
    return np.sort(shuffled[np.concatenate([np.flatnonzero(taken), rest])])


def metaclip(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """MetaCLIP's balancing (Xu et al. 2024, "Demystifying CLIP data") with the cap t at which it is expected to keep
    `size` clips; drawn one after another by those chances, so that exactly `size` stay."""
    low, high = 1, max(1, int(pool.labels.counts().max(initial=1)))
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if metaclip_chances(pool.labels, middle).sum() < size else (low, middle)
    chances = metaclip_chances(pool.labels, low)
    turn = np.where(chances > 0, rng.random(len(pool)) / np.maximum(chances, 1e-12), np.inf)
    return np.sort(np.argsort(turn, kind="stable")[:size])


def k_center(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """The greedy cover (Sener and Savarese 2018, "A core-set approach"): always the clip that is farthest from all that
    were chosen, from a random one on. Above ROUNDS clips several are taken a round, which are then not compared with
    each other."""
    rows = pool.unit
    nearest = torch.full((len(rows),), -2.0)  # cosine to the nearest chosen clip
    chosen = torch.from_numpy(rng.integers(0, len(rows), 1))
    out = [chosen]
    per_round = -(-size // ROUNDS)
    while (num := sum(len(x) for x in out)) < size:
        for start in range(0, len(rows), BLOCK_ROWS):
            at = slice(start, start + BLOCK_ROWS)
            nearest[at] = torch.maximum(nearest[at], (rows[at] @ rows[chosen].T).amax(dim=1))
        nearest[chosen] = torch.inf
        chosen = torch.topk(nearest, min(per_round, size - num), largest=False).indices
        out.append(chosen)
    return np.sort(torch.cat(out)[:size].numpy())


def easy_prototypes(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """The clips nearest to their cluster's centre (Sorscher et al. 2022, "Beyond neural scaling laws": what to keep
    where data are few)."""
    return _by_prototype(pool, -pool.levels[0].similarity, size, rng)


def hard_prototypes(pool: Pool, size: int, rng: np.random.Generator) -> Int64:
    """The clips farthest from their cluster's centre (Sorscher et al. 2022: what to keep where data are many)."""
    return _by_prototype(pool, pool.levels[0].similarity, size, rng)


def _by_prototype(pool: Pool, order: Float32 | Float64, size: int, rng: np.random.Generator) -> Int64:
    """The first `size` clips by `order`, ties at random."""
    return np.sort(np.lexsort((rng.random(len(pool)), order))[:size])


RULES: dict[str, Rule] = {
    "hierarchical_kmeans": hierarchical_kmeans,
    "class_balanced": class_balanced,
    "metaclip": metaclip,
    "k_center": k_center,
    "easy_prototypes": easy_prototypes,
    "hard_prototypes": hard_prototypes,
}

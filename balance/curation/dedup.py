"""Copies: neighbours that copy a seed or another neighbour, by equal samples or by sound.

In: seeds and the union's clips with their facts, pairs that sound alike. Out: `Dropped`, who goes because of whom.
Copies are taken greedily, one decision per clip in (lowest rank, pool order), because connected components percolate: a
chain of slight resemblances would tie thousands of clips together. Only clips that have a copy at all enter that Python
loop.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from balance.errors import UserError
from balance.records import Bool, Float64, Int32, Int64, Split


class FindCopies(Protocol):
    """Finds clips that sound alike: `acoustic.AcousticCopies`, or a test's own."""

    def between(self, queries: Split, base: Split, base_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Pairs (row of queries.index, row of base.index, correlation) with base rows among `base_rows`."""
        ...

    def within(self, seeds: Split, pool: Split, pool_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Pairs (node, node, correlation) among all embedded seeds (nodes 0 … S − 1, in the order of
        `seeds.embedded`) and `pool_rows` (nodes S …)."""
        ...


def need_sound(first: Split, second: Split, given: str, instead: str) -> None:
    """UserError where a step that compares sound meets the user's own vectors without an index that names files."""
    if first.facts is None or second.facts is None:
        raise UserError(
            f"{given} compares sound, and dataset.format=embeddings has none where no index (X.csv) beside the vectors "
            f"names the files: put it there, or type {instead}"
        )


def sound_codes(first: Split, second: Split, second_rows: Int64) -> Int64:
    """One number per clip, equal where the decoded samples are (by pcm_sha1); −1 for clips of only zeros.

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

    at: (d,) int64 places in the union; because_of: (d,) int64 node of the clip that stays (seeds 0 … S − 1 in order,
    then the union); exact: (d,) equal samples; value: (d,) float64 correlation, 1 where exact.
    """

    at: Int64
    because_of: Int64
    exact: Bool
    value: Float64

    def take(self, rows: Int64) -> Dropped:
        return Dropped(self.at[rows], self.because_of[rows], self.exact[rows], self.value[rows])


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
    similar = _by_node(acoustic)
    often = np.bincount(codes[codes >= 0], minlength=1) > 1
    involved = (codes >= 0) & often[np.maximum(codes, 0)]
    involved[list(similar)] = True
    keepers: dict[int, int] = {}  # samples -> the node that stays
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
    return _in_pool_order(out)


def _by_node(acoustic: tuple[Int64, Int64, Float64] | None) -> dict[int, list[tuple[float, int]]]:
    """Node -> (−correlation, node) of all that sound like it."""
    similar: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for a, b, value in zip(*(column.tolist() for column in acoustic or ()), strict=True):
        similar[a].append((-value, b))
        similar[b].append((-value, a))
    return similar


def _in_pool_order(out: list[tuple[int, int, bool, float]]) -> Dropped:
    out.sort()
    return Dropped(
        np.array([x[0] for x in out], dtype=np.int64),
        np.array([x[1] for x in out], dtype=np.int64),
        np.array([x[2] for x in out], dtype=np.bool_),
        np.array([x[3] for x in out], dtype=np.float64),
    )


def largest_group(dropped: Dropped) -> tuple[int, int]:
    """(clips, node that stays) of the largest group: a kept clip and what was dropped for it; (0, 0) if none."""
    counts = Counter(dropped.because_of.tolist())
    if not counts:
        return 0, 0
    node = min(counts, key=lambda n: (-counts[n], n))
    return counts[node] + 1, node

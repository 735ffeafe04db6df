"""The contract's similarity, computed: exact cosines of pairs, keys that sort them, and the best K so far.

In: float32 vectors widened to float64, and which pairs. Out: float32 cosines that do not depend on library, device
or order, and (similarity, position) packed in one int64 whose ascending order is the contract's order. The sums of
float64 products are off by at most dim · 2⁻⁵³ of |a||b| (products of two float32 are exact in float64; Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5), so wherever the value is further than that from a
midpoint of two float32 numbers, every order rounds alike; the few others are redone with `math.fsum`. The price: the
redone pairs cost 40 µs each in Python, about one in ten thousand, but all pairs with |cosine| < 1e-5.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from balance.records import Float32, Float64, Int32, Int64

MIDPOINT_WINDOW = 1e-12
EMPTY = np.iinfo(np.int64).max  # a key that sorts behind every pair
_TABLE_BYTES = 1 << 25
_MOST_ROOM = 1 << 11  # new keys per seed: for a larger k a second table of that size would cost more than more merges


def hear_sparse_warning() -> None:
    """Let torch say here, unheard, what it says once per process: that sparse tensors are "in beta". For `cosines` on a
    CPU: call it before threads start, since Python's filter of warnings is one for all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


def lengths_of(rows64: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths of float64 rows (n, dim) -> (n,) float64; not finite where a row is not."""
    lengths: torch.Tensor = torch.linalg.vector_norm(rows64, dim=1)
    return lengths


def cosines(
    seeds64: torch.Tensor,
    seed_lengths: torch.Tensor,
    rows64: torch.Tensor,
    row_lengths: torch.Tensor,
    seed_at: torch.Tensor,
    row_at: torch.Tensor,
    gather_pairs: int,
) -> torch.Tensor:
    """The contract's similarity of pairs -> (pairs,) float32; 0 with a zero vector; never −0.

    seeds64 (S, dim), rows64 (n, dim): float64 holding float32 values; lengths: their `lengths_of`; seed_at, ascending,
    and row_at: (pairs,) int64; gather_pairs: how many pairs' rows a GPU gathers at once.
    """
    lengths = row_lengths[row_at].mul_(seed_lengths[seed_at])
    values = _dots(seeds64, rows64, seed_at, row_at, gather_pairs).div_(lengths)
    values[lengths == 0] = 0.0
    window = max(MIDPOINT_WINDOW, seeds64.shape[1] * 2.0**-51)
    rounded = values.float()
    unsure = (values - window).float() != (values + window).float()
    redo = unsure.logical_and_(lengths > 0).nonzero().squeeze(1)
    if len(redo):
        rounded[redo] = _redone(seeds64, rows64, seed_at[redo], row_at[redo]).to(rounded.device)
    return rounded.add_(0.0)  # −0 + 0 = 0


def _dots(
    seeds64: torch.Tensor, rows64: torch.Tensor, seed_at: torch.Tensor, row_at: torch.Tensor, gather_pairs: int
) -> torch.Tensor:
    if seeds64.device.type == "cpu":
        # A product sampled at the pairs reads both sides where they lie: ten times faster than gathering them.
        starts = torch.searchsorted(seed_at, torch.arange(len(seeds64) + 1))
        zeros, size = torch.zeros(len(seed_at), dtype=torch.float64), (len(seeds64), len(rows64))
        pairs = torch.sparse_csr_tensor(starts, row_at, zeros, size=size, check_invariants=False)
        dots: torch.Tensor = torch.sparse.sampled_addmm(pairs, seeds64, rows64.t(), beta=0.0).values()
        return dots
    dots = torch.empty(len(seed_at), dtype=torch.float64, device=seeds64.device)
    for i in range(0, len(seed_at), gather_pairs):
        these = slice(i, i + gather_pairs)
        torch.linalg.vecdot(seeds64[seed_at[these]], rows64[row_at[these]], out=dots[these])
    return dots


def _redone(seeds64: torch.Tensor, rows64: torch.Tensor, seed_at: torch.Tensor, row_at: torch.Tensor) -> torch.Tensor:
    """dot / (sqrt(aa) · sqrt(bb)) with the three sums by `math.fsum`, rounded to float32."""
    values = np.zeros(len(seed_at))
    for start in range(0, len(seed_at), 4096):
        these = slice(start, start + 4096)
        seeds, rows = seeds64[seed_at[these]].cpu().numpy(), rows64[row_at[these]].cpu().numpy()
        products = seeds * rows
        for i in np.any(products != 0, axis=1).nonzero()[0]:  # others are orthogonal by their zeros: no sum
            lengths = math.sqrt(_exact_square(seeds[i])) * math.sqrt(_exact_square(rows[i]))
            values[start + i] = math.fsum(products[i].tolist()) / lengths
    return torch.from_numpy(values.astype(np.float32))


def _exact_square(row: Float64) -> float:
    return math.fsum((row * row).tolist())


def to_keys(similarities: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(n,) float32 without −0 and (n,) int64 < 2³¹ -> (n,) int64, ascending = (similarity descending, position)."""
    bits = similarities.view(torch.int32)
    ascending = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # IEEE 754: the order of the signed integers
    return (~ascending).long() << 32 | positions


def similarities_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 similarities packed in keys (any shape)."""
    ascending = ~(keys >> 32).int()
    return torch.where(ascending >= 0, ascending, ascending ^ 0x7FFFFFFF).view(torch.float32)


def from_keys(keys: Int64) -> tuple[Int32, Float32]:
    """Keys (S, k) -> positions (S, k) int32, similarities (S, k) float32."""
    positions, similarities = np.empty(keys.shape, np.int32), np.empty(keys.shape, np.float32)
    for rows in _few_rows(*keys.shape):
        positions[rows] = keys[rows] & 0x7FFFFFFF
        similarities[rows] = similarities_of(torch.from_numpy(keys[rows])).numpy()
    return positions, similarities


def _few_rows(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of a table of int64 of at most _TABLE_BYTES, for what needs a copy."""
    step = max(1, _TABLE_BYTES // (8 * num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


class Running:
    """The best k keys of each seed so far, and room for as many new ones, from 64 to 2,048: 8 bytes each.

    `add` and `merge` may be called from several threads.
    """

    def __init__(self, num_seeds: int, k: int, device: torch.device) -> None:
        self._k = k
        self._room = min(max(k, 64), _MOST_ROOM)
        self._table = torch.full((num_seeds, k + self._room), EMPTY, dtype=torch.int64, device=device)
        self._lock = threading.Lock()
        self._new = torch.zeros(num_seeds, dtype=torch.int64, device=device)
        self.lowest = torch.full((num_seeds,), -torch.inf, dtype=torch.float32, device=device)

    @property
    def keys(self) -> torch.Tensor:
        return self._table[:, : self._k]

    def add(self, seeds: slice, seed_at: torch.Tensor, keys: torch.Tensor) -> None:
        """New keys (pairs,); seed_at (pairs,), ascending, counts from the first of `seeds`."""
        counts = torch.bincount(seed_at, minlength=seeds.stop - seeds.start)
        with self._lock:
            table, new = self._table[seeds].view(-1), self._new[seeds]
            firsts = torch.arange(len(counts), device=keys.device) * self._table.shape[1] + self._k
            while len(keys):
                self._merge((new + counts > self._room).nonzero().squeeze(1) + seeds.start)
                most = counts.clamp(max=self._room)
                rank = torch.arange(len(keys), device=keys.device)
                rank -= (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=len(keys))
                at = (firsts + new).repeat_interleave(counts, output_size=len(keys)).add_(rank)
                fits = rank < self._room
                if bool(fits.all()):
                    table[at] = keys
                    new += counts
                    return
                table[at[fits]] = keys[fits]
                new += most
                keys, counts = keys[~fits], counts - most

    def restore(self, keys: torch.Tensor) -> None:
        """Starts from these keys (S, k)."""
        self.keys.copy_(keys)
        self._merge(torch.arange(len(keys), device=self._table.device))

    def merge(self) -> None:
        """The new keys go into the best k."""
        with self._lock:
            self._merge((self._new > 0).nonzero().squeeze(1))

    def _merge(self, every_row: torch.Tensor) -> None:
        for some in _few_rows(len(every_row), self._table.shape[1]):
            rows = every_row[some]
            table = self._table[rows]
            if table.device.type == "cpu":
                table.numpy().sort(axis=1)  # ten times torch's speed
            else:
                table = table.sort(dim=1).values
            table[:, self._k :] = EMPTY
            self._table[rows] = table
            self._new[rows] = 0
            last = table[:, self._k - 1]
            self.lowest[rows] = torch.where(last == EMPTY, -torch.inf, similarities_of(last))

    def forget(self, start: int) -> None:
        """Drops the keys of positions from `start` on. They may have pushed out others, but each of them comes again
        and pushes those out again."""
        self._table[(self._table & 0x7FFFFFFF) >= start] = EMPTY
        self._merge(torch.arange(len(self._table), device=self._table.device))

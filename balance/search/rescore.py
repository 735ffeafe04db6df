"""The contract's similarity, computed: exact cosines of pairs, and keys that sort them.

In: float32 vectors widened to float64, and which pairs. Out: float32 cosines that do not depend on library, device
or order, and (similarity, position) packed in one int64 whose ascending order is the contract's order. The sums of
float64 products are off by at most dim · 2⁻⁵³ of |a||b| (products of two float32 are exact in float64; Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5), so wherever the value is further than that from a
midpoint of two float32 numbers, every order rounds alike; of the others, those that may be among the best are redone
with sums that are rounded once (exact_sums.py). The price: about one pair in ten thousand is computed twice, but all
pairs with |cosine| < 1e-5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from balance.records import Float32, Int32
from balance.search.exact_sums import rounded_sums

MIDPOINT_WINDOW = 1e-12
EMPTY = np.iinfo(np.int64).max  # a key that sorts behind every pair
TABLE_BYTES = 1 << 25  # of a table of keys, for what needs a copy
_EXACT_PAIRS_CPU = 1 << 6  # redone at once: 64 x 3 x 512 float64 are 0.8 MB
_EXACT_PAIRS_GPU = 1 << 12


def hear_sparse_warning() -> None:
    """Let torch say here, unheard, what it says once per process: that sparse tensors are "in beta". For `cosines`:
    call it before threads start, since Python's filter of warnings is one for all threads."""
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
    floors: torch.Tensor,
) -> torch.Tensor:
    """The contract's similarity of pairs -> (pairs,) float32; 0 with a zero vector; never −0.

    seeds64 (S, dim), rows64 (n, dim): float64 holding float32 values; lengths: their `lengths_of`; seed_at, ascending,
    and row_at: (pairs,) int64; floors (S,) float32: a similarity that lies below its seed's decides nothing, so it may
    be the float32 number below the right one.
    """
    lengths = row_lengths[row_at].mul_(seed_lengths[seed_at])
    values = _dots(seeds64, rows64, seed_at, row_at).div_(lengths)
    window = max(MIDPOINT_WINDOW, seeds64.shape[1] * 2.0**-51)
    rounded, highest = (values - window).float(), (values + window).float()
    redo = (rounded != highest).nonzero().squeeze(1)
    if len(redo):
        redo = redo[(lengths[redo] > 0) & (highest[redo] >= floors[seed_at[redo]])]
    rounded.masked_fill_(lengths == 0, 0.0)
    step = _EXACT_PAIRS_CPU if redo.device.type == "cpu" else _EXACT_PAIRS_GPU
    for start in range(0, len(redo), step):
        some = redo[start : start + step]
        rounded[some] = exact_cosines(seeds64[seed_at[some]], rows64[row_at[some]]).float()
    return rounded.add_(0.0)  # −0 + 0 = 0


def _dots(seeds64: torch.Tensor, rows64: torch.Tensor, seed_at: torch.Tensor, row_at: torch.Tensor) -> torch.Tensor:
    """A product sampled at the pairs reads both sides where they lie: on a CPU ten times faster than gathering them,
    on a GPU (cuSPARSE) a seventh of the bytes."""
    starts = torch.searchsorted(seed_at, torch.arange(len(seeds64) + 1, device=seed_at.device))
    zeros, size = torch.zeros_like(seed_at, dtype=torch.float64), (len(seeds64), len(rows64))
    pairs = torch.sparse_csr_tensor(starts, row_at, zeros, size=size, check_invariants=False)
    dots: torch.Tensor = torch.sparse.sampled_addmm(pairs, seeds64, rows64.t(), beta=0.0).values()
    return dots


def exact_cosines(seeds64: torch.Tensor, rows64: torch.Tensor) -> torch.Tensor:
    """dot / (sqrt(aa) · sqrt(bb)) of each pair of rows (m, dim), none of them zero, with the three sums rounded once:
    (m,) float64. The products of two float32 numbers are exact in float64."""
    sums = rounded_sums(torch.cat([seeds64 * rows64, seeds64 * seeds64, rows64 * rows64]))
    dots, seed_squares, row_squares = sums.view(3, -1)
    values: torch.Tensor = dots / (seed_squares.sqrt() * row_squares.sqrt())
    return values


def to_keys(similarities: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(n,) float32 without −0 and (n,) int64 < 2³¹ -> (n,) int64, ascending = (similarity descending, position)."""
    bits = similarities.view(torch.int32)
    ascending = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # IEEE 754: the order of the signed integers
    return (~ascending).long() << 32 | positions


def similarities_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 similarities packed in keys (any shape)."""
    ascending = ~(keys >> 32).int()
    return torch.where(ascending >= 0, ascending, ascending ^ 0x7FFFFFFF).view(torch.float32)


def from_keys(keys: torch.Tensor) -> tuple[Int32, Float32]:
    """Keys (S, k) -> positions (S, k) int32, similarities (S, k) float32, both on the host; unpacked on the device."""
    positions, similarities = np.empty(keys.shape, np.int32), np.empty(keys.shape, np.float32)
    for rows in few_rows(*keys.shape) if keys.device.type == "cpu" else (slice(None),):
        positions[rows] = (keys[rows] & 0x7FFFFFFF).int().cpu().numpy()
        similarities[rows] = similarities_of(keys[rows]).cpu().numpy()
    return positions, similarities


def few_rows(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of a table of int64 of at most TABLE_BYTES, for what needs a copy."""
    step = max(1, TABLE_BYTES // (8 * num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, start + step)

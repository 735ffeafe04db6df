"""Sums of exact products, rounded once: what `math.fsum` gives, for many rows at a time and on any device.

In: rows of float64 numbers. Out: their sums, each correctly rounded to float64, on the rows' device. A tree of TwoSums
adds in double-double and knows how far it may be off, so it knows of each sum whether its rounding is sure; the few
that lie too near a midpoint of two float64 numbers go to `math.fsum`, on the host. The proof is docs/exact-search.md,
section 6. The price: eight operations per number, and one wait for a GPU to learn whether all sums are sure.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def rounded_sums(terms: torch.Tensor) -> torch.Tensor:
    """(m, n) float64 -> (m,) float64: each row's `math.fsum`. Rows must be finite."""
    sums, sure = double_double_sums(terms)
    if not bool(sure.all()):
        unsure = (~sure).nonzero().squeeze(1)
        exact = [math.fsum(row) for row in terms[unsure].cpu().tolist()]
        sums[unsure] = torch.from_numpy(np.array(exact)).to(sums.device)
    return sums


def double_double_sums(terms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, n) float64 -> sums (m,) float64, and which of them are sure to be the correctly rounded ones (m,) bool."""
    levels = max(1, (terms.shape[1] - 1).bit_length())
    slack = 16 * levels**2 * 2.0**-106 * terms.abs().sum(dim=1)
    high, low = terms, torch.zeros_like(terms)
    while high.shape[1] > 1:
        half = high.shape[1] // 2
        rest = slice(2 * half, None)  # none or one, which waits for the next level
        total, error = two_sum(high[:, :half], high[:, half : 2 * half])
        error += low[:, :half] + low[:, half : 2 * half]
        high, low = torch.cat([total, high[:, rest]], dim=1), torch.cat([error, low[:, rest]], dim=1)
    sums, left = two_sum(high[:, 0], low[:, 0])
    return sums, (sums + (left - slack) == sums) & (sums + (left + slack) == sums)


def two_sum(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fl(a + b) and what rounding took off it, exactly (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)

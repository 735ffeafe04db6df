"""Sums that are rounded once, beside `math.fsum`; and which pairs of the search are computed by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from balance.search import exact_sums, rescore
from tests.search_reference import midpoints
from tests.simulated_cuda import cuda

__all__ = ["cuda"]  # a fixture


def check(terms: torch.Tensor) -> torch.Tensor:
    """The sums are fsum's, those that are called sure without its help; returns which are sure."""
    wanted = [math.fsum(row) for row in terms.cpu().tolist()]
    sums, sure = exact_sums.double_double_sums(terms)
    right = [value for value, is_sure in zip(wanted, sure.tolist(), strict=True) if is_sure]
    assert sums[sure].tolist() == right
    assert exact_sums.rounded_sums(terms).tolist() == wanted
    return sure


@pytest.mark.parametrize("count", [1, 2, 3, 24, 511, 512])
def test_any_numbers(count: int, cuda: torch.device) -> None:
    """Numbers of very different sizes, sums that cancel to little or nothing, numbers near the ends of products of
    float32; all but few are sure."""
    rng = np.random.default_rng(count)
    for spread in (0, 8, 60):
        terms = rng.standard_normal((300, count)) * 2.0 ** rng.integers(-spread, spread + 1, (300, count))
        terms[100:200, 1::2] = -terms[100:200, ::2][:, : count // 2] * (1 + 2.0**-50)
        terms[200] = 0
        terms[201:210] *= 2.0**-200
        terms[210:220] *= 2.0**180
        sure = check(torch.from_numpy(terms).to(cuda))
        if count > 3:  # of two numbers a seventh lies exactly between
            assert sure[:100].float().mean() > 0.97
        assert bool(sure[200])


@pytest.mark.parametrize("beside", [0.0, 2.0**-150, -(2.0**-150), 2.0**-104, -(2.0**-104)])
def test_midpoints_of_float64_go_to_fsum(beside: float) -> None:
    """1 + i 2⁻⁵² + 2⁻⁵³ lies between two float64 numbers: to even, or to the side of what is beside it."""
    terms = torch.zeros(64, 40, dtype=torch.float64)
    for i, row in enumerate(terms):
        row[[i % 40, (i + 7) % 40, (i + 20) % 40]] = torch.tensor([1 + i * 2.0**-52, 2.0**-53, beside]).double()
    assert not check(terms).any()


def test_only_pairs_that_may_be_among_the_best_are_redone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair near a midpoint, but below its seed's floor, keeps the float32 number below; all others are exact."""
    rescore.hear_sparse_warning()
    seeds, pool = (torch.from_numpy(rows).double() for rows in midpoints())
    seed_at = torch.zeros(len(pool), dtype=torch.int64)
    row_at = torch.arange(len(pool))
    redone = []
    original = rescore.exact_cosines
    monkeypatch.setattr(rescore, "exact_cosines", lambda a, b: redone.append(len(a)) or original(a, b))

    def cosines(floor: float) -> np.ndarray:
        redone.clear()
        floors = torch.full((2,), floor)
        lengths = rescore.lengths_of(seeds), rescore.lengths_of(pool)
        return rescore.cosines(seeds, lengths[0], pool, lengths[1], seed_at, row_at, floors).numpy()

    exact, length = cosines(-torch.inf), math.sqrt(math.fsum((seeds[0] ** 2).tolist()))
    for value, row in zip(exact, pool, strict=True):
        square = math.fsum((row * row).tolist())
        assert value == np.float32(math.fsum((seeds[0] * row).tolist()) / (length * math.sqrt(square)))
    assert sum(redone) > 100
    floor = float(np.median(exact))
    some = cosines(floor)
    assert 0 < sum(redone) < len(pool)
    np.testing.assert_array_equal(some[exact >= floor], exact[exact >= floor])
    below = some[exact < floor]
    assert (below <= exact[exact < floor]).all()
    assert (np.nextafter(below, np.float32(1)) >= exact[exact < floor]).all()

"""What the search is compared with: the contract's rule pair by pair; vectors that crowd, and that lie on midpoints."""

from __future__ import annotations

import math

import numpy as np

from balance.records import Float32


def reference(seeds: Float32, pool: Float32, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The contract, pair by pair."""
    similarities = np.zeros((len(seeds), len(pool)), dtype=np.float32)
    squares = [math.fsum((row.astype(float) ** 2).tolist()) for row in pool]
    for i, seed in enumerate(seeds.astype(float)):
        square = math.fsum((seed**2).tolist())
        for j, row in enumerate(pool.astype(float)):
            if square and squares[j]:
                dot = math.fsum((seed * row).tolist())
                similarities[i, j] = np.float32(dot / (math.sqrt(square) * math.sqrt(squares[j])))
    order = np.argsort(-similarities.astype(float), axis=1, kind="stable")[:, :k]
    return order.astype(np.int32), np.take_along_axis(similarities, order, axis=1)


def crowded(count: int, dim: int, cosine: float, seed: int) -> Float32:
    """Vectors whose mean cosine is about `cosine`."""
    rng = np.random.default_rng(seed)
    residuals = rng.standard_normal((count, dim)) / math.sqrt(dim)
    vectors = math.sqrt(cosine) / math.sqrt(dim) + math.sqrt(1 - cosine) * residuals
    return (vectors * rng.uniform(0.1, 10, (count, 1))).astype(np.float32)


def midpoints() -> tuple[Float32, Float32]:
    """Seeds and a pool whose cosines lie exactly between two float32 numbers, or less than 1e-12 beside."""
    dim = 24
    rows = [_midpoint_row(2**24 + 2 * i + 1, dim) for i in range(0, 400, 3)]
    pool = np.array(rows, dtype=np.float32)
    assert (pool.astype(float) == np.array(rows)).all()
    beside = pool.copy()
    beside[:, -1] = np.random.default_rng(0).integers(1, 40, len(pool))
    seeds = np.zeros((2, dim), dtype=np.float32)
    seeds[:, :4] = 1
    seeds[1, 4:] = 1e-6
    return seeds, np.random.default_rng(1).permutation(np.concatenate([pool, beside]))


def _midpoint_row(numerator: int, dim: int) -> list[float]:
    """A vector of length 2²⁴ whose first four numbers sum to `numerator`: with (1, 1, 1, 1, 0 …) its cosine is
    numerator / 2²⁵, for an odd numerator from 2²⁴ on exactly between two float32 numbers."""
    quarter = numerator // 4
    row = [quarter, quarter, quarter, numerator - 3 * quarter]
    rest = 2**48 - sum(x * x for x in row)
    while rest:
        row.append(math.isqrt(rest))
        rest -= row[-1] ** 2
    return [float(x) for x in row] + [0.0] * (dim - len(row))

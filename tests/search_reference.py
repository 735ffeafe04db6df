"""What the search is compared with: the contract's rule pair by pair, and vectors that crowd."""

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

"""The probe's feature space and the rows that one fit reads: embeddings -> standardised float32 blocks.

Vectors are L2-normalised, then the pool's mean is subtracted and its standard deviation divided out: the same two
vectors for every arm, so that arms differ by their rows alone. A training set that fits `memory_bytes` is standardised
once and kept; a larger one is read anew in every pass, so the whole pool needs no memory. The two give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from balance.records import Bool, Float32, Float64, Int64, Vectors

BLOCK_ROWS = 4096  # residuals of 4,096 x 1,054 columns stay in cache; 2,048 and 8,192 are 5 % slower


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """mean, scale: (dim,) float32 of the normalised pool."""

    mean: Float32
    scale: Float32

    @staticmethod
    def of(pool: Vectors) -> Space:
        """Moments of all rows of `pool`, in float64, one pass. A dimension that never varies keeps scale 1."""
        num, dim = pool.shape
        total, squares = np.zeros(dim), np.zeros(dim)
        shift: Float64 = np.zeros(dim)
        for start in range(0, num, BLOCK_ROWS):
            rows = _unit(pool.read(start, min(start + BLOCK_ROWS, num))).astype(np.float64)
            if start == 0:
                shift = rows.mean(axis=0)  # crowded vectors: without it the squares would cancel
            rows -= shift
            total += rows.sum(axis=0)
            squares += (rows**2).sum(axis=0)
        mean = total / num
        deviation = np.sqrt(np.maximum(squares / num - mean**2, 0.0))
        scale = np.where(deviation > 1e-12, deviation, 1.0)
        return Space((mean + shift).astype(np.float32), scale.astype(np.float32))

    def standardise(self, rows: Float32) -> Float32:
        """(n, dim) stored vectors → (n, dim) float32; zero vectors count as the origin."""
        return np.asarray((_unit(rows) - self.mean) / self.scale, dtype=np.float32)


def _unit(rows: Float32) -> Float32:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return np.asarray(rows / np.where(norms > 0, norms, 1.0)[:, None].astype(np.float32), dtype=np.float32)


class TrainingSet:
    """`logistic.Examples`: all seeds, then chosen pool rows.

    seeds: (S, dim) float32 standardised; rows: (m,) int64 ascending rows of `pool`; labels: CSR (S + m, L); weights:
    (S + m,) float32; held_out: (S + m, num_folds) bool.
    """

    def __init__(
        self,
        seeds: Float32,
        pool: Vectors,
        rows: Int64,
        space: Space,
        *,
        labels: Any,
        weights: Float32,
        held_out: Bool,
        device: torch.device,
        memory_bytes: int,
    ) -> None:
        self._seeds, self._pool, self._rows, self._space, self._device = seeds, pool, rows, space, device
        self._labels, self._weights, self._held_out = labels, weights, held_out
        self._kept: Tensor | None = None
        if self.shape[0] * self.shape[1] * 4 <= memory_bytes:
            kept = torch.empty(self.shape, dtype=torch.float32, device=device)
            for start, block in self.blocks():
                kept[start : start + len(block)] = block
            self._kept = kept

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._seeds) + len(self._rows), self._seeds.shape[1]

    @property
    def labels(self) -> Any:
        return self._labels

    @property
    def weights(self) -> Float32:
        return self._weights

    @property
    def held_out(self) -> Bool:
        return self._held_out

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        num = self.shape[0]
        for start in range(0, num, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, num)
            if self._kept is not None:
                yield start, self._kept[start:stop]
            else:
                yield start, torch.from_numpy(self._read(start, stop)).to(self._device)

    def sample(self, rows: Int64) -> Tensor:
        if self._kept is not None:
            return self._kept[torch.as_tensor(rows, device=self._device)]
        num_seeds = len(self._seeds)
        in_pool = rows[rows >= num_seeds] - num_seeds
        head = self._seeds[rows[rows < num_seeds]]
        tail = self._space.standardise(self._pool.take(self._rows[in_pool]))
        return torch.from_numpy(np.concatenate([head, tail])).to(self._device)

    def _read(self, start: int, stop: int) -> Float32:
        num_seeds = len(self._seeds)
        parts = [self._seeds[start : min(stop, num_seeds)]] if start < num_seeds else []
        if stop > num_seeds:
            rows = self._rows[max(start - num_seeds, 0) : stop - num_seeds]
            first, last = int(rows[0]), int(rows[-1]) + 1
            whole = last - first == len(rows)
            parts.append(self._space.standardise(self._pool.read(first, last) if whole else self._pool.take(rows)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

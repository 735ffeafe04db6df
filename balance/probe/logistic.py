"""Many L2-penalised logistic regressions at once: one column a (label, fold), one pass over the rows a step.

In: standardised float32 blocks and sparse labels (`Examples`); out: `Fit`, weights and biases of every column. Each
column minimises mean BCE + λ‖w‖²/2 over its own rows, bias unpenalised, so the columns share only the two matrix
products of a step. Chosen over SGD because the answer then has no learning rate and no seed: preconditioned L-BFGS
whose first step is the exact Newton step (at W = 0 every p(1 − p) is the same number, so one eigendecomposition of
the covariance serves all labels and all λ). Price: the history, 2 x 8 times the size of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from balance.records import Bool, Float32, Float64, Int64

HISTORY = 8  # pairs kept; 4 needs 20 % more steps, 16 saves none (22,160 + 200,000 rows)
COVARIANCE_ROWS = 65_536  # evenly spaced rows for the preconditioner: it steers the steps, not the answer
ENOUGH_DECREASE = 0.9  # a step is taken unless the slope at its end is above this share of the descent at its start


class Examples(Protocol):
    """n training rows: standardised features in blocks, and what goes with them."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)"""
        ...

    @property
    def labels(self) -> Any:
        """scipy.sparse CSR (n, num_labels) of ones."""
        ...

    @property
    def weights(self) -> Float32:
        """(n,) float32 weight of each row in the mean."""
        ...

    @property
    def held_out(self) -> Bool:
        """(n, num_folds) bool: row i is left out of training in fold f."""
        ...

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, (b, dim) float32 on the device of the fit) in row order."""
        ...

    def sample(self, rows: Int64) -> Tensor:
        """These rows, (len(rows), dim) float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What each column learns: `labels[c]` on all rows but those held out in fold `folds[c]` (−1: on all rows).

    labels, folds: (C,) int64; folds ascending, so that the columns of a fold are one slice.
    """

    labels: Int64
    folds: Int64

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.folds)
        assert (np.diff(self.folds) >= 0).all()

    def __len__(self) -> int:
        return len(self.labels)

    def slices(self) -> list[tuple[int, slice]]:
        """(fold, its columns), in order."""
        folds, first = np.unique(self.folds, return_index=True)
        ends = np.append(first, len(self.folds))[1:]
        return [(int(f), slice(int(a), int(b))) for f, a, b in zip(folds, first, ends, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """weight: (dim, C) float32; bias: (C,) float32; trained: (C,) bool, false where a label has no positive or no
    negative training row (its score is then the constant bias); slope: (C,) float32, the predicted decrease of the
    loss that is left, as a share of the loss of a constant score."""

    weight: Tensor
    bias: Tensor
    trained: Bool
    slope: Float32

    def scores(self, features: Tensor) -> Tensor:
        """Logits (b, C) of standardised features (b, dim)."""
        return torch.addmm(self.bias, features, self.weight)


class Solver:
    """The fit of `columns` on `examples`, step by step; λ may change between steps (`penalise`), history kept.

    One `step` is one pass over the rows. With a changed λ the gradient and the history change by known terms
    (g + Δλ w, y + Δλ s), so that a path of λ costs no extra pass.
    """

    def __init__(self, examples: Examples, columns: Columns, penalty: float, *, device: torch.device) -> None:
        self.examples, self.columns, self.device = examples, columns, device
        self.penalty = penalty
        num_rows, dim = examples.shape
        self._slices = columns.slices()
        self._targets = examples.labels.tocsc()[:, columns.labels].tocsr()
        mass, positive = self._mass()
        rate = (positive + 0.5) / (mass + 1.0)  # a label without positives keeps a finite, constant score
        self.trained: Bool = (positive > 0) & (positive < mass)
        variance = rate * (1 - rate)
        self._null = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))  # loss of a constant score
        self._variance = self._column(variance)
        self._inverse_mass = self._column(1.0 / np.maximum(mass, 1e-12))
        self._active = self._column(self.trained.astype(np.float64))
        self._centre, self._eigenvalues, self._eigenvectors = self._covariance(num_rows)
        self._theta = torch.zeros((dim + 1, len(columns)), device=device)  # last row: bias at the centre
        self._theta[-1] = self._column(np.log(rate) - np.log1p(-rate))
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1 / (s·y) or 0
        self._gamma = torch.ones(len(columns), device=device)
        self._gradient = self._evaluate(self._theta)
        self._direction: Tensor | None = None
        self._length = torch.ones(len(columns), device=device)
        self.num_passes = 1

    def _column(self, values: Float64) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self.device)

    def _mass(self) -> tuple[Float64, Float64]:
        """Summed row weights, and those of the positive rows, of each column: two (C,) float64."""
        weights = self.examples.weights.astype(np.float64)
        mass, positive = np.empty(len(self.columns)), np.empty(len(self.columns))
        for fold, at in self._slices:
            kept = weights if fold < 0 else weights * ~self.examples.held_out[:, fold]
            mass[at] = kept.sum()
            positive[at] = self._targets[:, at].T @ kept
        return mass, positive

    def _covariance(self, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = np.unique(np.linspace(0, num_rows - 1, min(num_rows, COVARIANCE_ROWS)).astype(np.int64))
        sample = self.examples.sample(rows).to(self.device)
        weights = torch.as_tensor(self.examples.weights[rows], device=self.device)
        weights = (weights / weights.sum())[:, None]
        centre = (sample * weights).sum(0)
        sample = (sample - centre) * weights.sqrt()
        values, vectors = torch.linalg.eigh(sample.T @ sample)
        return centre, values.clamp_min_(0.0), vectors

    def _evaluate(self, theta: Tensor) -> Tensor:
        """The gradient (dim + 1, C) of every column's loss at theta; one pass over the rows."""
        weight, bias = theta[:-1].contiguous(), theta[-1] - self._centre @ theta[:-1]
        total = torch.zeros_like(weight, dtype=torch.float32)
        residual_sum = torch.zeros(len(bias), device=self.device, dtype=torch.float64)
        indptr, indices = self._targets.indptr, self._targets.indices
        row_weights = torch.as_tensor(self.examples.weights)
        equal = bool((row_weights == row_weights[0]).all())
        for start, features in self.examples.blocks():
            stop = start + len(features)
            residual = torch.addmm(bias, features, weight).sigmoid_()  # (b, C)
            rows = np.repeat(np.arange(stop - start), np.diff(indptr[start : stop + 1]))
            flat = rows * len(bias) + indices[indptr[start] : indptr[stop]]
            ones = torch.as_tensor(flat, device=self.device)
            residual.view(-1)[ones] -= 1.0
            if not equal:
                residual *= row_weights[start:stop, None].to(self.device)
            for fold, at in self._slices:
                if fold >= 0 and (out := self.examples.held_out[start:stop, fold]).any():
                    residual[torch.as_tensor(np.flatnonzero(out), device=self.device), at] = 0.0
            residual_sum += residual.sum(0)  # float32 within a block, float64 across them
            total.addmm_(features.T, residual)
        if equal:
            total *= row_weights[0]
            residual_sum *= float(row_weights[0])
        summed = residual_sum.float()
        gradient = torch.empty_like(theta)
        gradient[:-1] = (total - self._centre[:, None] * summed) * self._inverse_mass + self.penalty * theta[:-1]
        gradient[-1] = summed * self._inverse_mass
        return gradient * self._active

    def _precondition(self, gradient: Tensor) -> Tensor:
        """(p(1 − p) Σ + λ)⁻¹ applied to each column: the inverse Hessian at W = 0."""
        turned = self._eigenvectors.T @ gradient[:-1]
        turned /= self._eigenvalues[:, None] * self._variance + self.penalty
        out = torch.empty_like(gradient)
        out[:-1] = self._eigenvectors @ turned
        out[-1] = gradient[-1] / self._variance
        return out

    def _descent(self) -> Tensor:
        """The L-BFGS direction of every column (two-loop recursion; Nocedal and Wright, algorithm 7.4)."""
        q = self._gradient.clone()
        alphas = []
        for s, y, rho in reversed(self._pairs):
            alpha = rho * (s * q).sum(0)
            q -= alpha * y
            alphas.append(alpha)
        q = self._precondition(q) * self._gamma
        for (s, y, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q += (alpha - rho * (y * q).sum(0)) * s
        return -q

    def fork(self) -> Solver:
        """Another solver that stands where this one stands; the two then go their own ways."""
        return copy.copy(self)  # no step or change of λ writes into a tensor that is already there

    def penalise(self, penalty: float) -> None:
        """Go on with another λ from where the columns are."""
        change = penalty - self.penalty
        self._gradient = self._gradient.clone()  # a fork may hold the old one
        self._gradient[:-1] += change * self._theta[:-1]
        pairs = []
        for s, y, rho in self._pairs:
            y = y.clone()
            y[:-1] += change * s[:-1]
            curvature = (s * y).sum(0)
            pairs.append((s, y, torch.where((rho > 0) & (curvature > 0), 1.0 / curvature, 0.0)))
        self._pairs = pairs
        self.penalty = penalty
        self._direction = None
        if pairs:
            self._gamma = self._scale(pairs[-1], self._gamma)

    def _scale(self, pair: tuple[Tensor, Tensor, Tensor], before: Tensor) -> Tensor:
        s, y, rho = pair
        scale = (s * y).sum(0) / (y * self._precondition(y)).sum(0).clamp_min(1e-30)
        return torch.where(rho > 0, scale, before)

    def step(self) -> None:
        """One pass: every column moves, or halves a step that went too far (a slope test: no loss is computed)."""
        if self._direction is None:
            self._direction = self._descent()
            self._length = torch.ones_like(self._gamma)
        move = self._direction * self._length
        trial = self._theta + move
        gradient = self._evaluate(trial)
        self.num_passes += 1
        before = (self._gradient * self._direction).sum(0)  # negative: downhill
        after = (gradient * self._direction).sum(0)
        taken = after <= -ENOUGH_DECREASE * before
        change = (gradient - self._gradient) * taken
        moved = move * taken
        curvature = (moved * change).sum(0)
        pair = (moved, change, torch.where(curvature > 1e-30, 1.0 / curvature.clamp_min(1e-30), 0.0))
        self._pairs = [*self._pairs[-(HISTORY - 1) :], pair]
        self._gamma = self._scale(pair, self._gamma)
        self._theta = torch.where(taken, trial, self._theta)
        self._gradient = torch.where(taken, gradient, self._gradient)
        # where the slope along d turned: the zero of the line through both slopes
        back = (self._length * before / (before - after)).clamp(min=1e-3)
        if bool(taken.all()):
            self._direction = None
        else:
            fresh = self._descent()
            self._direction = torch.where(taken, fresh, self._direction)
            self._length = torch.where(taken, torch.ones_like(back), back)

    def result(self) -> Fit:
        """The columns as they are now."""
        weight = self._theta[:-1].contiguous()
        left = 0.5 * (self._gradient * self._precondition(self._gradient)).sum(0).cpu().numpy()
        slope = np.where(self.trained, left / self._null, 0.0).astype(np.float32)
        return Fit(weight, self._theta[-1] - self._centre @ weight, self.trained, slope)


def fit(
    examples: Examples,
    columns: Columns,
    penalty: float,
    *,
    steps: int,
    device: torch.device,
    progress: Callable[[], None] | None = None,
) -> Fit:
    """Fit every column from zero in exactly `steps` passes over the rows; `progress` is called after each."""
    solver = Solver(examples, columns, penalty, device=device)
    for _ in range(steps - 1):
        if progress is not None:
            progress()
        solver.step()
    return solver.result()

"""Many L2-penalised logistic regressions at once: one column per (label, fold), one pass over the rows for all of them.

In: standardised float32 blocks and sparse labels (`Examples`); out: `Fit`, weights and biases of every column. Each
column minimises mean BCE + λ‖w‖²/2 over its own rows, bias unpenalised, so the columns share only the two matrix
products of a pass. Newton's method, its steps by preconditioned conjugate gradients, has no learning rate and no seed,
and its next step says how far the scores still are from where they end: a column is finished when that is small on
clips that are watched. Price: 20 to 40 passes per λ of a path, 100 to 200 from zero to a small λ, most of them for the
few columns that are not yet finished.
Sources: Nocedal and Wright 2006, 7.1 (Newton-CG); Lin, Weng and Keerthi 2008 (the same for logistic regression).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from balance.records import Bool, Float32, Float64, Int64
from balance.runtime.threads import one_core

SETTLED = 0.003  # the step that is left moves the watched scores by at most this share of their spread
ON_THE_WAY = 0.1  # the same for the larger λ's that a fit comes down by: from far away Newton's steps are wild
LARGEST_PENALTY = 1.0  # where a fit from zero starts
LARGEST_DESCENT = 10.0  # factor by which λ falls at once
FEW_VALUES = 2**20  # rows x dim up to which a fit runs in float64, in the basis of the rows' principal directions
CURVATURE_VALUES = 2**28  # rows x columns up to which p(1 − p) is kept between passes (bfloat16: 512 MiB)
COVARIANCE_ROWS = 65_536  # evenly spaced rows for the preconditioner: it steers the steps, not the answer
FORCING = 0.1  # conjugate gradients end when the preconditioned residual has fallen to this share
CG_STEPS = 60  # … or after so many
OVERSHOT = 0.5  # a step is shortened if the slope at its end is uphill by this share of the descent at its start
SMALLEST_VARIANCE = 1e-10  # share of the largest: directions below it are left out of the basis of few rows


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

    def take(self, at: Int64) -> Columns:
        """These columns; `at` ascends."""
        return Columns(self.labels[at], self.folds[at])


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """weight: (dim, C) float32; bias: (C,) float32; trained: (C,) bool, false where a label has no positive or no
    negative training row (its score is then the constant bias); left: (C,) float32, how much the step that was found
    last moves the watched scores, as a share of their spread: at most SETTLED where the column is finished."""

    weight: Tensor
    bias: Tensor
    trained: Bool
    left: Float32

    def scores(self, features: Tensor) -> Tensor:
        """Logits (b, C) of standardised features (b, dim)."""
        return torch.addmm(self.bias, features, self.weight)


class _FewRows:
    """Rows that are kept, centred, in float64 and in the basis of their principal directions (at most n of them)."""

    dtype = torch.float64

    def __init__(self, examples: Examples, device: torch.device) -> None:
        num_rows, dim = examples.shape
        rows = examples.sample(np.arange(num_rows)).to(device, torch.float64)
        share = torch.as_tensor(examples.weights, device=device, dtype=torch.float64)[:, None]
        share = share / share.sum()
        self._centre = (rows * share).sum(0)
        rows = rows - self._centre
        scaled = rows * share.sqrt()
        if num_rows < dim:
            values, left = torch.linalg.eigh(scaled @ scaled.T)
        else:
            values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        kept = values > SMALLEST_VARIANCE * values[-1]
        self.variances = values[kept]
        self._vectors = scaled.T @ left[:, kept] / self.variances.sqrt() if num_rows < dim else vectors[:, kept]
        self._rows = rows @ self._vectors

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._rows

    def turn(self, vectors: Tensor) -> Tensor:
        """Onto the principal directions, where they are already."""
        return vectors

    turn_back = turn

    def watch(self, features: Tensor) -> Tensor:
        """Features (w, dim) as these rows are."""
        return torch.matmul(features.to(self._centre) - self._centre, self._vectors)

    def theta_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        """What `model` turns back; of a weight only what the rows span."""
        weight = weight.to(self._centre)
        return torch.cat([self._vectors.T @ weight, (bias.to(self._centre) + self._centre @ weight)[None]])

    def model(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias over the features as they were given, float32."""
        weight = self._vectors @ theta[:-1]
        return weight.float(), (theta[-1] - self._centre @ weight).float()


class _ManyRows:
    """Rows that are read block by block in float32, centred; steps are preconditioned in their principal directions."""

    dtype = torch.float32

    def __init__(self, examples: Examples, device: torch.device) -> None:
        self._examples = examples
        num_rows = examples.shape[0]
        rows = np.unique(np.linspace(0, num_rows - 1, min(num_rows, COVARIANCE_ROWS)).astype(np.int64))
        sample = examples.sample(rows).to(device)
        share = torch.as_tensor(examples.weights[rows], device=device)[:, None]
        share = share / share.sum()
        self._centre = (sample * share).sum(0)
        sample = (sample - self._centre) * share.sqrt()
        values, self._vectors = torch.linalg.eigh(sample.T @ sample)
        self.variances = values.clamp_min(0.0)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start, block in self._examples.blocks():
            yield start, block - self._centre

    def turn(self, vectors: Tensor) -> Tensor:
        """Onto the principal directions."""
        return torch.matmul(self._vectors.T, vectors)

    def turn_back(self, vectors: Tensor) -> Tensor:
        return torch.matmul(self._vectors, vectors)

    def watch(self, features: Tensor) -> Tensor:
        return features.to(self._centre) - self._centre

    def theta_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([weight, (bias + self._centre @ weight)[None]])

    def model(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta[:-1].contiguous(), theta[-1] - self._centre @ theta[:-1]


class Solver:
    """The fit of `columns` on `examples`: each `settle` goes on to another λ from where the columns are.

    watched: (w, dim) standardised features of the clips whose scores must settle; start: a solver of the same examples,
    from whose fit of a label its columns here start (from zero where it has none). Few rows start from zero whatever is
    given: what other rows say is far from their answer there, and Newton's steps from afar take longer, or do not end.
    """

    def __init__(
        self,
        examples: Examples,
        columns: Columns,
        watched: Tensor,
        *,
        device: torch.device,
        start: Solver | None = None,
    ) -> None:
        self.examples, self.columns, self.num_passes = examples, columns, 0
        self._progress: Callable[[int], None] = _nothing
        num_rows, dim = examples.shape
        if start is None:
            self._rows = (_FewRows if num_rows * dim <= FEW_VALUES else _ManyRows)(examples, device)
            self._watched = self._rows.watch(watched.to(device))
        else:
            self._rows, self._watched = start._rows, start._watched
        self._from_zero = isinstance(self._rows, _FewRows)
        self.penalty: float = LARGEST_PENALTY if start is None or self._from_zero else start.penalty
        self._device, self._dtype = device, self._rows.dtype
        self._targets = examples.labels.tocsc()[:, columns.labels]
        weights = torch.as_tensor(examples.weights, device=device, dtype=self._dtype)[:, None]
        self._weights = None if bool((weights == weights[0]).all()) else weights
        mass, positive = self._mass()
        rate = (positive + 0.5) / (mass + 1.0)  # a label without positives keeps a finite, constant score
        self.trained: Bool = (positive > 0) & (positive < mass)
        scale = 1.0 if self._weights is not None else float(weights[0])
        self._inverse_mass = self._column(scale / np.maximum(mass, 1e-12))
        self._theta = torch.zeros((len(self._rows.variances) + 1, len(columns)), device=device, dtype=self._dtype)
        self._theta[-1] = self._column(np.log(rate) - np.log1p(-rate))  # last row: bias at the centre
        if start is not None and not self._from_zero:
            self._begin(start.columns.labels, start._theta)
        self._left = np.where(self.trained, np.inf, 0.0).astype(np.float32)
        self._curvatures: list[Tensor] | None = None
        if num_rows * len(columns) <= CURVATURE_VALUES:
            size = len(columns)
            self._curvatures = [
                torch.empty((len(block), size), device=device, dtype=torch.bfloat16) for _, block in self._rows.blocks()
            ]

    def begin(self, labels: Int64, weight: Float32, bias: Float32, penalty: float) -> None:
        """Go on from a fit of these labels at this λ on other rows, weight (dim, C) and bias (C,), instead of zero."""
        if self._from_zero:
            return
        self.penalty = penalty
        given = (torch.as_tensor(values, device=self._device, dtype=torch.float32) for values in (weight, bias))
        self._begin(labels, self._rows.theta_of(*given))

    def _begin(self, labels: Int64, theta: Tensor) -> None:
        known, first = np.unique(labels, return_index=True)
        mine = np.flatnonzero(np.isin(self.columns.labels, known) & self.trained)
        self._theta[:, mine] = theta[:, first[np.searchsorted(known, self.columns.labels[mine])]]

    def _column(self, values: Float64) -> Tensor:
        return torch.as_tensor(values, device=self._device, dtype=self._dtype)

    def _mass(self) -> tuple[Float64, Float64]:
        """Summed row weights, and those of the positive rows, of each column: two (C,) float64."""
        weights = self.examples.weights.astype(np.float64)
        mass, positive = np.empty(len(self.columns)), np.empty(len(self.columns))
        for fold, at in self.columns.slices():
            kept = weights if fold < 0 else weights * ~self.examples.held_out[:, fold]
            mass[at] = kept.sum()
            positive[at] = self._targets[:, at].T @ kept
        return mass, positive

    def fork(self) -> Solver:
        """Another solver that stands where this one stands; the two then go their own ways, one after the other."""
        return copy.copy(self)  # nothing that lasts beyond `settle` is written in place

    @property
    def finished(self) -> bool:
        """Whether the scores of every column have settled."""
        return bool((self._left <= SETTLED).all())

    def settle(
        self, penalty: float, passes: int, progress: Callable[[int], None] | None = None, enough: float = SETTLED
    ) -> None:
        """Go on to this λ until every column's scores have settled to `enough`, in at most about so many passes over
        the rows (the last step's may go beyond); progress is called with the passes done."""
        end, self._progress = self.num_passes + passes, progress or _nothing
        with one_core() if self._from_zero else contextlib.nullcontext():
            self._descend(penalty, end, enough)

    def _descend(self, penalty: float, end: int, enough: float) -> None:
        while self.penalty > LARGEST_DESCENT * penalty:
            self._penalise(self.penalty / LARGEST_DESCENT)
            self._newton(ON_THE_WAY, end)
        if penalty != self.penalty:
            self._penalise(penalty)
        self._newton(enough, end)

    def _penalise(self, penalty: float) -> None:
        self.penalty = penalty
        self._left = np.where(self.trained, np.inf, 0.0).astype(np.float32)

    def _newton(self, enough: float, end: int) -> None:
        """Newton steps until the scores of every column have settled to `enough`, or `end` passes are done."""
        at = np.flatnonzero(self._left > enough)
        if not len(at):
            return
        theta = self._theta[:, at]
        scores = self._watched @ theta[:-1]
        gradient, curvature = self._evaluate(theta, at)
        while len(at) and self.num_passes < end:
            step, solved = self._newton_step(theta, at, gradient, curvature)
            moves = self._watched @ step[:-1]
            left = _spread(moves) / _spread(scores + moves).clamp_min(1e-30)
            done = (left <= enough) & solved
            left = torch.where(solved, left, left.clamp_min(2 * enough))
            self._put(at, theta + step * done, left)
            going = ~done.cpu().numpy()
            at, theta, gradient, step = at[going], theta[:, ~done], gradient[:, ~done], step[:, ~done]
            if len(at):
                theta, gradient, curvature, length = self._advance(theta, at, gradient, step)
                scores = scores[:, ~done] + length * moves[:, ~done]
                self._put(at, theta)

    def _count_pass(self) -> None:
        self.num_passes += 1
        self._progress(self.num_passes)

    def _put(self, at: Int64, theta: Tensor, left: Tensor | None = None) -> None:
        self._theta = self._theta.index_copy(1, torch.as_tensor(at, device=self._device), theta)
        if left is not None:
            self._left = self._left.copy()
            self._left[at] = left.cpu().numpy()

    def _advance(
        self, theta: Tensor, at: Int64, gradient: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The columns after their steps, each shortened until it does not overshoot (a slope test: no loss is
        computed), gradient and mean curvature there, and the length that each step was given."""
        before = (gradient * step).sum(0)  # negative: downhill
        length = torch.ones_like(before)
        new, curvature = self._evaluate(theta + step, at)
        for _ in range(10):
            after = (new * step).sum(0)
            over = after > -OVERSHOT * before
            if not over.any():
                break
            # the zero of the line through both slopes
            length = torch.where(over, length * (before / (before - after)).clamp(0.1, 0.7), length)
            part = over.cpu().numpy()
            new, curvature = new.clone(), curvature.clone()
            new[:, over], curvature[over] = self._evaluate(theta[:, over] + length[over] * step[:, over], at[part])
        return theta + length * step, new, curvature, length

    def _evaluate(self, theta: Tensor, at: Int64) -> tuple[Tensor, Tensor]:
        """Gradient (dim + 1, c) and mean p(1 − p) (c,) of the columns `at` at theta; one pass over the rows."""
        columns, targets = self.columns.take(at), self._targets[:, at].tocsr()
        total = torch.zeros_like(theta)
        curvature_sum = torch.zeros(len(at), device=self._device, dtype=torch.float64)
        residual_sum = torch.zeros_like(curvature_sum)
        where = torch.as_tensor(at, device=self._device)
        for number, (start, features) in enumerate(self._rows.blocks()):
            # the sign of a positive's margin is turned before and after, so that a small residual keeps its digits
            residual = torch.addmm(theta[-1], features, theta[:-1])
            positives = _places(targets, start, start + len(features)).to(self._device)
            residual.view(-1)[positives] *= -1.0
            residual.sigmoid_()
            curvature = residual * (1.0 - residual)
            residual.view(-1)[positives] *= -1.0
            for values in (residual, curvature):
                self._weigh(values, start, columns)
            if self._curvatures is not None:
                self._curvatures[number].index_copy_(1, where, curvature.to(torch.bfloat16))
            total[:-1].addmm_(features.T, residual)
            residual_sum += residual.sum(0)  # in the dtype of the rows within a block, float64 across them
            curvature_sum += curvature.sum(0)
        self._count_pass()
        inverse_mass = self._inverse_mass[where]
        total[-1] = residual_sum.to(self._dtype)
        gradient = total * inverse_mass
        gradient[:-1] += self.penalty * theta[:-1]
        return gradient, curvature_sum.to(self._dtype) * inverse_mass

    def _weigh(self, values: Tensor, start: int, columns: Columns) -> None:
        """Multiply (b, c) values by their rows' weights, 0 where a column's fold holds the row out."""
        stop = start + len(values)
        if self._weights is not None:
            values *= self._weights[start:stop]
        for fold, at in columns.slices():
            if fold >= 0 and (out := self.examples.held_out[start:stop, fold]).any():
                values[torch.as_tensor(np.flatnonzero(out), device=self._device), at] = 0.0

    def _hessian_product(self, vectors: Tensor, at: Int64, theta: Tensor) -> Tensor:
        """The Hessian of each of the columns `at` at theta times its vector, (dim + 1, c); one pass over the rows."""
        where, every = torch.as_tensor(at, device=self._device), len(at) == len(self.columns)
        total = torch.zeros_like(vectors)
        for number, (start, features) in enumerate(self._rows.blocks()):
            if self._curvatures is not None:
                curvature = self._curvatures[number]
                curvature = (curvature if every else curvature.index_select(1, where)).to(self._dtype)
            else:
                p = torch.addmm(theta[-1], features, theta[:-1]).sigmoid_()
                curvature = p * (1.0 - p)
                self._weigh(curvature, start, self.columns.take(at))
            curvature *= torch.addmm(vectors[-1], features, vectors[:-1])
            total[:-1].addmm_(features.T, curvature)
            total[-1] += curvature.sum(0)
        self._count_pass()
        total *= self._inverse_mass[where]
        total[:-1] += self.penalty * vectors[:-1]
        return total

    def _newton_step(self, theta: Tensor, at: Int64, gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
        """−H⁻¹ g of each column, and whether it was found to FORCING, by preconditioned conjugate gradients (Nocedal
        and Wright, 5.3)."""
        scale = self._rows.variances[:, None] * curvature + self.penalty
        bias_scale = curvature.clamp_min(1e-12)

        def precondition(vectors: Tensor, some: Tensor) -> Tensor:
            out = torch.empty_like(vectors)
            out[:-1] = self._rows.turn_back(self._rows.turn(vectors[:-1]) / scale[:, some])
            out[-1] = vectors[-1] / bias_scale[some]
            return out

        step, residual = torch.zeros_like(gradient), -gradient
        direction = precondition(residual, torch.arange(len(at), device=self._device))
        size = (residual * direction).sum(0)
        enough = FORCING**2 * size
        for _ in range(CG_STEPS):
            some = torch.nonzero(size > enough).flatten()
            if not len(some):
                break
            along = direction[:, some]
            product = self._hessian_product(along, at[some.cpu().numpy()], theta[:, some])
            length = size[some] / (along * product).sum(0).clamp_min(1e-30)
            step[:, some] += length * along
            residual[:, some] -= length * product
            fresh = precondition(residual[:, some], some)
            new = (residual[:, some] * fresh).sum(0)
            direction[:, some] = fresh + new / size[some] * along
            size[some] = new
        return step, size <= enough

    def result(self) -> Fit:
        """The columns as they are now."""
        return Fit(*self._rows.model(self._theta), self.trained, self._left)


def _spread(scores: Tensor) -> Tensor:
    """Standard deviation of each column of (w, c) scores: (c,)."""
    centred = scores - scores.mean(0)
    return (centred * centred).mean(0).sqrt()


def _nothing(done: int) -> None:
    """Where nobody looks at the progress."""


def _places(targets: Any, start: int, stop: int) -> Tensor:
    """Where the positives of the rows start … stop lie in a flat (stop − start, c) array; targets: CSR (n, c)."""
    first, last = targets.indptr[start], targets.indptr[stop]
    rows = np.repeat(np.arange(stop - start), np.diff(targets.indptr[start : stop + 1]))
    return torch.as_tensor(rows * targets.shape[1] + targets.indices[first:last].astype(np.int64))


def fit(
    examples: Examples, columns: Columns, penalty: float, watched: Tensor, *, passes: int, device: torch.device
) -> Fit:
    """Fit every column from zero until its scores on the watched clips settle."""
    solver = Solver(examples, columns, watched, device=device)
    solver.settle(penalty, passes)
    return solver.result()

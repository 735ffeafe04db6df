"""First passes: which (seed, pool clip) pairs may reach a cosine, found with low-precision products.

In: seeds and a block of the pool, one threshold a seed. Out: pairs, never one too few, some tens of percent too many.
`Centre` turns both sides into matrices whose product is an upper bound of the cosine, so that a backend only
compares; its docstring derives the bound. The price: six more columns in the product, 12 % of a bfloat16 product's
time at dim 512, 1 % of a float32 one's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from balance.errors import UserError
from balance.runtime.threads import Workspace
from balance.search.config import Backend

log = logging.getLogger(__name__)

EXTRA_COLUMNS = 6
FAISS_MOST_ON_GPU = 2048
_CAP = 3.0e4  # below float16's largest number
_WORK_ROWS_CPU = 1 << 10  # 2 MB of float32 at dim 512: in cache
_WORK_ROWS_GPU = 1 << 16


class Centre:
    """What both sides are measured against, and the bound.

    Let m be a mean direction, q and p unit vectors, a = q − m, b = p − m: q·p = a·b + m·b + q·m. Where vectors crowd,
    a and b are short, and so is the error of a·b in low precision. With A, B the roundings of a, b and the
    Cauchy-Schwarz inequality

        a·b ≤ A·B + |A| |b − B| + |a − A| |b|,

    lengths and products with m in float64. A and B come from residuals computed in float32: 1 / length, the product
    with it and the subtraction round by 2⁻²⁴ each, together by at most 2⁻²³ |q| + 2⁻²⁴ |a|; what the product's type
    then takes off is measured. A sum of n products in float32 in any order is off by at most γ |A||B|, γ = n 2⁻²⁴
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5), here four times that. Each term is a
    number of the seed times a number of the clip: five more columns, m·b in three pieces and the two errors rounded
    up, make the product an upper bound U of q·p − q·m. Rounding U to the output's type is monotone, so U ≥ t implies
    round(U) ≥ round(t): it costs no pair. The sixth is for a backend that knows one threshold for all seeds, 0: there
    it puts each seed's own with a minus (`lowered`).

    mean: (dim,) float64; scale: a power of two that brings the residuals to length about 1 (float16's range is
    small); dtype: of the product's inputs. A matrix has dim + 6 columns, and zeros up to a multiple of 8: GPUs are
    slow without.
    """

    def __init__(self, mean: torch.Tensor, scale: float, dtype: torch.dtype) -> None:
        self.scale, self.dtype = scale, dtype
        self._dim = len(mean)
        self._columns = -(-(self._dim + EXTRA_COLUMNS) // 8) * 8
        self._mean32 = (mean * scale).float()
        self._mean = self._mean32.double()  # any m will do: one that float32 holds
        self._square = float(self._mean @ self._mean)
        self._work_rows = _WORK_ROWS_CPU if mean.device.type == "cpu" else _WORK_ROWS_GPU
        self._workspace = Workspace(mean.device)
        self._gamma = self._columns * 2.0**-22  # four times γ, for hardware that truncates where it adds

    def seeds(self, rows64: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, dim) float64 holding float32 values -> product matrix (S, columns), constants q·m (S,) float64."""
        out = torch.empty(len(rows64), self._columns, dtype=self.dtype, device=rows64.device)
        size, error, along = self._lower(rows64.float(), rows64, rows64.new_empty(len(rows64)), out)
        out[:, self._dim : self._dim + 3] = 1.0
        out[:, self._dim + 3] = self._up(size + error)
        out[:, self._dim + 4] = self._up(error)
        return out, (along + self._square) / self.scale**2

    def pool(
        self, rows: torch.Tensor, wide: torch.Tensor, lengths: torch.Tensor, *, bounds: bool = True
    ) -> torch.Tensor:
        """(n, dim) float32 rows -> product matrix (n, columns), which holds until this thread asks for another; by
        the way widened into `wide` (n, dim) float64 and measured into `lengths` (n,) float64. Without bounds, a matrix
        that gives the plain approximation of q·p − q·m, not a bound of it. Lengths that are not finite are the
        caller's to refuse."""
        out = self._workspace.empty("matrix", len(rows), self._columns, dtype=self.dtype)
        size, error, along = self._lower(rows, wide, lengths, out)
        if bounds:
            # m·b is summed up like the rest; 2⁻²³ covers its third rounding (where float16's pieces are subnormal, half
            # of the 2⁻²⁴ of `thresholds` does), the last term the float64 sums.
            sums = 1e-12 + self._dim * 2.0**-52
            along = along + (self._gamma + 2.0**-23) * along.abs() + sums * self.scale**2
            out[:, self._dim + 3] = self._up(error + self._gamma * (size + error))
            out[:, self._dim + 4] = self._up(size)
        out[:, self._dim + 5] = 1.0
        if self.dtype == torch.float16:
            along = torch.where(along > _CAP, torch.inf, along.clamp(min=-_CAP))
        for column in range(self._dim, self._dim + 3):
            piece = along.to(self.dtype)
            out[:, column] = piece
            along = torch.nan_to_num(along - piece.double(), nan=0.0)
        return out

    def lowered(self, seeds: torch.Tensor, thresholds: torch.Tensor) -> None:
        """Lets the product be U − t, or a little more: below 0 only where U < t. Thresholds (S,) go into `seeds`."""
        seeds[:, self._dim + 5] = self._gamma * thresholds.abs() - thresholds  # t is summed up like the rest

    def thresholds(self, cosines: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
        """What U must reach for a cosine that may round to these float32 ones: (S,) -> (S,) in the product's type."""
        # 2⁻²⁴ is twice the half unit by which rounding to float32 lifts a cosine; the rest covers float64 sums.
        wanted = (cosines.double() - constants - 2.0**-24) * self.scale**2
        if self.dtype == torch.float16:
            wanted = wanted.clamp(max=_CAP)
        return wanted.to(self.dtype)

    def certified(self, bounds: torch.Tensor, seeds: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """Thresholds (S,) that are safe where K pairs of a seed have at least the bound U = bounds (S,): each of them
        is at least U less twice the widest error."""
        dim = self._dim
        wide = seeds[:, dim + 3].double() * pool[:, dim + 3].max() + seeds[:, dim + 4].double() * pool[:, dim + 4].max()
        along = 4 * self._gamma * float(pool[:, dim].abs().max())
        return (bounds.double() - 2 * wide - along - (1e-11 + 2.0**-24) * self.scale**2).to(self.dtype)

    def cosines(self, scores: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
        """Plain approximations (S,) back as cosines, (S,) float32."""
        return (scores.double() / self.scale**2 + constants).float()

    def _lower(
        self, rows: torch.Tensor, wide: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Rounded residuals into `out`, see `pool`; their lengths, errors and products with m, (n,) float64."""
        low, step = out[:, : self._dim], self._work_rows
        out[:, self._dim :] = 0.0
        along, rounding = torch.empty_like(lengths), torch.zeros_like(lengths)
        work, minus = None, -self._mean32
        if self.dtype != torch.float32:
            work = self._workspace.empty("residuals", min(step, len(rows)), self._dim, dtype=torch.float32)
        for start in range(0, len(rows), step):
            these = slice(start, start + step)
            wide[these].copy_(rows[these])
            torch.linalg.vector_norm(wide[these], dim=1, out=lengths[these])
            torch.mv(wide[these], self._mean, out=along[these])
            part, inverse = rows[these], torch.where(lengths[these] > 0, self.scale / lengths[these], 0.0)
            odd = (inverse > 1e30) | ((inverse < 1e-30) & (inverse > 0))  # float32 has no such factor, or few digits
            if bool(odd.any()):
                part = torch.where(odd[:, None], (wide[these] * inverse[:, None]).float(), part)
                along[these] *= torch.where(odd, inverse, 1.0)
                inverse = torch.where(odd, 1.0, inverse)
            along[these] *= inverse
            residual = low[these] if work is None else work[: len(part)]
            torch.addcmul(minus, part, inverse.float()[:, None], out=residual)
            if work is not None:
                low[these] = residual
                residual.sub_(low[these])
                rounding[these] = torch.linalg.vector_norm(residual, dim=1).double()
        along -= self._square
        # |b|² = |p|² − 2 m·b − |m|²; the second term is what float64 may have lost of it.
        square = torch.where(lengths > 0, self.scale**2, 0.0) - 2 * along - self._square
        size = square.clamp(min=0).add_(self._dim * 2.0**-50 * self.scale**2).sqrt_()
        error = (1.001 + self._dim * 2.0**-24) * (rounding + 2.0**-23 * self.scale + 2.0**-24 * size) + 1e-30
        return size, error, along

    def _up(self, values: torch.Tensor) -> torch.Tensor:
        """Rounded to the product's type, never down (and never to a subnormal, which a product may flush)."""
        return (values * (1 + 2 * torch.finfo(self.dtype).eps) + torch.finfo(self.dtype).tiny).to(self.dtype)


def pairs_of(reached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a contiguous bool matrix (S, n) is true: seed_at, ascending, and row_at, both (pairs,) int64."""
    if reached.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(reached.numpy()))  # three times torch's speed
    else:
        flat = reached.view(-1).nonzero().squeeze(1)
    seed_at = flat // reached.shape[1]
    return seed_at, flat.sub_(seed_at * reached.shape[1])


def first_pass_dtype(device: torch.device) -> torch.dtype:
    """float16 on CUDA, bfloat16 on CPUs that have it, else float32."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def ranked(scores: torch.Tensor, rank: int) -> torch.Tensor:
    """About the rank-th largest of each row of scores (S, n) -> (S,): never more, seldom less. Scores are used up."""
    num_rows, num_columns = scores.shape
    # The largest of every group of columns: few of the best share a group of theirs, and the rest need no ranking.
    group = max(1, num_columns // (16 * rank))
    grouped = scores[:, : num_columns // group * group].view(num_rows, group, -1)
    if scores.dtype == torch.bfloat16:
        # As integers, a tenth of the time; right where the result is positive (see TorchProduct.above).
        bits = grouped.view(torch.int16).numpy().max(axis=1)
        bits.partition(bits.shape[1] - rank, axis=1)
        best = torch.from_numpy(bits[:, -rank].copy()).view(torch.bfloat16)
        if bool((best > 0).all()):
            return best
    return grouped.amax(dim=1).topk(rank, dim=1, sorted=False).values.amin(dim=1)


class Product(Protocol):
    """A first pass on one device."""

    dtype: torch.dtype
    device: torch.device
    needs_guess: bool  # of the K-th similarities: without, the first pairs of a seed are all found

    @property
    def block_bytes(self) -> int:
        """The best size of a block of float32 rows."""
        ...

    def above(
        self, centre: Centre, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every pair with U ≥ threshold that may be among the top k of this block.

        seeds (S, columns), pool (n, columns), thresholds (S,): from `centre`; likely: a guess of pairs a seed.
        Returns seed_at, ascending, and row_at, both (pairs,) int64.
        """
        ...


class TorchProduct:
    """Blocked matrix product in `first_pass_dtype`, and a comparison."""

    needs_guess = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = first_pass_dtype(device)
        # On a CPU the scores of a block and 2,000 seeds are 16 MB.
        self.block_bytes = 1 << 27 if device.type == "cuda" else (1 << 24) // self.dtype.itemsize
        self._workspace = Workspace(device)
        if device.type == "cuda":
            # Partial sums kept in float16 would break the bound.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def above(
        self, centre: Centre, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self._workspace.empty("scores", len(seeds), len(pool), dtype=self.dtype)
        reached = self._workspace.empty("reached", len(seeds), len(pool), dtype=torch.bool)
        torch.mm(seeds, pool.t(), out=scores)
        if self.dtype == torch.bfloat16 and bool((thresholds > 0).all()):
            # Positive floats are ordered like their bits, and above all negative ones: an integer comparison is
            # five times faster than a bfloat16 one.
            bits, least = scores.view(torch.int16).numpy(), thresholds.view(torch.int16).numpy()
            np.greater_equal(bits, least[:, None], out=reached.numpy())
        elif self.device.type == "cpu" and self.dtype == torch.float32:  # numpy knows no bfloat16
            np.greater_equal(scores.numpy(), thresholds.numpy()[:, None], out=reached.numpy())  # twice torch's speed
        else:
            torch.ge(scores, thresholds[:, None], out=reached)
        return pairs_of(reached)


class FaissProduct:
    """FAISS's range search in float32 on the CPU: all pairs of a block above a threshold, here 0.

    Not its search for the k nearest: that begins every block with empty lists, and needs blocks of hundreds of MB
    for their filling not to count.
    """

    dtype = torch.float32
    device = torch.device("cpu")
    needs_guess = True
    block_bytes = 1 << 25

    def __init__(self, faiss: Any) -> None:
        self._faiss = faiss
        self._workspace = Workspace(self.device)

    def above(
        self, centre: Centre, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        faiss = self._faiss
        faiss.omp_set_num_threads(torch.get_num_threads())  # of this thread
        lowered = self._workspace.empty("seeds", *seeds.shape, dtype=self.dtype).copy_(seeds)
        centre.lowered(lowered, thresholds)
        found = faiss.RangeSearchResult(len(seeds))
        queries, base = (faiss.swig_ptr(matrix.numpy()) for matrix in (lowered, pool))
        # Strictly above: the radius is a hair below 0.
        faiss.range_search_inner_product(queries, base, seeds.shape[1], len(seeds), len(pool), -1e-30, found)
        starts = faiss.rev_swig_ptr(found.lims, len(seeds) + 1).astype(np.int64)
        row_at = faiss.rev_swig_ptr(found.labels, int(starts[-1])).copy() if starts[-1] else np.empty(0, np.int64)
        return torch.from_numpy(np.arange(len(seeds)).repeat(np.diff(starts))), torch.from_numpy(row_at)


class FaissLists:
    """FAISS's search for the k nearest in float32: all that it has on a GPU.

    knn(seeds, pool, k) -> scores (S, k) descending, rows (S, k). The k-th of a seed's results certifies a threshold of
    its own. A seed whose last of `likely` results still reaches its threshold is searched again with more; beyond
    2,048, where FAISS's GPU search ends, the block is halved.
    """

    dtype = torch.float32
    needs_guess = False
    block_bytes = 200 << 20  # every call begins with an empty list of results, and the first of a list are slow

    def __init__(
        self, knn: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]], device: torch.device
    ) -> None:
        self._knn, self.device = knn, device

    def above(
        self, centre: Centre, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked = min(len(pool), likely, FAISS_MOST_ON_GPU)
        scores, rows = self._knn(seeds, pool, asked)
        if asked >= k:
            thresholds = torch.maximum(thresholds, centre.certified(scores[:, k - 1], seeds, pool))
        reached = scores >= thresholds[:, None]
        more = reached[:, -1] & (asked < len(pool))
        reached[more] = False
        seed_at, at = pairs_of(reached)
        row_at = rows[seed_at, at]
        if bool(more.any()):
            again = more.nonzero().squeeze(1)
            its_seed_at, its_row_at = self._wider(centre, seeds[again], pool, thresholds[again], k, asked)
            seed_at, order = torch.cat([seed_at, again[its_seed_at]]).sort()
            row_at = torch.cat([row_at, its_row_at])[order]
        return seed_at, row_at

    def _wider(
        self, centre: Centre, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, asked: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Asks for four times as many, or where FAISS gives no more, of each half of the block; in any order."""
        if asked < FAISS_MOST_ON_GPU:
            return self.above(centre, seeds, pool, thresholds, k, 4 * asked)
        half = len(pool) // 2
        seed_at, row_at = self.above(centre, seeds, pool[:half], thresholds, k, asked)
        more_seed_at, more_row_at = self.above(centre, seeds, pool[half:], thresholds, k, asked)
        return torch.cat([seed_at, more_seed_at]), torch.cat([row_at, more_row_at + half])


def faiss_on_gpu(faiss: Any, device: torch.device) -> FaissLists:
    """FAISS's GPU search on this device; the module must take torch's tensors (faiss.contrib.torch_utils)."""
    resources = faiss.StandardGpuResources()

    def knn(seeds: torch.Tensor, pool: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        metric, index = faiss.METRIC_INNER_PRODUCT, device.index or 0
        scores, rows = faiss.knn_gpu(resources, seeds, pool, k, metric=metric, device=index)
        return scores, rows

    return FaissLists(knn, device)


def _faiss() -> Any:
    """The module, or None. After torch: the other order can crash when their CUDA versions differ."""
    try:
        import faiss
    except ImportError:
        return None
    if hasattr(faiss, "knn_gpu"):
        import faiss.contrib.torch_utils  # teaches FAISS to take CUDA tensors
    return faiss


def choose(backend: Backend, device: torch.device) -> tuple[Product, str]:
    """The first pass and one line that says which and why. UserError where the backend asked for is not installed."""
    on_cuda = device.type == "cuda"
    faiss = _faiss()
    faiss_gpu = faiss is not None and on_cuda and hasattr(faiss, "knn_gpu") and faiss.get_num_gpus() > 0
    if backend is Backend.faiss and faiss is None:
        raise UserError(
            "search.backend=faiss was given, but FAISS is not installed: type `pip install faiss-cpu` (with a GPU:"
            " `pip install faiss-gpu`, never both), or search.backend=torch"
        )
    if backend is Backend.torch:
        use_faiss, why = False, "search.backend=torch"
    elif backend is Backend.faiss:
        use_faiss, why = True, "search.backend=faiss"
        if on_cuda and not faiss_gpu:
            log.warning(
                "search.backend=faiss, but the installed FAISS is built for CPUs only: searching on the CPU"
                " (`pip uninstall faiss-cpu && pip install faiss-gpu`, or search.backend=torch, uses %s)",
                device,
            )
    elif on_cuda:
        missing = "FAISS is not installed" if faiss is None else "the installed FAISS is built for CPUs only"
        use_faiss, why = faiss_gpu, "auto: FAISS sees the GPU" if faiss_gpu else f"auto: {missing}"
    else:
        use_faiss = faiss is not None
        why = "auto: no GPU, FAISS is installed" if use_faiss else "auto: no GPU, FAISS is not installed"
    product: Product = TorchProduct(device)
    if use_faiss:
        product = faiss_on_gpu(faiss, device) if faiss_gpu else FaissProduct(faiss)
    kind = str(product.dtype).removeprefix("torch.")
    name = "FAISS" if use_faiss else "torch"
    return product, f"search: {name} on {product.device}, first pass in {kind} ({why})"

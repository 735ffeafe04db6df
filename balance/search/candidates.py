"""First passes: which (seed, pool clip) pairs may reach a cosine, found with low-precision products.

In: seeds and a block of the pool as matrices of `CosineBound`, one threshold per seed. Out: pairs, never one too few,
some tens of percent too many. A backend only compares the product with thresholds, so torch and FAISS, CPU and GPU
propose different candidates and lose none; rescore.py makes the same bytes of them. FAISS is imported here alone, and
after torch: the other order can crash where their CUDA versions differ.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from balance.errors import UserError
from balance.runtime.threads import Workspace
from balance.search.config import Backend
from balance.search.cosine_bound import CosineBound

log = logging.getLogger(__name__)

FAISS_MOST_ON_GPU = 2048
BLOCK_BYTES_GPU = 1 << 28  # of float32 rows, for torch
BLOCK_BYTES_CPU = 1 << 22  # the same: twice as many take a fifth longer, which leave the second cache (2 MB a core)
GROUP = 16  # columns whose largest score a GPU compares; of the groups that reach it reads each score again, and alone


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
        # As integers, a tenth of the time; right where the result is positive (see TorchSearch.find).
        bits = grouped.view(torch.int16).numpy().max(axis=1)
        bits.partition(bits.shape[1] - rank, axis=1)
        best = torch.from_numpy(bits[:, -rank].copy()).view(torch.bfloat16)
        if bool((best > 0).all()):
            return best
    return grouped.amax(dim=1).topk(rank, dim=1, sorted=False).values.amin(dim=1)


class CandidateSearch(Protocol):
    """A first pass on one device: finds the pairs that may matter, not what they are worth."""

    dtype: torch.dtype
    device: torch.device
    needs_guess: bool  # of the K-th similarities: without, the first pairs of a seed are all found
    workspace: Workspace  # for the blocks of a search, its own and the caller's

    @property
    def block_bytes(self) -> int:
        """The best size of a block of float32 rows."""
        ...

    def find(
        self, bound: CosineBound, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every pair with U ≥ threshold that may be among the top k of this block.

        seeds (S, columns), pool (n, columns), thresholds (S,): from `bound`; likely: a guess of the pairs per seed.
        Returns seed_at, ascending, and row_at, both (pairs,) int64.
        """
        ...


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Inside, no float16 product on a GPU keeps partial sums in float16, which would break the bound. The switch is the
    process's, not a thread's."""
    switches = torch.backends.cuda.matmul
    before = switches.allow_fp16_reduced_precision_reduction
    switches.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        switches.allow_fp16_reduced_precision_reduction = before


class TorchSearch:
    """A matrix product in `first_pass_dtype`, and a comparison; on a GPU of groups of columns first, since reading all
    scores again, and a bool for each, costs more than the product."""

    needs_guess = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = first_pass_dtype(device)
        self.block_bytes = BLOCK_BYTES_GPU if device.type == "cuda" else BLOCK_BYTES_CPU
        self.workspace = Workspace(device)

    def find(
        self, bound: CosineBound, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.device.type == "cuda":
            return self._find_in_groups(seeds, pool, thresholds)
        scores = self.workspace.empty("scores", len(seeds), len(pool), dtype=self.dtype)
        reached = self.workspace.empty("reached", len(seeds), len(pool), dtype=torch.bool)
        torch.mm(seeds, pool.t(), out=scores)
        if self.dtype == torch.bfloat16 and bool((thresholds > 0).all()):
            # Positive floats are ordered like their bits, and above all negative ones: an integer comparison is
            # five times faster than a bfloat16 one.
            bits, least = scores.view(torch.int16).numpy(), thresholds.view(torch.int16).numpy()
            np.greater_equal(bits, least[:, None], out=reached.numpy())
        elif self.dtype == torch.float32:  # numpy knows no bfloat16
            np.greater_equal(scores.numpy(), thresholds.numpy()[:, None], out=reached.numpy())  # twice torch's speed
        else:
            torch.ge(scores, thresholds[:, None], out=reached)
        return pairs_of(reached)

    def _find_in_groups(
        self, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A group is every `places`-th column, so that threads side by side read what lies side by side."""
        places = -(-len(pool) // GROUP)
        scores = self.workspace.empty("scores", len(seeds), GROUP * places, dtype=self.dtype)
        with _sums_in_float32():
            torch.mm(seeds, pool.t(), out=scores[:, : len(pool)])
        scores[:, len(pool) :] = -torch.inf  # a threshold may be that too
        groups = scores.view(len(seeds), GROUP, places)
        its_seed, place = pairs_of(groups.amax(dim=1) >= thresholds[:, None])
        group_at, member = pairs_of(groups[its_seed, :, place] >= thresholds[its_seed][:, None])
        seed_at, row_at = its_seed[group_at], member.mul_(places).add_(place[group_at])
        if len(pool) % GROUP:  # the last block's
            there = (row_at < len(pool)).nonzero().squeeze(1)
            return seed_at[there], row_at[there]
        return seed_at, row_at


class FaissRangeSearch:
    """FAISS's range search in float32 on the CPU: all pairs of a block above a threshold, here 0.

    Not its search for the k nearest: that begins every block with empty lists, and needs blocks of hundreds of MB
    for their filling not to count.
    """

    dtype = torch.float32
    device = torch.device("cpu")
    needs_guess = True
    block_bytes = 1 << 24

    def __init__(self, faiss: Any) -> None:
        self._faiss = faiss
        self.workspace = Workspace(self.device)

    def find(
        self, bound: CosineBound, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        faiss = self._faiss
        faiss.omp_set_num_threads(torch.get_num_threads())  # of this thread
        shifted = self.workspace.empty("seeds", *seeds.shape, dtype=self.dtype).copy_(seeds)
        bound.subtract_thresholds(shifted, thresholds)
        found = faiss.RangeSearchResult(len(seeds))
        queries, base = (faiss.swig_ptr(matrix.numpy()) for matrix in (shifted, pool))
        # Strictly above: the radius is a hair below 0.
        faiss.range_search_inner_product(queries, base, seeds.shape[1], len(seeds), len(pool), -1e-30, found)
        starts = faiss.rev_swig_ptr(found.lims, len(seeds) + 1).astype(np.int64)
        row_at = faiss.rev_swig_ptr(found.labels, int(starts[-1])).copy() if starts[-1] else np.empty(0, np.int64)
        return torch.from_numpy(np.arange(len(seeds)).repeat(np.diff(starts))), torch.from_numpy(row_at)


class FaissKnnSearch:
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
        self.workspace = Workspace(device)

    def find(
        self, bound: CosineBound, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, likely: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked = min(len(pool), likely, FAISS_MOST_ON_GPU)
        scores, rows = self._knn(seeds, pool, asked)
        if asked >= k:
            thresholds = torch.maximum(thresholds, bound.certified(scores[:, k - 1], seeds, pool))
        reached = scores >= thresholds[:, None]
        more = reached[:, -1] & (asked < len(pool))
        reached[more] = False
        seed_at, at = pairs_of(reached)
        row_at = rows[seed_at, at]
        if bool(more.any()):
            again = more.nonzero().squeeze(1)
            its_seed_at, its_row_at = self._wider(bound, seeds[again], pool, thresholds[again], k, asked)
            seed_at, order = torch.cat([seed_at, again[its_seed_at]]).sort()
            row_at = torch.cat([row_at, its_row_at])[order]
        return seed_at, row_at

    def _wider(
        self, bound: CosineBound, seeds: torch.Tensor, pool: torch.Tensor, thresholds: torch.Tensor, k: int, asked: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Asks for four times as many, or where FAISS gives no more, of each half of the block; in any order."""
        if asked < FAISS_MOST_ON_GPU:
            return self.find(bound, seeds, pool, thresholds, k, 4 * asked)
        half = len(pool) // 2
        seed_at, row_at = self.find(bound, seeds, pool[:half], thresholds, k, asked)
        more_seed_at, more_row_at = self.find(bound, seeds, pool[half:], thresholds, k, asked)
        return torch.cat([seed_at, more_seed_at]), torch.cat([row_at, more_row_at + half])


def faiss_on_gpu(faiss: Any, device: torch.device) -> FaissKnnSearch:
    """FAISS's GPU search on this device; the module must take torch's tensors (faiss.contrib.torch_utils)."""
    resources = faiss.StandardGpuResources()

    def knn(seeds: torch.Tensor, pool: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(device):  # of its streams FAISS takes the current device's, and runs beside torch's else
            index = torch.cuda.current_device()
            try:
                scores, rows = faiss.knn_gpu(resources, seeds, pool, k, metric=faiss.METRIC_INNER_PRODUCT, device=index)
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                raise torch.cuda.OutOfMemoryError(str(error)) from None  # FAISS has no kind of its own for it
        return scores, rows

    one = torch.zeros(1, 8, device=device)
    knn(one, one, 1)  # FAISS takes 1.5 GB at its first call: before anybody counts what is free
    return FaissKnnSearch(knn, device)


def import_faiss() -> tuple[Any, str]:
    """(the module, "") or (None, why not). After torch: the other order can crash where their CUDA versions differ."""
    try:
        if importlib.util.find_spec("faiss") is None:
            return None, "FAISS is not installed"
        import faiss

        if hasattr(faiss, "knn_gpu"):
            import faiss.contrib.torch_utils  # teaches FAISS to take CUDA tensors
    except Exception as error:  # a build without its libraries or for another numpy raises any kind
        why = next(iter(str(error).splitlines()), "")
        return None, f"FAISS is installed but does not import ({type(error).__name__}: {why})"
    return faiss, ""


def check(backend: Backend) -> None:
    """UserError where the backend that was asked for cannot be used."""
    if backend is Backend.faiss:
        _demanded_faiss()


def _demanded_faiss() -> Any:
    faiss, why_not = import_faiss()
    if faiss is None:
        raise UserError(
            f"search.backend=faiss was given; {why_not}: type `pip install faiss-cpu` (with a GPU: `pip install "
            "faiss-gpu`, never both; a broken one with --force-reinstall), or search.backend=torch"
        )
    return faiss


def choose(backend: Backend, device: torch.device) -> tuple[CandidateSearch, str]:
    """The first pass and one line that says which and why. UserError where the backend asked for cannot be used.

    auto: torch on a GPU, where FAISS's float32 does not come near its float16; on a CPU torch where its product is in
    bfloat16 (1.5 times as fast as FAISS on Zen 4, twice on a Xeon), else FAISS (1.3 times as fast as torch's float32;
    benchmarks/results/neighbours.txt).
    """
    faiss = None
    if backend is Backend.faiss:
        faiss, why = _demanded_faiss(), "search.backend=faiss"
    elif backend is Backend.torch:
        why = "search.backend=torch"
    elif device.type == "cuda":
        why = "auto: a GPU"
    else:
        faiss, why_not = import_faiss()  # where torch is taken too: whoever has installed it learns that it is broken
        why = f"auto: no GPU, {why_not or 'FAISS is installed'}"
        if first_pass_dtype(device) is torch.bfloat16:
            faiss, why = None, f"auto: no GPU, the processor has bfloat16 instructions{why_not and ', ' + why_not}"
    first_pass = TorchSearch(device) if faiss is None else _faiss_search(faiss, device)
    kind = str(first_pass.dtype).removeprefix("torch.")
    name = "torch" if faiss is None else "FAISS"
    return first_pass, f"search: {name} on {first_pass.device}, first pass in {kind} ({why})"


def _faiss_search(faiss: Any, device: torch.device) -> CandidateSearch:
    if device.type != "cuda":
        return FaissRangeSearch(faiss)
    if hasattr(faiss, "knn_gpu") and faiss.get_num_gpus() > 0:
        return faiss_on_gpu(faiss, device)
    log.warning(
        "search.backend=faiss, but the installed FAISS is built for CPUs only: searching on the CPU"
        " (`pip uninstall faiss-cpu && pip install faiss-gpu`, or search.backend=torch, uses %s)",
        device,
    )
    return FaissRangeSearch(faiss)

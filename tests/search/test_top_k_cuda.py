"""The search on a GPU, against the exact reference and the CPU: a real one where there is one, else a simulated one.

Needs nothing that a bare GPU machine may lack.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balance.errors import UserError
from balance.records import Float32
from balance.runtime.threads import Workspace
from balance.search import candidates, sizes, streaming
from balance.search.config import Backend, SearchConfig
from balance.search.cosine_bound import CosineBound
from balance.search.ranges import kept_search
from balance.search.sizes import ROWS_MULTIPLE, Sizes, usual_sizes
from balance.search.top_k import ArrayVectors, search
from tests.search_reference import crowded, midpoints, reference
from tests.simulated_cuda import cuda, simulated, tensor_core

__all__ = ["cuda"]  # a fixture

CPU = torch.device("cpu")
TORCH, FAISS = SearchConfig(backend=Backend.torch), SearchConfig(backend=Backend.faiss)


@pytest.fixture
def faiss_gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """FAISS for GPUs, or what stands in for it: the same call, computed by torch on the current device."""
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):  # of a build for CPUs
        for name, value in {
            "knn_gpu": knn_gpu,
            "StandardGpuResources": object,
            "get_num_gpus": lambda: torch.cuda.device_count(),
        }.items():
            monkeypatch.setattr(faiss, name, value, raising=False)
        monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", types.ModuleType("faiss.contrib.torch_utils"))
    return faiss  # type: ignore[no-any-return]


def knn_gpu(
    resources: object, xq: torch.Tensor, xb: torch.Tensor, k: int, *, metric: int, device: int
) -> tuple[torch.Tensor, torch.Tensor]:
    for matrix in (xq, xb):
        assert matrix.is_contiguous()
        assert matrix.dtype == torch.float32
        assert matrix.device.index == device == torch.cuda.current_device(), "FAISS would use another device's stream"
    assert k <= min(2048, len(xb))
    scores, rows = (xq @ xb.t()).topk(k, dim=1)
    return scores, rows


def check(seeds: Float32, pool: Float32, k: int, config: SearchConfig, device: torch.device, rows: int | None) -> None:
    found = search(seeds, ArrayVectors(pool), k, config, device=device, block_rows=rows)
    wanted, values = reference(seeds, pool, k)
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(found[1], values)


@pytest.mark.usefixtures("faiss_gpu")
@pytest.mark.parametrize("config", [SearchConfig(), TORCH, FAISS], ids=["auto", "torch", "faiss"])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.996, 0.999999])
def test_cuda_equals_the_reference(config: SearchConfig, cosine: float, cuda: torch.device) -> None:
    vectors = crowded(330, 40, cosine, seed=19)
    vectors[100:110] = vectors[0]
    vectors[120:124] = 0
    vectors[5] *= -1
    if config is FAISS:
        assert isinstance(candidates.choose(Backend.faiss, cuda)[0], candidates.FaissKnnSearch)
    for block_rows in (None, 23, 128):
        check(vectors[:12], vectors[12:], 40, config, cuda, block_rows)


@pytest.mark.usefixtures("faiss_gpu")
@pytest.mark.parametrize("config", [TORCH, FAISS], ids=["torch", "faiss"])
def test_cuda_equals_the_cpu(config: SearchConfig, cuda: torch.device) -> None:
    """K beyond the 2,048 at which FAISS's GPU search ends, and a pool of many blocks."""
    vectors = crowded(9050, 16, 0.9, seed=20)
    seeds, pool = vectors[:50], ArrayVectors(vectors[50:])
    for k, block_rows in ((100, 1000), (3000, None)):
        wanted = search(seeds, pool, k, TORCH, device=CPU)
        found = search(seeds, pool, k, config, device=cuda, block_rows=block_rows)
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])


def test_zero_seeds_and_equal_clips_on_cuda(cuda: torch.device) -> None:
    equal = np.tile(crowded(1, 9, 0.5, seed=13), (300, 1))
    zeros = np.zeros((2, 9), dtype=np.float32)
    for k in (3, 302):  # with 3, more of a block are as good as there is room for
        check(np.concatenate([equal[:2], zeros]), np.concatenate([equal, zeros]), k, TORCH, cuda, 100)


def test_midpoints_and_odd_lengths_on_cuda(cuda: torch.device) -> None:
    """What is summed again exactly, and lengths whose inverse float32 does not hold."""
    check(*midpoints(), 100, TORCH, cuda, 90)
    rng = np.random.default_rng(13)
    tiny = (rng.standard_normal((60, 9)) * 1e-41).astype(np.float32)
    huge = (rng.standard_normal((60, 9)) * 1e37).astype(np.float32)
    check(huge[:5], np.concatenate([huge, tiny, -huge]), 150, TORCH, cuda, 70)


ADDERS = [(4, 0), (8, 1), (16, 0), (16, 2), (32, 0)]  # those of V100 (4), A100 (8) and H100 (16) and coarser ones


@pytest.mark.parametrize(("width", "spare_bits"), ADDERS)
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.996, 0.999999])
def test_the_adders_of_tensor_cores(width: int, spare_bits: int, cosine: float) -> None:
    """Sums that are cut where they are added: the bound holds, and so does the result."""
    vectors = crowded(212, 40, cosine, seed=19)
    vectors[50:55] = vectors[0]
    vectors[60:62] = 0
    vectors[70:72] *= -1
    with simulated(matmul=tensor_core(width, spare_bits)):
        check(vectors[:12], vectors[12:], 30, TORCH, torch.device("cuda", 1), 64)


def cut_in_every_sum() -> Float32:
    """A vector of length 2¹⁷ of 13,000 numbers of 11 bits, so float16 holds its unit vector exactly; of nearly all
    squares a sum near 1 drops more than 0.9 of its last bit, 2⁻²⁴."""
    allowed = [x for x in range(1024, 1301) if x * x % 1024 > 920]
    row = np.random.default_rng(0).choice(allowed, 12_500).tolist()
    rest = 2**34 - sum(x * x for x in row)
    while rest:
        row.append(min(2047, math.isqrt(rest)))
        rest -= row[-1] ** 2
    return np.array(row, dtype=np.float32)


@pytest.mark.parametrize(("width", "spare_bits"), ADDERS)
def test_the_bound_covers_sums_that_are_always_cut(width: int, spare_bits: int) -> None:
    """The worst for it: no rounding error of the numbers hides that of the sums, and none makes up for another."""
    row = torch.from_numpy(cut_in_every_sum())[None]
    dim = row.shape[1]
    assert (row.double() ** 2).sum() == 2**34
    bound = CosineBound(torch.zeros(dim).double(), 1.0, torch.float16, Workspace(CPU))
    seeds, constants = bound.seeds(row.double())
    pool, _ = bound.pool(row, torch.empty(1, dim).double(), torch.empty(1).double())
    assert torch.equal(seeds[:, :dim].float(), row / 2**17)
    with candidates._sums_in_float32():
        product = tensor_core(width, spare_bits)
        assert float(product(seeds[:, :dim], pool[:, :dim].t())) < 1  # cut indeed
        assert float(product(seeds, pool.t())) + float(constants) >= 1


@pytest.mark.parametrize("allowed", [True, False])
def test_the_float16_switch_is_given_back(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is off in every product of the search: the model of the adders would keep its sums in float16."""
    seen = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction)
        return a.float() @ b.float()

    before = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = allowed
    try:
        vectors = crowded(50, 8, 0.5, seed=1)
        with simulated(matmul=product):
            # With K the whole pool there is no guess, whose product need not be exact.
            check(vectors[:5], vectors[5:], 45, TORCH, torch.device("cuda", 0), 20)
        assert set(seen) == {False}
        assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is allowed
    finally:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = before


class Counted(ArrayVectors):
    """Remembers how many rows were read at once."""

    def __init__(self, rows: Float32) -> None:
        super().__init__(rows)
        self.reads: list[int] = []

    def read(self, start: int, stop: int) -> Float32:
        self.reads.append(stop - start)
        return super().read(start, stop)


def test_sizes_follow_what_is_free() -> None:
    """And with few dims a block of the usual bytes would have more pairs than CUDA numbers."""
    for free_bytes in (64 << 20, 1 << 30, 80 << 30):
        for dim in (8, 512):
            with simulated(memory_bytes=free_bytes):
                first_pass = candidates.TorchSearch(torch.device("cuda", 1))
                usual = usual_sizes(22_160, 2_041_789, dim, first_pass)
            pairs = usual.block_rows * 22_160
            assert 2 * pairs < 2**31 or usual.block_rows == ROWS_MULTIPLE
            assert 4 * pairs <= free_bytes // 2 or usual.block_rows == ROWS_MULTIPLE
            assert usual.rescore_pairs * 100 <= free_bytes // 8
            assert usual.new_pairs * 80 <= free_bytes // 8
            assert usual.sample_rows * 14 * dim <= free_bytes // 8


def test_the_usual_sizes_fit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    vectors = crowded(9100, 8, 0.5, seed=23)
    seeds, pool = vectors[:1100], Counted(vectors[1100:])
    found = search(seeds, pool, 5, TORCH, device=CPU)
    with simulated(memory_bytes=16 << 20) as machine:
        pool.reads.clear()
        again = search(seeds, pool, 5, TORCH, device=torch.device("cuda", 1))
        assert machine.peak_bytes[1] > 5 << 20
    assert max(pool.reads[1:]) < 2000
    assert "out of memory" not in caplog.text
    np.testing.assert_array_equal(again[0], found[0])
    np.testing.assert_array_equal(again[1], found[1])


def test_out_of_memory_halves_the_block(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives back the work space of the whole one."""
    monkeypatch.setattr(sizes, "SAMPLE_ROWS_GPU", 256)
    vectors = crowded(2040, 64, 0.9, seed=21)
    seeds, pool, device = vectors[:40], vectors[40:], torch.device("cuda", 1)
    caplog.set_level(logging.INFO)

    class Watched(ArrayVectors):
        def read(self, start: int, stop: int) -> Float32:
            used.setdefault(stop - start, machine.used_bytes[1])  # of the first: later ones are read ahead
            return super().read(start, stop)

    with simulated() as machine:
        used: dict[int, int] = {}
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 36, 1 << 36))
        check(seeds, pool, 50, TORCH, device, 1000)
        assert "out of memory" not in caplog.text
        machine.memory_bytes = int(0.8 * machine.peak_bytes[1])
        found = search(seeds, Watched(pool), 50, TORCH, device=device, block_rows=1000)
    assert "going on with blocks of 500 rows" in caplog.text
    assert "blocks of 250 rows" not in caplog.text
    assert used[500] <= used[1000]
    np.testing.assert_array_equal(found[0], reference(seeds, pool, 50)[0])


def test_no_memory_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = crowded(140, 64, 0.9, seed=21)
    with simulated(memory_bytes=30_000), pytest.raises(UserError, match="cuda:1 has too little free memory") as error:
        search(vectors[:40], ArrayVectors(vectors[40:]), 50, TORCH, device=torch.device("cuda", 1))
    assert "\n" not in str(error.value)


def test_faiss_out_of_memory_halves_the_block(
    faiss_gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cuda: torch.device
) -> None:
    """FAISS says it by a RuntimeError of its own; another error is not taken for it."""
    original = faiss_gpu.knn_gpu
    message = "StandardGpuResources: alloc fail type FlatData dev 1 size 99 bytes (cudaMalloc error out of memory [2])"

    def limited(resources: object, xq: Any, xb: Any, k: int, **options: Any) -> Any:
        if len(xb) > 300:
            raise RuntimeError(message)
        return original(resources, xq, xb, k, **options)

    monkeypatch.setattr(faiss_gpu, "knn_gpu", limited)
    caplog.set_level(logging.INFO)
    vectors = crowded(1020, 16, 0.9, seed=21)
    check(vectors[:20], vectors[20:], 50, FAISS, cuda, 1000)
    assert "going on with blocks of 250 rows" in caplog.text
    message = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        check(vectors[:20], vectors[20:], 50, FAISS, cuda, 1000)


@pytest.mark.usefixtures("faiss_gpu")
@pytest.mark.parametrize("config", [TORCH, FAISS], ids=["torch", "faiss"])
def test_all_work_is_on_the_device_that_was_asked_for(config: SearchConfig) -> None:
    vectors = crowded(220, 16, 0.9, seed=22)
    with simulated(3) as machine:
        check(vectors[:20], vectors[20:], 30, config, torch.device("cuda", 2), 50)
        assert machine.peak_bytes[:2] == [0, 0]
        assert machine.current == 0
    assert machine.used_bytes == [0, 0, 0]


def test_the_host_waits_a_few_times_per_block() -> None:
    """For whether lengths are ordinary, the groups and the pairs that reach, those near a midpoint, and a buffer that
    has long been copied; by line of the source where it is more than said here."""
    vectors = crowded(4020, 16, 0.5, seed=24)
    machine_device = torch.device("cuda", 0)

    def waits(num_pool: int) -> Any:
        pool = ArrayVectors(vectors[20:][:num_pool])
        with simulated() as machine:
            search(vectors[:20], pool, 30, TORCH, device=machine_device, block_rows=80)
        assert all(contiguous for _, contiguous, _ in machine.copies)
        assert [pinned for _, _, pinned in machine.copies[2:]] == [True] * (num_pool // 80)  # after seeds and sample
        return machine.syncs

    few, many = waits(2000), waits(4000)
    assert sum(few.values()) <= 25 * 5 + 15
    many.subtract(few)
    assert sum(many.values()) <= 25 * 5, many


def test_a_block_is_read_while_the_one_before_is_searched() -> None:
    """Beside the thread that searches, one block ahead of it, from the second on."""
    vectors = crowded(420, 16, 0.5, seed=24)
    read_in: list[tuple[int, str]] = []

    class Watched(ArrayVectors):
        def read(self, start: int, stop: int) -> Float32:
            read_in.append((start, threading.current_thread().name.split("_")[0]))
            return super().read(start, stop)

    with simulated():
        search(vectors[:20], Watched(vectors[20:]), 30, TORCH, device=torch.device("cuda", 1), block_rows=100)
    here = threading.current_thread().name
    assert read_in == [(0, here), (0, here), *((start, "pool reader") for start in (100, 200, 300))]


def test_what_a_reader_meets_is_raised_by_the_search() -> None:
    vectors = crowded(420, 16, 0.5, seed=24)

    class Torn(ArrayVectors):
        def read(self, start: int, stop: int) -> Float32:
            if threading.current_thread() is not threading.main_thread():
                raise UserError("part-3.arrow became shorter while it was read")
            return super().read(start, stop)

    with simulated(), pytest.raises(UserError, match="became shorter"):
        search(vectors[:20], Torn(vectors[20:]), 30, TORCH, device=torch.device("cuda", 1), block_rows=100)


def test_a_search_goes_on_where_it_was_interrupted(
    cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streaming, "SAVE_AFTER_S", 0.0)
    monkeypatch.setattr(streaming, "GROUP_ROWS", 100)
    monkeypatch.setattr(streaming, "usual_sizes", lambda *_: Sizes(4096, 4096, 50, 1000, 1000))
    caplog.set_level(logging.INFO)
    vectors = crowded(1020, 16, 0.9, seed=25)

    class Breaks(Counted):
        def read(self, start: int, stop: int) -> Float32:
            if len(self.reads) > 9:
                raise OSError("unplugged")
            return super().read(start, stop)

    with pytest.raises(OSError, match="unplugged"):
        kept_search(tmp_path, "key", ArrayVectors(vectors[:20]), Breaks(vectors[20:]), 30, TORCH, device=cuda)
    found = kept_search(tmp_path, "key", ArrayVectors(vectors[:20]), ArrayVectors(vectors[20:]), 30, TORCH, device=cuda)
    assert "goes on at clip" in caplog.text
    np.testing.assert_array_equal(found[0][:, :30], reference(vectors[:20], vectors[20:], 30)[0])

"""The search on a GPU, against the exact reference and the CPU. Needs nothing that a bare GPU machine may lack."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from balance.search import candidates
from balance.search.config import Backend, SearchConfig
from balance.search.top_k import ArrayVectors, search
from tests.search_reference import crowded, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", [Backend.auto, Backend.torch])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.996, 0.999999])
def test_cuda_equals_the_reference(backend: Backend, cosine: float) -> None:
    vectors = crowded(530, 40, cosine, seed=19)
    vectors[100:110] = vectors[0]
    vectors[120:124] = 0
    seeds, pool = vectors[:30], vectors[30:]
    wanted, values = reference(seeds, pool, 60)
    device = torch.device("cuda")
    config = SearchConfig(backend=backend)
    for block_rows in (None, 7, 128):
        found = search(seeds, ArrayVectors(pool), 60, config, device=device, block_rows=block_rows)
        np.testing.assert_array_equal(found[0], wanted)
        np.testing.assert_array_equal(found[1], values)


@pytest.mark.parametrize("backend", [Backend.auto, Backend.torch])
def test_cuda_equals_the_cpu(backend: Backend) -> None:
    """K beyond the 2,048 at which FAISS's GPU search ends, and a pool of many blocks."""
    vectors = crowded(70_200, 128, 0.9, seed=20)
    seeds, pool = vectors[:200], ArrayVectors(vectors[200:])
    for k in (100, 3000):
        wanted = search(seeds, pool, k, SearchConfig(backend=Backend.torch), device=CPU)
        found = search(seeds, pool, k, SearchConfig(backend=backend), device=torch.device("cuda"))
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])


def test_cuda_blocks_follow_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with few dims a block of the usual bytes would have more pairs than CUDA numbers."""
    vectors = crowded(600_020, 8, 0.5, seed=23)
    seeds, pool = vectors[:5000], ArrayVectors(vectors[20:])
    config, device = SearchConfig(backend=Backend.torch), torch.device("cuda")
    found = search(seeds, pool, 5, config, device=device)
    reads: list[int] = []
    original = ArrayVectors.read

    def read(self: ArrayVectors, start: int, stop: int) -> object:
        reads.append(stop - start)
        return original(self, start, stop)

    monkeypatch.setattr(ArrayVectors, "read", read)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (64 << 20, 1 << 37))
    again = search(seeds, pool, 5, config, device=device)
    assert max(reads) <= (64 << 20) // 2 // (4 * 4096)
    np.testing.assert_array_equal(again[0], found[0])
    np.testing.assert_array_equal(again[1], found[1])


def test_cuda_out_of_memory_halves_the_block(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    vectors = crowded(2020, 64, 0.9, seed=21)
    original = candidates.TorchSearch.find

    def find(self: candidates.TorchSearch, bound: object, seeds: object, pool: torch.Tensor, *rest: object) -> object:
        if len(pool) > 300:
            raise torch.cuda.OutOfMemoryError
        return original(self, bound, seeds, pool, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates.TorchSearch, "find", find)
    caplog.set_level(logging.INFO)
    config = SearchConfig(backend=Backend.torch)
    found = search(vectors[:20], ArrayVectors(vectors[20:]), 50, config, device=torch.device("cuda"))
    assert "going on with blocks of 250 rows" in caplog.text
    np.testing.assert_array_equal(found[0], reference(vectors[:20], vectors[20:], 50)[0])

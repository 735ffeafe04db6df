"""The search against an exact reference: float64 sums by numpy, redone with math.fsum wherever rounding is unsure."""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balance.errors import UserError
from balance.records import Float32
from balance.runtime import files
from balance.runtime.threads import Workspace
from balance.search import candidates, rescore, running, sizes, streaming, top_k
from balance.search.config import Backend, SearchConfig
from balance.search.cosine_bound import CosineBound
from balance.search.ranges import kept_search
from balance.search.top_k import ArrayVectors, search
from tests.paths import REPOSITORY
from tests.search_reference import crowded, midpoints, reference

CPU = torch.device("cpu")
BACKENDS = [Backend.torch, Backend.faiss]


def check(seeds: Float32, pool: Float32, k: int, backend: Backend, block_rows: int | None = None) -> None:
    config = SearchConfig(backend=backend)
    positions, similarities = search(seeds, ArrayVectors(pool), k, config, device=CPU, block_rows=block_rows)
    assert positions.dtype == np.int32
    assert similarities.dtype == np.float32
    wanted, values = reference(seeds, pool, k)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_array_equal(similarities, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.996, 0.999999])
@pytest.mark.parametrize(("num_seeds", "num_pool", "dim", "k"), [(7, 300, 16, 10), (1, 1, 3, 1), (1, 90, 5, 90)])
def test_grid(backend: Backend, cosine: float, num_seeds: int, num_pool: int, dim: int, k: int) -> None:
    vectors = crowded(num_seeds + num_pool, dim, cosine, seed=1)
    check(vectors[:num_seeds], vectors[num_seeds:], k, backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cosine", [0.0, 0.996, 0.9999999])
@pytest.mark.parametrize("k", [40, 400])
def test_every_first_pass(dtype: torch.dtype, cosine: float, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA and CPUs with and without bfloat16 would do, with far outliers that leave float16's range; with K the
    whole pool no seed has a guess, and thresholds are not positive."""
    monkeypatch.setattr(candidates, "first_pass_dtype", lambda device: dtype)
    vectors = crowded(420, 32, cosine, seed=22)
    vectors[50:54] = 0
    vectors[60:64] *= -1
    vectors[70:74] = np.random.default_rng(0).standard_normal((4, 32))
    vectors[5] *= -1
    check(vectors[:20], vectors[20:], k, Backend.torch, 100)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block_rows", [1, 2, 7, 64, 199, 200])
def test_block_sizes(backend: Backend, block_rows: int) -> None:
    vectors = crowded(212, 24, 0.9, seed=2)
    vectors[50:60] = vectors[0]
    vectors[70:74] = 0
    check(vectors[:12], vectors[12:], 20, backend, block_rows)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_small_integers(data: st.DataObject) -> None:
    """Small integers: ties, duplicates, opposite and zero vectors, exact midpoints."""
    num_seeds = data.draw(st.integers(1, 4))
    num_pool = data.draw(st.integers(1, 40))
    dim = data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, num_pool))
    block_rows = data.draw(st.integers(1, num_pool))
    numbers = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    rows = data.draw(st.lists(numbers, min_size=num_seeds + num_pool, max_size=num_seeds + num_pool))
    vectors = np.array(rows, dtype=np.float32)
    for backend in BACKENDS:
        check(vectors[:num_seeds], vectors[num_seeds:], k, backend, block_rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosines_at_midpoints(backend: Backend) -> None:
    check(*midpoints(), 100, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_ties(backend: Backend) -> None:
    """Copies of a few vectors, each with one number moved by one float32 unit."""
    rng = np.random.default_rng(3)
    pool = np.repeat(crowded(3, 48, 0.9, seed=3), 150, axis=0)
    at = rng.integers(0, 48, len(pool))
    rows = np.arange(len(pool))
    pool[rows, at] = np.nextafter(pool[rows, at], rng.choice([-np.inf, np.inf], len(pool)).astype(np.float32))
    check(crowded(5, 48, 0.9, seed=4), rng.permutation(pool), 200, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_that_favours_the_wrong_ones(backend: Backend) -> None:
    """In bfloat16 the best neighbours lose half a unit in every number, the others win half a unit."""
    dim, rng = 64, np.random.default_rng(5)
    seed = np.where(np.arange(dim) % 2 == 0, 1.0, -1.0)
    pool = np.empty((4000, dim))
    pool[:2000] = seed * (1 + 2**-8 - 2**-20)  # rounds down to 1
    pool[2000:] = seed * (1 + 2**-8 + 2**-20)  # rounds up to 1 + 2^-7
    pool *= 1 + 2.0**-9 * rng.standard_normal(pool.shape)
    pool = rng.permutation(np.concatenate([pool, -pool[:2000]])).astype(np.float32)
    check(seed[None].astype(np.float32), pool, 300, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cosine", [0.0, 0.9, 0.996, 0.9999999])
def test_bound_holds(dtype: torch.dtype, cosine: float) -> None:
    """U is never below the cosine, and above it by little: at most the rounding of two vectors."""
    vectors = torch.from_numpy(crowded(1300, 96, cosine, seed=6)).double()
    vectors[60] = 0
    vectors[70] *= -1
    lengths = rescore.lengths_of(vectors)
    units = vectors / lengths.clamp(min=1e-300)[:, None]
    bound = CosineBound(units.mean(dim=0), 16.0 if cosine > 0.99 else 1.0, dtype, Workspace(CPU))
    seeds, constants = bound.seeds(vectors[:50])
    wide, measured = torch.empty(1250, 96).double(), torch.empty(1250).double()
    pool, ordinary = bound.pool(vectors[50:].float(), wide, measured)
    assert not ordinary  # one of them is zero
    assert torch.equal(wide, vectors[50:])
    assert torch.equal(measured, lengths[50:])
    upper = (seeds.float() @ pool.float().t()).double() / bound.scale**2 + constants[:, None]
    cosines = units[:50] @ units[50:].t()
    slack = upper - cosines
    assert slack.min() > -1e-7 * (1 - cosine)  # this product in float32 is itself not exact
    ordinary = torch.ones(1250, dtype=torch.bool)
    ordinary[[10, 20]] = False  # far from the mean, so with a wide bound
    residual = torch.linalg.vector_norm(units - units.mean(dim=0), dim=1)
    product = residual[:50, None] * residual[None, 50:]
    allowed = (3 * torch.finfo(dtype).eps + 2e-4) * product + 1e-7
    assert (slack <= allowed)[:, ordinary].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_misleading_sample(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sampled rows are the nearest ones: the guess is too high, and the seeds are searched again."""
    monkeypatch.setattr(sizes, "SAMPLE_ROWS_CPU", 64)
    monkeypatch.setattr(streaming, "SAMPLE_PIECES", 1)
    pool = crowded(1000, 20, 0.3, seed=7)
    pool[:64] = crowded(64, 20, 0.99, seed=8)
    caplog.set_level(logging.INFO)
    check(crowded(6, 20, 0.99, seed=9), pool, 100, backend, 128)
    assert "6 of 6 seeds are searched again" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_all_in_one_place(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's whole top K in one short run of the pool: more of a block than the backend expects."""
    monkeypatch.setattr(sizes, "SAMPLE_ROWS_CPU", 512)
    pool = crowded(3000, 20, 0.3, seed=10)
    pool[1000:1200] = crowded(200, 20, 0.99, seed=11)
    check(crowded(4, 20, 0.99, seed=12), pool, 150, backend)


@pytest.mark.parametrize("cosine", [0.0, 0.9, 0.999999])
def test_lists_of_the_nearest(cosine: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search that FAISS has on a GPU, here with its lists from the CPU; they end after 40."""
    import faiss

    def knn(seeds: torch.Tensor, pool: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert k <= candidates.FAISS_MOST_ON_GPU
        scores, rows = faiss.knn(seeds.numpy(), pool.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    monkeypatch.setattr(candidates, "FAISS_MOST_ON_GPU", 40)
    monkeypatch.setattr(candidates, "choose", lambda *_: (candidates.FaissKnnSearch(knn, CPU), "lists"))
    seeds, pool = crowded(9, 20, cosine, seed=30), crowded(3000, 20, cosine, seed=31)
    pool[1000:1200] = crowded(200, 20, cosine / 2 + 0.499, seed=32)
    pool[2000:2100] = pool[7]
    for k, block_rows in ((1, None), (30, 700), (150, None), (150, 64), (2990, 1000)):
        check(seeds, pool, k, Backend.faiss, block_rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_rescored_in_several_runs_of_seeds(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs at once, little room for new keys, small copies: what large searches do with many pairs."""
    monkeypatch.setattr(sizes, "RESCORE_PAIRS", 100)
    monkeypatch.setattr(running, "_MOST_ROOM", 70)
    monkeypatch.setattr(rescore, "TABLE_BYTES", 4000)
    pool = crowded(900, 20, 0.5, seed=33)
    pool[300:600] = pool[0]
    for k in (3, 200, 900):
        check(crowded(30, 20, 0.5, seed=34), pool, k, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_that_is_the_pool_misjudges_no_seed(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check(crowded(200, 64, 0.5, seed=35), crowded(3000, 64, 0.5, seed=36), 512, backend)
    assert "searched again" not in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_pools(backend: Backend) -> None:
    rng = np.random.default_rng(13)
    equal = np.tile(crowded(1, 9, 0.5, seed=13), (300, 1))
    check(equal[:2], equal, 70, backend)
    check(np.zeros((2, 9), dtype=np.float32), equal, 7, backend)
    check(equal[:2], np.zeros((50, 9), dtype=np.float32), 50, backend)
    tiny = (rng.standard_normal((60, 9)) * 1e-41).astype(np.float32)  # subnormal
    check(tiny[:5], tiny, 30, backend)
    huge = (rng.standard_normal((60, 9)) * 1e37).astype(np.float32)
    check(huge[:5], np.concatenate([huge, tiny, -huge]), 150, backend)
    check(np.eye(9, dtype=np.float32), np.tile(np.eye(9, dtype=np.float32), (20, 1)), 180, backend)


def test_zero_vectors_among_negative_similarities() -> None:
    """0 is ordered like any other value, above negative ones."""
    pool = np.array([[-1, 0], [0, 0], [-1, 1], [1, 0]], dtype=np.float32)
    seeds = np.array([[1, 0], [0, 0]], dtype=np.float32)
    positions, similarities = search(seeds, ArrayVectors(pool), 4, SearchConfig(), device=CPU)
    assert positions.tolist() == [[3, 1, 2, 0], [0, 1, 2, 3]]
    assert similarities[0].tolist() == [1.0, 0.0, float(np.float32(-math.sqrt(0.5))), -1.0]
    assert similarities[1].tobytes() == bytes(16)  # not a -0 among them


def test_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of keys, 16 bytes x seeds x k, is let go before the results are used, not when garbage is collected."""
    kept: weakref.WeakSet[running.Running] = weakref.WeakSet()

    def watched(*args: Any) -> running.Running:
        kept.add(made := original(*args))
        return made

    original = running.Running
    monkeypatch.setattr(streaming, "Running", watched)
    vectors = crowded(50, 6, 0.5, seed=40)
    gc.disable()
    try:
        search(vectors[:5], ArrayVectors(vectors[5:]), 4, SearchConfig(), device=CPU)
        assert not kept
    finally:
        gc.enable()


def test_user_errors() -> None:
    pool = crowded(20, 4, 0.5, seed=1)
    with pytest.raises(UserError, match=r"k=21 .* 20 pool clips"):
        search(pool[:2], ArrayVectors(pool), 21, SearchConfig(), device=CPU)
    with pytest.raises(UserError, match="no seeds"):
        search(pool[:0], ArrayVectors(pool), 2, SearchConfig(), device=CPU)
    with pytest.raises(UserError, match="3 dimensions, the pool's 4"):
        search(pool[:2, :3], ArrayVectors(pool), 2, SearchConfig(), device=CPU)
    pool[13, 2] = np.nan
    named = ArrayVectors(pool, "part-7.arrow, id {}".format)
    with pytest.raises(UserError, match=r"part-7.arrow, id 13: .* not finite"):
        search(pool[:2], named, 2, SearchConfig(), device=CPU)
    with pytest.raises(UserError, match=r"part-7.arrow, id 13: .* not finite"):
        search(pool[:2] * 0, named, 2, SearchConfig(), device=CPU)
    with pytest.raises(UserError, match="id 13"):
        top_k.load(named)
    pool[1, 0] = np.inf
    with pytest.raises(UserError, match="seeds, row 1"):
        search(pool[:2], ArrayVectors(pool[5:10]), 2, SearchConfig(), device=CPU)
    with pytest.raises(ValueError, match="k_cache=0"):
        SearchConfig(k_cache=0)


class Counted(ArrayVectors):
    """Remembers which blocks were read."""

    def __init__(self, rows: Float32) -> None:
        super().__init__(rows)
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> Float32:
        self.reads.append((start, stop))
        return super().read(start, stop)


def test_cache_slices_and_grows(tmp_path: Path) -> None:
    vectors = crowded(320, 12, 0.8, seed=14)
    seeds, pool = vectors[:20], Counted(vectors[20:])
    config = SearchConfig(k_cache=40)
    first = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 10, config, device=CPU)
    assert first[0].shape == (20, 40)
    assert (tmp_path / "neighbours" / "key.npz").exists()
    pool.reads.clear()
    again = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 25, config, device=CPU)
    assert pool.reads == []
    np.testing.assert_array_equal(again[0], first[0])
    larger = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 60, config, device=CPU)
    assert pool.reads
    assert larger[0].shape == (20, 60)
    np.testing.assert_array_equal(larger[0], reference(seeds, vectors[20:], 60)[0])
    pool.reads.clear()
    slice_ = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 10, config, device=CPU)
    assert pool.reads == []
    np.testing.assert_array_equal(slice_[1], first[1])
    other = kept_search(tmp_path, "other", ArrayVectors(seeds), pool, 300, config, device=CPU)
    assert pool.reads
    assert other[0].shape == (20, 300)
    assert sorted(path.name for path in (tmp_path / "neighbours").iterdir()) == ["key.npz", "other.npz"]


def test_a_result_with_any_flipped_bit_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever bit of the file is wrong: numpy alone takes shortened and shifted arrays for good ones."""
    vectors = crowded(9, 3, 0.8, seed=18)
    seeds, pool = vectors[:2], ArrayVectors(vectors[2:])

    def cached() -> top_k.Result:
        return kept_search(
            tmp_path, "key", ArrayVectors(seeds), pool, 3, SearchConfig(backend=Backend.torch), device=CPU
        )

    wanted = cached()
    path = tmp_path / "neighbours" / "key.npz"
    whole = path.read_bytes()
    bits = [*range(0, 8 * len(whole), 29), *range(8 * whole.index(b"NUMPY"), 8 * whole.index(b"\n"), 3)]
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        caplog.clear()
        found = cached()
        assert [array.tobytes() for array in found] == [array.tobytes() for array in wanted]
        assert path.read_bytes() == whole
        assert [
            record.message.count("computed anew") for record in caplog.records if record.levelname == "WARNING"
        ] == [1]


def test_a_result_of_other_shapes_is_computed_anew(tmp_path: Path) -> None:
    vectors = crowded(120, 12, 0.8, seed=15)
    wanted = reference(vectors[:20], vectors[20:], 10)
    path = tmp_path / "neighbours" / "key.npz"
    for positions, similarities in ((wanted[0], wanted[1][:, :9]), (wanted[0][:19], wanted[1][:19])):
        files.write_npz(path, {"positions": positions, "similarities": similarities})
        config = SearchConfig(backend=Backend.torch, k_cache=10)
        found = kept_search(
            tmp_path, "key", ArrayVectors(vectors[:20]), ArrayVectors(vectors[20:]), 10, config, device=CPU
        )
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])


def test_a_damaged_cache_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = crowded(120, 12, 0.8, seed=15)
    seeds, pool = vectors[:20], Counted(vectors[20:])
    wanted = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 10, SearchConfig(), device=CPU)
    path = tmp_path / "neighbours" / "key.npz"
    whole = path.read_bytes()
    other = bytearray(whole)
    other[whole.index(b"PK\x01\x02") + 10] ^= 4  # a compression method that does not exist
    for damaged in (whole[:-200], b"", bytes(other)):
        caplog.clear()
        path.write_bytes(damaged)
        again = kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 10, SearchConfig(), device=CPU)
        np.testing.assert_array_equal(again[0], wanted[0])
        assert "computed anew" in caplog.text
        assert path.read_bytes() == whole
    (path.parent / "tmp-key-0.npz").write_bytes(whole[:100])  # of a writer that was killed
    np.savez(path, positions=wanted[0])
    np.testing.assert_array_equal(
        kept_search(tmp_path, "key", ArrayVectors(seeds), pool, 10, SearchConfig(), device=CPU)[0], wanted[0]
    )
    assert [path.name for path in path.parent.iterdir()] == ["key.npz"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = crowded(120, 12, 0.8, seed=16)
    (tmp_path / "neighbours").write_text("a file where the folder should be")
    found = kept_search(
        tmp_path, "key", ArrayVectors(vectors[:20]), ArrayVectors(vectors[20:]), 10, SearchConfig(), device=CPU
    )
    np.testing.assert_array_equal(found[0][:, :10], reference(vectors[:20], vectors[20:], 10)[0])
    assert "kept for this run alone" in caplog.text


SLOW_SEARCH = """
import json, logging, sys, time
from pathlib import Path
import numpy as np, torch
from balance.search import ranges, streaming, top_k
from balance.search.config import Backend, SearchConfig
from balance.search.cosine_bound import CosineBound

class Slow(top_k.ArrayVectors):
    reads = 0
    def read(self, start, stop):
        Slow.reads += 1
        if start:
            time.sleep(float(sys.argv[2]))
        return super().read(start, stop)

logging.basicConfig(level=logging.INFO)
streaming.GROUP_ROWS, streaming.SAVE_AFTER_S, top_k.WAIT_S = 100, 0, 0.05
folder = Path(sys.argv[1])
vectors = np.load(folder / "vectors.npy")
config = SearchConfig(backend=Backend.torch, k_cache=30)
original = ranges.search
ranges.search = lambda *args, **options: original(*args, **options, block_rows=50)
seeds = top_k.ArrayVectors(vectors[:20])
found = ranges.kept_search(
    folder / "cache", "key", seeds, Slow(vectors[20:]), 10, config, device=torch.device("cpu")
)
np.save(folder / f"{sys.argv[3]}.npy", found[0])
print(json.dumps({"reads": Slow.reads}))
"""


def slow_search(folder: Path, block_s: float, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_SEARCH, str(folder), str(block_s), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def slow_folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "vectors.npy", crowded(1020, 12, 0.8, seed=17))
    return tmp_path


def test_killed_and_resumed(slow_folder: Path) -> None:
    killed = slow_search(slow_folder, 0.2, "killed")
    state = slow_folder / "cache" / "neighbours" / "key.partial" / "state.npz"
    until = time.monotonic() + 60
    while not state.exists():
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (slow_folder / "cache" / "neighbours" / "key.lock").exists()  # stale: its process is dead
    resumed = slow_search(slow_folder, 0, "resumed")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert "goes on at clip" in err
    start = int(err.split("goes on at clip ")[1].split()[0])
    assert start >= 100
    assert json.loads(out)["reads"] == 1 + (1000 - start) // 50  # the sample, then only what was not done
    vectors = np.load(slow_folder / "vectors.npy")
    np.testing.assert_array_equal(np.load(slow_folder / "resumed.npy"), reference(vectors[:20], vectors[20:], 30)[0])
    assert not state.parent.exists()


def test_a_short_search_saves_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state of 91 MB, six times, cost more than the whole search."""
    written: list[Path] = []
    monkeypatch.setattr(files, "write_npz", lambda path, arrays: written.append(path))
    monkeypatch.setattr(streaming, "GROUP_ROWS", 100)
    vectors = crowded(1020, 12, 0.8, seed=17)
    config, pool = SearchConfig(backend=Backend.torch), ArrayVectors(vectors[20:])
    for save_after_s, num_saved in ((streaming.SAVE_AFTER_S, 0), (0.0, 9)):
        monkeypatch.setattr(streaming, "SAVE_AFTER_S", save_after_s)
        search(vectors[:20], pool, 5, config, device=CPU, scratch=tmp_path, block_rows=50)
        assert written == [tmp_path / "state.npz"] * num_saved


def test_two_jobs_search_once(slow_folder: Path) -> None:
    jobs = [slow_search(slow_folder, 0.1, "a"), slow_search(slow_folder, 0.1, "b")]
    done = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], done
    reads = sorted(json.loads(out)["reads"] for out, _ in done)
    assert reads == [0, 21]
    assert sum("another job searches" in err for _, err in done) == 1
    assert (slow_folder / "a.npy").read_bytes() == (slow_folder / "b.npy").read_bytes()


STREAMED = """
import os, sys
from pathlib import Path
import numpy as np, torch
from balance.search.config import Backend, SearchConfig
from balance.search.cosine_bound import CosineBound
from balance.search.top_k import search
from balance.data.flat_vectors import FlatVectors

dim, num_seeds, k = 512, 64, 100
pool = FlatVectors(os.open(sys.argv[1], os.O_RDONLY), 0, (os.path.getsize(sys.argv[1]) // (4 * dim), dim), "", None)
seeds = pool.read(0, num_seeds)
config = SearchConfig(backend=Backend(sys.argv[2]))
positions, similarities = search(seeds, pool, k, config, device=torch.device("cpu"))
assert (positions[:, 0] <= np.arange(num_seeds)).all() and (similarities[:, 0] == 1).all()
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(peak, num_seeds * (dim + k) * 16 + 2**30)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_memory_of_a_pool_of_3_gb(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 5 << 30:
        pytest.skip("less than 5 GiB free")
    path = tmp_path / "pool.f32"
    rows = crowded(1 << 15, 512, 0.9, seed=18)
    try:
        with path.open("wb") as file:
            for i in range(46):
                np.roll(rows, i, axis=1).tofile(file)
        assert path.stat().st_size > 3e9
        for backend in BACKENDS:
            command = [sys.executable, "-c", STREAMED, str(path), backend.value]
            done = subprocess.run(command, capture_output=True, text=True, timeout=250)
            assert done.returncode == 0, done.stderr
            peak, allowed = map(int, done.stdout.split())
            assert peak <= allowed, f"{backend}: {peak / 2**20:.0f} MiB"
    finally:
        path.unlink()


def test_benchmark_runs() -> None:
    """`benchmarks/neighbours.py --tiny`: its independent reference finds nothing wrong."""
    script = REPOSITORY / "benchmarks" / "neighbours.py"
    done = subprocess.run([sys.executable, str(script), "--tiny"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["wrong_ids"] == 0
    assert {f"{name}_k{k}" for name in ("faiss_ratio", "torch_speedup") for k in (10, 50)} <= set(figures)

"""A search cut into ranges and slices: the same bytes as in one piece, resumable, of whatever vectors."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balance.embed.store import Store
from balance.embed.store_files import PartRows, write_part
from balance.engine.local import Processes
from balance.engine.seam import Place
from balance.errors import UserError
from balance.records import Facts, SomeVectors
from balance.search import ranges
from balance.search.config import Backend, SearchConfig
from balance.search.ranges import merged, plan_ranges, search_ranges
from balance.search.top_k import ArrayVectors, search

TORCH = SearchConfig(backend=Backend.torch)
HERE = Processes([Place(device="cpu", num_cores=1)])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SLICE_ROWS", 70)
    monkeypatch.setattr(ranges, "RANGE_SEEDS", 11)
    monkeypatch.setattr(ranges, "FAN_IN", 3)
    monkeypatch.setattr(ranges, "FOLDER_BYTES", 100_000)  # a few ranges at once


def vectors(count: int, *, dim: int = 24) -> Any:
    """With copies, so that similarities tie, and a zero vector."""
    rows = np.random.default_rng(5).standard_normal((count, dim)).astype(np.float32)
    rows[count // 2 :: 7] = rows[3]
    rows[5] = 0
    return rows


def write_store(folder: Path, rows: Any, part_rows: int = 90) -> Store:
    for start in range(0, len(rows), part_rows):
        some = rows[start : start + part_rows]
        names = [f"c{start + i}" for i in range(len(some))]
        n = len(some)
        facts = Facts(
            np.full(n, 16000, np.int32), np.full(n, 9, np.int64), np.zeros(n, np.float32), np.zeros((n, 20), np.uint8)
        )
        write_part(folder, f"{start:016x}", PartRows(names, names, some, facts), [], {})
    return Store(folder)


@pytest.mark.parametrize("k", [1, 40, 200])
def test_the_same_bytes_as_in_one_piece(tmp_path: Path, k: int) -> None:
    rows = vectors(840)
    seeds, pool = rows[:32], rows[32:]
    wanted = search(seeds, ArrayVectors(pool), k, TORCH, device=torch.device("cpu"))
    told: list[int] = []
    found = search_ranges(
        HERE,
        ArrayVectors(seeds),
        ArrayVectors(pool),
        k,
        TORCH,
        folder=tmp_path / "x",
        progress=lambda done, total: told.append(done),
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert told == sorted(told)
    assert told[-1] == len(pool)
    assert len(list((tmp_path / "x").glob("keys-*"))) == 3  # a file per seed range; what was merged is gone


def test_a_store_s_vectors_are_read_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    rows = vectors(500)
    store = write_store(tmp_path / "store", rows)
    order = np.random.default_rng(2).permutation(500)[:400]
    pool = SomeVectors(store.vectors(store.rows(store.ids.take(order))), np.arange(0, 400, 2))
    found = search_ranges(HERE, store.vectors(np.arange(20)), pool, 9, TORCH, folder=tmp_path / "x")
    wanted = search(store.vectors(np.arange(20)).read(0, 20), pool, 9, TORCH, device=torch.device("cpu"))
    assert [a.tobytes() for a in found] == [b.tobytes() for b in wanted]
    assert not list((tmp_path / "x").glob("*.f32"))


def test_some_vectors_of_a_store_travel_small_and_keep_rows_and_names(tmp_path: Path) -> None:
    rows = vectors(5000)
    store = write_store(tmp_path, rows, part_rows=1000)
    chosen = np.r_[1500:4500]
    there = pickle.loads(data := pickle.dumps(store.vectors(np.arange(5000)).portable(chosen)))
    assert len(data) < 2000
    at = store.rows(store.ids)
    here = store.vectors(at).take(chosen)
    assert there.shape == (3000, 24)
    assert there.read(10, 2990).tobytes() == here[10:2990].tobytes()
    assert there.name(7) == store.vectors(chosen).name(7)
    assert there.name(7).endswith(f"id {store.ids[1507]}")
    scattered = np.random.default_rng(1).permutation(5000)[:77]
    there = pickle.loads(pickle.dumps(store.vectors(np.arange(5000)).portable(scattered)))
    assert there.read(0, 77).tobytes() == store.vectors(scattered).read(0, 77).tobytes()


def test_keys_that_are_there_are_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vectors(700)
    arguments = (ArrayVectors(rows[:20]), ArrayVectors(rows[20:]), 5, TORCH)
    searched: list[int] = []
    real = ranges.search

    def failing(*args: Any, **options: Any) -> Any:
        searched.append(len(args[0]))
        if len(searched) == 13:
            raise OSError("stopped here")
        return real(*args, **options)

    monkeypatch.setattr(ranges, "search", failing)
    with pytest.raises(OSError, match="stopped here"):
        search_ranges(HERE, *arguments, folder=tmp_path)
    done = len(list(tmp_path.glob("keys-*")))
    assert done >= 1
    found = search_ranges(HERE, *arguments, folder=tmp_path)
    assert len(searched) == 2 * 10 + 1  # two ranges x ten slices, and the one that failed
    wanted = search(rows[:20], ArrayVectors(rows[20:]), 5, TORCH, device=torch.device("cpu"))
    assert found[0].tobytes() == wanted[0].tobytes()


def test_damaged_keys_are_an_error_and_searched_anew(tmp_path: Path) -> None:
    rows = vectors(300)
    arguments = (ArrayVectors(rows[:9]), ArrayVectors(rows[9:]), 5, TORCH)
    search_ranges(HERE, *arguments, folder=tmp_path)
    (file,) = tmp_path.glob("keys-*")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="run the same command again"):
        search_ranges(HERE, *arguments, folder=tmp_path)
    search_ranges(HERE, *arguments, folder=tmp_path)


def test_a_vector_that_is_not_finite_is_named_as_in_one_piece(tmp_path: Path) -> None:
    rows = vectors(300)
    rows[200, 3] = np.nan
    (tmp_path / "store").mkdir()
    store = write_store(tmp_path / "store", rows)
    pool = store.vectors(np.arange(20, 300))
    with pytest.raises(UserError, match="id c200: its vector holds a number that is not finite"):
        search_ranges(HERE, store.vectors(np.arange(20)), pool, 5, TORCH, folder=tmp_path / "x")
    with pytest.raises(UserError, match="row 180: its vector"):
        search_ranges(HERE, ArrayVectors(rows[:20]), ArrayVectors(rows[20:]), 5, TORCH, folder=tmp_path / "y")


def test_the_plan_bounds_a_worker_and_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    seeds, slices = plan_ranges(1_000_000, 100_000_000, 512, 100)
    assert seeds[0][0] == slices[0][0] == 0
    assert (seeds[-1][1], slices[-1][1]) == (1_000_000, 100_000_000)
    most = max(b - a for a, b in seeds)
    assert most * (14 * 512 + 8 * 200) <= ranges.RANGE_BYTES
    assert len(slices) <= ranges.MOST_SLICES
    assert len(plan_ranges(22_160, 2_000_000, 512, 512)[0]) == 1


def test_merging_keeps_the_least_keys() -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 50, (6, n)) for n in (3, 1, 7)]
    assert (merged(iter(pieces), 4) == np.sort(np.concatenate(pieces, axis=1), axis=1)[:, :4]).all()

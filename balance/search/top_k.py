"""Exact top-K by cosine: the same bytes on every backend, computed once and sliced afterwards.

In: seeds (S, dim) and the pool as `Vectors`. Out: positions and similarities (S, k) in the contract's order
(similarity descending, position ascending). Here: which backend, zero seeds, and the neighbours kept on disk;
streaming.py streams the pool, candidates.py finds pairs by the bound of cosine_bound.py, rescore.py computes their
similarities. Why no byte depends on the backend: docs/exact-search.md. The price of keeping max(k, k_cache) neighbours:
a small k costs what 512 cost, and 8 bytes per neighbour.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from balance.errors import UserError
from balance.records import Float32, Int32, Int64, Vectors
from balance.runtime import files, locks
from balance.search import candidates, rescore, streaming
from balance.search.config import SearchConfig

log = logging.getLogger(__name__)

WAIT_S = 1.0

Result = tuple[Int32, Float32]


class ArrayVectors:
    """`Vectors` over an array in memory; `read` gives a view (a search does not write into what it reads)."""

    def __init__(self, rows: Float32, names: Callable[[int], str] | None = None) -> None:
        self._rows = rows
        self._names = names
        self.shape: tuple[int, int] = (rows.shape[0], rows.shape[1])

    def read(self, start: int, stop: int) -> Float32:
        return self._rows[start:stop]

    def take(self, rows: Int64) -> Float32:
        return self._rows[rows]

    def name(self, row: int) -> str:
        return self._names(row) if self._names else f"row {row}"


def load(vectors: Vectors) -> Float32:
    """All vectors (n, dim), for seeds. UserError naming the first that is not finite."""
    rows = vectors.read(0, vectors.shape[0])
    streaming.check_finite(rescore.lengths_of(torch.from_numpy(rows).double()), vectors, 0)
    return rows


def search(
    seeds: Float32,
    pool: Vectors,
    k: int,
    config: SearchConfig,
    *,
    device: torch.device,
    scratch: Path | None = None,
    progress: streaming.Progress | None = None,
    block_rows: int | None = None,
) -> Result:
    """The exact top k of every seed.

    seeds: (S, dim) float32; pool: (N, dim); scratch: a folder of this very search for its resumable state, removed by
    the caller once the result is safe; progress(rows done, rows total); block_rows: pool rows read at once
    (default: the backend's). Returns positions in the pool (S, k) int32 and similarities (S, k) float32.
    UserError: no seeds, k larger than the pool, different dims, vectors that are not finite.
    """
    num_pool, dim = pool.shape
    if not len(seeds):
        raise UserError("there are no seeds whose neighbours could be searched")
    if seeds.shape[1] != dim:
        raise UserError(f"the seeds' vectors have {seeds.shape[1]} dimensions, the pool's {dim}: not from one encoder")
    if not 1 <= k <= num_pool:
        raise UserError(
            f"k={k} neighbours were asked for, but {num_pool} pool clips can be neighbours: type k={num_pool} or less"
        )
    streaming.check_finite(
        rescore.lengths_of(torch.from_numpy(seeds).double()), ArrayVectors(seeds, "seeds, row {}".format), 0
    )
    first_pass, line = candidates.choose(config.backend, device)
    log.info("%s", line)
    nonzero = seeds.any(axis=1)
    if nonzero.all():
        return rescore.from_keys(streaming.Search(seeds, pool, k, first_pass, scratch, progress, block_rows).run())
    # A zero seed has similarity 0 with every clip: the first k of the pool.
    found = None
    if nonzero.any():
        found = rescore.from_keys(
            streaming.Search(seeds[nonzero], pool, k, first_pass, scratch, progress, block_rows).run()
        )
    else:  # no search reads the pool, so look here whether all of it is finite
        for start in range(0, num_pool, streaming.SAMPLE_ROWS):
            rows = torch.as_tensor(pool.read(start, min(start + streaming.SAMPLE_ROWS, num_pool)))
            streaming.check_finite(rescore.lengths_of(rows.double()), pool, start)
    positions = np.tile(np.arange(k, dtype=np.int32), (len(seeds), 1))
    similarities = np.zeros(positions.shape, dtype=np.float32)
    if found:
        positions[nonzero], similarities[nonzero] = found
    return positions, similarities


def cached_search(
    cache_dir: Path,
    key: str,
    seeds: Float32,
    pool: Vectors,
    k: int,
    config: SearchConfig,
    *,
    device: torch.device,
    progress: streaming.Progress | None = None,
) -> Result:
    """`search` at max(k, k_cache), at most the pool, kept under `cache_dir`; of parallel jobs one searches.

    key: names everything that the result depends on (store fingerprint, seed and pool ids in order, exclusions) and
    is a file name. A kept result with fewer neighbours is computed anew and replaced, one with more is sliced.
    """
    wanted = min(max(k, config.k_cache), pool.shape[0])
    if k > wanted:
        return search(seeds, pool, k, config, device=device)  # raises: the pool is too small
    folder = cache_dir / "neighbours"
    path = folder / f"{key}.npz"
    shape = (len(seeds), wanted)
    said = False
    while (kept := _read_result(path, shape)) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = locks.acquire(folder / f"{key}.lock")
        except OSError as error:
            log.warning("the neighbours are kept for this run alone: %s", error)
            return search(seeds, pool, wanted, config, device=device, progress=progress)
        if lock is None:
            if not said:
                log.info("another job searches the same neighbours; waiting for %s", path)
                said = True
            time.sleep(WAIT_S)
            continue
        with lock:
            if (kept := _read_result(path, shape)) is not None:
                break
            scratch = folder / f"{key}.partial"
            result = search(seeds, pool, wanted, config, device=device, scratch=scratch, progress=progress)
            try:
                files.write_npz(path, {"positions": result[0], "similarities": result[1]})
            except OSError as error:
                log.warning("the neighbours are kept for this run alone: %s", error)
            shutil.rmtree(scratch, ignore_errors=True)
            return result
    return kept


def _read_result(path: Path, shape: tuple[int, int]) -> Result | None:
    """The first columns of a kept result; None if there is none, or one with too few columns."""
    arrays = files.read_npz(path)
    if arrays is None:
        return None
    positions, similarities = arrays["positions"], arrays["similarities"]
    if positions.shape[0] != shape[0] or positions.shape[1] < shape[1]:
        return None
    return np.ascontiguousarray(positions[:, : shape[1]]), np.ascontiguousarray(similarities[:, : shape[1]])

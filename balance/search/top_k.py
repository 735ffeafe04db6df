"""Exact top-K by cosine: the same bytes on every backend, computed once and sliced afterwards.

In: seeds (S, dim) and the pool as `Vectors`. Out: positions and similarities (S, k) in the contract's order
(similarity descending, position ascending). Here: which backend, zero seeds, and the neighbours kept on disk;
streaming.py streams the pool, candidates.py finds pairs by the bound of cosine_bound.py, rescore.py computes their
similarities. Why no byte depends on the backend: docs/exact-search.md. The price of keeping max(k, k_cache) neighbours:
a small k costs what 512 cost, and 8 bytes per neighbour.
"""

from __future__ import annotations

import contextlib
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
from balance.runtime.remote import AnyPath, RemotePath, Unreachable
from balance.runtime.wording import cause
from balance.search import candidates, streaming
from balance.search.config import SearchConfig

log = logging.getLogger(__name__)

WAIT_S = 1.0
_ROWS = 1 << 12

Result = tuple[Int32, Float32]
Find = Callable[[int, AnyPath | None], Result]  # of k, a folder for what resumes it; None where nothing can be written


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


def _sums(rows: Float32) -> torch.Tensor:
    """(n,) float64, not finite where a row is not."""
    return torch.as_tensor(rows).sum(dim=1, dtype=torch.float64)


def load(vectors: Vectors) -> Float32:
    """All vectors (n, dim), for seeds. UserError naming the first that is not finite."""
    rows = vectors.read(0, vectors.shape[0])
    streaming.check_finite(_sums(rows), vectors, 0)
    return rows


def refuse_shapes(seeds: tuple[int, int], pool: tuple[int, int], k: int) -> None:
    """UserError where seeds and pool, (n, dim) each, have no k neighbours."""
    num_pool, dim = pool
    if not seeds[0]:
        raise UserError("there are no seeds whose neighbours could be searched")
    if seeds[1] != dim:
        raise UserError(f"the seeds' vectors have {seeds[1]} dimensions, the pool's {dim}: not from one encoder")
    if not 1 <= k <= num_pool:
        raise UserError(
            f"k={k} neighbours were asked for, but {num_pool} pool clips can be neighbours: type k={num_pool} or less"
        )


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
    num_pool = pool.shape[0]
    refuse_shapes((len(seeds), seeds.shape[1]), pool.shape, k)
    streaming.check_finite(_sums(seeds), ArrayVectors(seeds, "seeds, row {}".format), 0)
    first_pass, line = candidates.choose(config.backend, device)
    log.info("%s", line)
    nonzero = seeds.any(axis=1)
    found = None
    if nonzero.any():
        with streaming.on_device(first_pass.device):
            some = seeds if nonzero.all() else seeds[nonzero]
            found = streaming.Search(some, pool, k, first_pass, scratch, progress, block_rows).run()
        if nonzero.all():
            return found
    else:  # no search reads the pool, so look here whether all of it is finite
        for start in range(0, num_pool, _ROWS):
            streaming.check_finite(_sums(pool.read(start, min(start + _ROWS, num_pool))), pool, start)
    # A zero seed has similarity 0 with every clip: the first k of the pool.
    positions = np.tile(np.arange(k, dtype=np.int32), (len(seeds), 1))
    similarities = np.zeros(positions.shape, dtype=np.float32)
    if found:
        positions[nonzero], similarities[nonzero] = found
    return positions, similarities


def kept_or_found(
    cache_dir: AnyPath, key: str, shape: tuple[int, int], k: int, config: SearchConfig, find: Find
) -> Result:
    """What `find` gives at max(k, k_cache), at most the pool, kept under `cache_dir`; of parallel jobs one searches,
    but behind a URL, where there are no locks, each does with what the others have found.

    key: names everything that the result depends on (store fingerprint, seed and pool ids in order, exclusions) and
    is a file name; shape: seeds, pool clips. A kept result with fewer neighbours is computed anew and replaced, one
    with more is sliced.
    """
    num_seeds, num_pool = shape
    wanted = min(max(k, config.k_cache), num_pool)
    if k > wanted:
        return find(k, None)  # raises: the pool is too small
    kept = _Kept(cache_dir / "neighbours", key, (num_seeds, wanted))
    said = False
    while (result := kept.read()) is None:
        try:
            lock = kept.acquire()
        except OSError as error:
            log.warning("the neighbours are kept for this run alone: %s", cause(error))
            return find(wanted, None)
        if lock is None:
            if not said:
                log.info("another job searches the same neighbours; waiting for %s", kept.path)
                said = True
            time.sleep(WAIT_S)
            continue
        with lock:
            if (result := kept.read()) is not None:
                break
            try:
                result = find(wanted, kept.scratch)
            except UserError:
                if (result := kept.read()) is None:
                    raise
                break  # another job kept it, without a lock, and removed what resumes it
            kept.write(result)
            break
    return result


class _Kept:
    """The neighbours of one key on disk, at least k per seed, and what guards and resumes their search."""

    def __init__(self, folder: AnyPath, key: str, shape: tuple[int, int]) -> None:
        self._folder, self._key, self._shape = folder, key, shape
        self.path = folder / f"{key}.npz"
        self.scratch = folder / f"{key}.partial"
        self._useless: tuple[int, ...] | None = None  # the file that was looked at and cannot be used

    def read(self) -> Result | None:
        """The first columns of the kept result; None where there is none, a damaged one, or one with too few columns.

        A file is looked at once, so damage is said once.
        """
        if isinstance(self.path, Path) and not self._is_new(self.path):
            return None
        arrays = files.read_npz(self.path)
        if arrays is None:
            return None
        positions, similarities = arrays["positions"], arrays["similarities"]
        num_seeds, k = self._shape
        if positions.shape != similarities.shape or len(positions) != num_seeds or positions.shape[1] < k:
            return None
        return np.ascontiguousarray(positions[:, :k]), np.ascontiguousarray(similarities[:, :k])

    def _is_new(self, path: Path) -> bool:
        """Whether there is a file that was not looked at."""
        try:
            stat = path.stat()
        except OSError:
            return False
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        was, self._useless = self._useless, version
        return version != was

    def acquire(self) -> locks.Lock | None:
        """The right to make this result; None while another job has it. OSError where nothing can be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return locks.acquire(self._folder / f"{self._key}.lock")

    def write(self, result: Result) -> None:
        """Keep it and let go of what resumes it; a warning where it cannot be kept."""
        for left_over in self._folder.glob(f"tmp-{self._key}-*"):  # of a writer that was killed: this one has the lock
            if isinstance(left_over, Path):
                files.remove_left_over(left_over)
        try:
            files.write_npz(self.path, {"positions": result[0], "similarities": result[1]})
        except OSError as error:
            log.warning("the neighbours are kept for this run alone: %s", cause(error))
        except Unreachable as error:
            log.warning("the neighbours are kept for this run alone: %s", error)
            return  # their keys, which are there, give them again
        if isinstance(self.scratch, RemotePath):
            with contextlib.suppress(FileNotFoundError, Unreachable):
                self.scratch.remove(self.scratch.names("file"))
        else:
            shutil.rmtree(self.scratch, ignore_errors=True)

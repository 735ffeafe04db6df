"""An exact search on many machines: (seed range x pool slice) searched alike, and the best merged in a tree.

In: seeds and pool as `Vectors`, an engine, a folder that all of its workers see. Out: what `top_k.search` gives, the
same bytes. A task reads its vectors where they lie, searches its slice for its own top K, and leaves their keys
(similarity, pool position) in the folder; merging sorts keys, so who did what and in which order decides nothing. Keys
that are there are not searched again: a killed search goes on. Memory per worker and disk are bounded by `plan_ranges`.
The price: every slice rescores its own top K, and vectors that only this process can read are copied into the folder.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from balance.engine.seam import DeadlyTask, Engine, Place, Tasks, WorkersDied
from balance.errors import UserError
from balance.records import Float32, Int64, SomeVectors, Vectors
from balance.runtime import files
from balance.runtime.remote import AnyPath
from balance.search import rescore, streaming
from balance.search.config import SearchConfig
from balance.search.top_k import Result, kept_or_found, load, refuse_shapes, search

log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[float], None]  # of pairs of clips searched

SLICE_ROWS = 1 << 17  # of the pool, at least
MOST_SLICES = 64  # of a seed range: each costs K keys per seed on disk until they are merged
RANGE_SEEDS = 1 << 16
RANGE_BYTES = 1 << 30  # of a worker, for the vectors and the running top K of its seeds
FOLDER_BYTES = 32 << 30  # of keys that wait for their merging
FAN_IN = 8
_COPIED_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Span:
    """Seeds a … b against pool positions c … d."""

    seeds: tuple[int, int]
    pool: tuple[int, int]

    @property
    def num_pairs(self) -> int:
        return (self.seeds[1] - self.seeds[0]) * (self.pool[1] - self.pool[0])

    def file(self, folder: AnyPath, k: int) -> AnyPath:
        return folder / f"keys-k{k}-seeds-{self.seeds[0]}-{self.seeds[1]}-pool-{self.pool[0]}-{self.pool[1]}.npz"


@dataclass(frozen=True, slots=True)
class _Search:
    """What all tasks of a search share."""

    folder: AnyPath
    k: int
    config: SearchConfig


@dataclass(frozen=True, slots=True, eq=False)
class _Find:
    """Task: the keys of a slice."""

    span: Span
    seeds: Vectors
    pool: Vectors


@dataclass(frozen=True, slots=True)
class _Merge:
    """Task: the keys of a span, from those of its pieces."""

    span: Span
    pieces: tuple[Span, ...]


def plan_ranges(num_seeds: int, num_pool: int, dim: int, k: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(ranges of seeds, slices of the pool). They depend on the sizes alone, so that a search goes on with others.

    A worker holds per seed its vector in float32 and float64 and in low precision, and the search's running top K with
    as much room again (`running.Running`).
    """
    seed_bytes = 14 * dim + 8 * (k + min(max(k, 64), 1 << 11))
    seeds = _pieces(num_seeds, min(RANGE_SEEDS, max(1, RANGE_BYTES // seed_bytes)))
    return seeds, _pieces(num_pool, max(SLICE_ROWS, math.ceil(num_pool / MOST_SLICES)))


def _pieces(count: int, most: int) -> list[tuple[int, int]]:
    """0 … count cut into as few pieces as do, of about one size."""
    cuts = np.linspace(0, count, math.ceil(count / most) + 1).round().astype(int).tolist()
    return list(itertools.pairwise(cuts))


def search_ranges(
    engine: Engine,
    seeds: Vectors,
    pool: Vectors,
    k: int,
    config: SearchConfig,
    *,
    folder: AnyPath,
    progress: streaming.Progress | None = None,
) -> Result:
    """`top_k.search` with an engine's workers. folder: of this very search, seen by all of them, removed by the caller
    once the result is safe. Raises what `top_k.search` raises, and UserError where no worker is left."""
    refuse_shapes(seeds.shape, pool.shape, k)
    ranges, slices = plan_ranges(seeds.shape[0], *pool.shape, k)
    folder.mkdir(parents=True, exist_ok=True)
    seeds, pool = _portable(seeds, folder, "seeds.f32"), _portable(pool, folder, "pool.f32")
    log.info("search: %d seed ranges x %d pool slices on %s", len(ranges), len(slices), engine)
    work = _Levels(_Search(folder, k, config), seeds, pool, progress or (lambda done, total: None))
    positions = np.empty((seeds.shape[0], k), np.int32)
    similarities = np.empty((seeds.shape[0], k), np.float32)
    at_once = max(1, FOLDER_BYTES // (len(slices) * (ranges[0][1] - ranges[0][0]) * k * 8))
    for first in range(0, len(ranges), at_once):
        some = ranges[first : first + at_once]
        work.run(engine, some, slices)
        for a, b in some:
            keys = _read_keys(Span((a, b), (0, pool.shape[0])).file(folder, k))
            positions[a:b], similarities[a:b] = rescore.from_keys(torch.from_numpy(keys))
    return positions, similarities


def kept_search(
    cache: AnyPath,
    key: str,
    seeds: Vectors,
    pool: Vectors,
    k: int,
    config: SearchConfig,
    *,
    device: torch.device,
    engine: Engine | None = None,
    progress: streaming.Progress | None = None,
) -> Result:
    """The exact top k, kept in the cache as `kept_or_found` says: by an engine's workers, without one on `device`."""

    def find(k: int, scratch: AnyPath | None) -> Result:
        if engine is None:
            where = scratch if isinstance(scratch, Path) else None
            return search(load(seeds), pool, k, config, device=device, scratch=where, progress=progress)
        if scratch is None:
            raise UserError(f"executor=ray: the cache {cache} cannot be written: type cache_dir=…")
        return search_ranges(engine, seeds, pool, k, config, folder=scratch, progress=progress)

    return kept_or_found(cache, key, (seeds.shape[0], pool.shape[0]), k, config, find)


class _Levels:
    """The tasks of some seed ranges: slices, then their merging, level by level."""

    def __init__(self, shared: _Search, seeds: SomeVectors, pool: SomeVectors, progress: streaming.Progress) -> None:
        self._shared, self._seeds, self._pool, self._progress = shared, seeds, pool, progress
        self._num_pairs = seeds.shape[0] * pool.shape[0]
        self._done_pairs = 0.0

    def run(self, engine: Engine, ranges: Sequence[tuple[int, int]], slices: Sequence[tuple[int, int]]) -> None:
        levels: list[list[_Merge]] = []
        wanted = [Span(seeds, (0, self._pool.shape[0])) for seeds in ranges]
        leaves: list[Span] = []
        there = {file.name for file in self._shared.folder.glob("keys-*.npz")}
        for root in wanted:
            self._descend(root, slices, levels, leaves, 0, there)
        pairs = sum((b - a) for a, b in ranges) * self._pool.shape[0]
        self._done_pairs += pairs - sum(leaf.num_pairs for leaf in leaves)
        self._tell(0.0)
        self._do(engine, _Finds(self._seeds, self._pool, leaves))
        for level in reversed(levels):
            self._do(engine, level)

    def _descend(
        self,
        span: Span,
        slices: Sequence[tuple[int, int]],
        levels: list[list[_Merge]],
        leaves: list[Span],
        depth: int,
        there: Set[str],
    ) -> None:
        """Collect what is to be done for a span: nothing where its keys are there."""
        if span.file(self._shared.folder, self._shared.k).name in there:
            return
        if len(slices) == 1:
            leaves.append(span)
            return
        size = FAN_IN ** max(1, math.ceil(math.log(len(slices), FAN_IN) - 1e-9)) // FAN_IN
        groups = [slices[i : i + size] for i in range(0, len(slices), size)]
        pieces = tuple(Span(span.seeds, (group[0][0], group[-1][1])) for group in groups)
        while len(levels) <= depth:
            levels.append([])
        levels[depth].append(_Merge(span, pieces))
        for piece, group in zip(pieces, groups, strict=True):
            self._descend(piece, group, levels, leaves, depth + 1, there)

    def _do(self, engine: Engine, tasks: _Finds | list[_Merge]) -> None:
        if not len(tasks):
            return
        try:
            engine.run(_work, self._shared, tasks, self._tell)
        except WorkersDied as died:
            raise UserError(
                f"all search workers died ({died}): perhaps memory is short. What is finished is kept: run the same "
                "command again"
            ) from None
        except DeadlyTask as deadly:
            span = tasks[deadly.number].span
            raise UserError(
                f"the search of seeds {span.seeds[0]:,} to {span.seeds[1]:,} in pool clips {span.pool[0]:,} to "
                f"{span.pool[1]:,} killed its worker {deadly.deaths} times: give workers more memory. What is finished "
                "is kept: run the same command again"
            ) from None

    def _tell(self, pairs: float) -> None:
        self._done_pairs += pairs
        num_pool = self._pool.shape[0]
        self._progress(min(num_pool, int(self._done_pairs * num_pool / self._num_pairs)), num_pool)


@dataclass(frozen=True, slots=True, eq=False)
class _Finds:
    """The slices to search as an engine's tasks: each is made when it is asked for."""

    seeds: SomeVectors
    pool: SomeVectors
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int, /) -> _Find:
        span = self.spans[number]
        seeds, pool = (v.portable(np.arange(*at)) for v, at in ((self.seeds, span.seeds), (self.pool, span.pool)))
        assert seeds is not None
        assert pool is not None
        return _Find(span, seeds, pool)


# -- the worker's end ----------------------------------------------------------------------------------------------


def _work(shared: _Search, place: Place, tasks: Tasks[_Find | _Merge], report: Report) -> None:
    """A worker's whole life in an engine (`seam.Work`); reports pairs of clips searched."""
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    for number, task in tasks:
        file = task.span.file(shared.folder, shared.k)
        if file.exists():  # of a worker that died before it could say so
            pass
        elif isinstance(task, _Find):
            files.write_npz(file, {"keys": _find(shared, task, torch.device(place.device), report)})
        else:
            pieces = [piece.file(shared.folder, shared.k) for piece in task.pieces]
            files.write_npz(file, {"keys": merged((_read_keys(piece) for piece in pieces), shared.k)})
            for piece in pieces:
                if isinstance(piece, Path):  # behind a URL another driver may want to merge them, too
                    piece.unlink(missing_ok=True)
        tasks.finish(number)


def _find(shared: _Search, task: _Find, device: torch.device, report: Report) -> Int64:
    """Keys (S, at most k) of the slice, whose positions are those of the whole pool."""
    first, rows = task.span.pool[0], task.pool.shape[0]
    seeds = load(task.seeds)
    told = 0

    def progress(done: int, _: int) -> None:
        nonlocal told
        if done > told:  # a few seeds may be searched again
            report(float((done - told) * len(seeds)))
            told = done

    k = min(shared.k, rows)
    found, similarities = search(seeds, task.pool, k, shared.config, device=device, progress=progress)
    report(float((rows - told) * len(seeds)))
    positions = torch.from_numpy(found.astype(np.int64) + first)
    return rescore.to_keys(torch.from_numpy(similarities), positions).numpy()


def merged(pieces: Iterator[Int64], k: int) -> Int64:
    """The k least keys of each seed, (S, at most k) ascending, of pieces (S, any number)."""
    best = next(pieces)
    for piece in pieces:
        both = np.concatenate([best, piece], axis=1)
        both.sort(axis=1)
        best = np.ascontiguousarray(both[:, :k])
    return best


def _read_keys(file: AnyPath) -> Int64:
    arrays = files.read_npz(file)
    if arrays is None:
        with contextlib.suppress(OSError):
            file.unlink()
        raise UserError(f"{file} was damaged, or removed by another: run the same command again, it is searched anew")
    keys: Int64 = arrays["keys"]
    return keys


# -- vectors that only this process can read -----------------------------------------------------------------------


def _portable(vectors: Vectors, folder: AnyPath, name: str) -> SomeVectors:
    """Vectors that other machines can read; those that only this process can are copied into a file of the folder,
    which then lies on disk."""
    num_rows, dim = vectors.shape
    chosen = SomeVectors(vectors, np.arange(num_rows))
    if chosen.portable(np.arange(0)) is not None:
        return chosen
    assert isinstance(folder, Path)
    copy = folder / name
    if not copy.exists() or copy.stat().st_size != 4 * num_rows * dim:
        with files.atomic(copy) as file:
            for start in range(0, num_rows, _COPIED_ROWS):
                rows = vectors.read(start, min(start + _COPIED_ROWS, num_rows))
                streaming.check_finite(rescore.lengths_of(torch.from_numpy(rows).double()), vectors, start)
                file.write(np.ascontiguousarray(rows, dtype="<f4").data)
    return SomeVectors(CopiedVectors(copy, 0, (num_rows, dim)), np.arange(num_rows))


@dataclass(frozen=True, slots=True)
class CopiedVectors:
    """`records.Vectors`: float32 rows of a file from row `first` on; picklable."""

    file: Path
    first: int
    shape: tuple[int, int]

    def portable(self, rows: Int64) -> Vectors:
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return CopiedVectors(self.file, self.first + int(rows[0]), (len(rows), self.shape[1]))
        return SomeVectors(self, rows)

    def read(self, start: int, stop: int) -> Float32:
        out = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        view, at = out.reshape(-1).view(np.uint8).data, 4 * self.shape[1] * (self.first + start)
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            while len(view):
                got = os.preadv(descriptor, [view], at)
                if got == 0:
                    raise UserError(f"{self.file} became shorter while it was read")
                view, at = view[got:], at + got
        finally:
            os.close(descriptor)
        return out

    def take(self, rows: Int64) -> Float32:
        none = np.empty((0, self.shape[1]), np.float32)
        return np.concatenate([none, *(self.read(row, row + 1) for row in rows.tolist())])

    def name(self, row: int) -> str:
        return f"{self.file.name}, row {self.first + row}"

"""One exact search: the pool streamed block by block past the seeds, with a running top K.

In: non-zero seeds in memory, the pool as `Vectors`, a first pass (topk.py). Out: sorted keys (exact.py). A sample of
the pool gives a guess of every seed's K-th similarity; the first pass returns each pair that may reach it, or the
running K-th where that is higher; those are rescored exactly while their block is in memory and merged. A seed is
certified when its K-th similarity is at least its guess; the others are searched again without one. The price: a guess
too low costs rescoring, one too high a second pass for that seed: rare where the sample is like the pool.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance import exact, topk
from balance.cores import Cores
from balance.records import Float32, Int64, UserError, Vectors

log = logging.getLogger(__name__)

SAMPLE_ROWS = 1 << 13
SAMPLE_PIECES = 128
GROUP_ROWS = 1 << 18  # rows between two saved states
SEED_ROWS = 1 << 12  # seeds in one product
RESCORE_ROWS = 1 << 12  # rows widened to float64 at once: 16 MB at dim 512, in cache
BLOCK_PAIRS_CPU = 1 << 24  # seeds of one product x rows of a block: all of them may reach their thresholds
RESCORE_PAIRS = 1 << 22  # pairs rescored at once, at 100 bytes

Progress = Callable[[int, int], None]


class Search:
    """One search of non-zero seeds: what stays the same through its passes over the pool."""

    def __init__(
        self,
        seeds: Float32,
        pool: Vectors,
        k: int,
        product: topk.Product,
        scratch: Path | None,
        progress: Progress | None,
        block_rows: int | None,
    ) -> None:
        self.pool, self.k, self.product, self.scratch = pool, k, product, scratch
        self.progress = progress or (lambda done, total: None)
        if block_rows is None:
            most = max(1, product.block_bytes // (4 * pool.shape[1]))
            if product.device.type == "cpu":
                most = min(most, max(1, BLOCK_PAIRS_CPU // min(len(seeds), SEED_ROWS)))
            block_rows = math.ceil(pool.shape[0] / math.ceil(pool.shape[0] / most))
        self.block_rows = min(block_rows, pool.shape[0])
        self.device = product.device
        self.signature = f"{hashlib.sha256(seeds.tobytes()).hexdigest()} {pool.shape} {k}"
        self.seeds64 = torch.from_numpy(seeds).to(self.device).double()
        self.lengths = exact.lengths_of(self.seeds64)
        # The part of a block that is widened to float64 at once: on a CPU 16 MB at dim 512, in cache.
        self.part_rows = RESCORE_ROWS if self.device.type == "cpu" else self.block_rows
        self.wide = torch.empty(self.part_rows, pool.shape[1], dtype=torch.float64, device=self.device)

    def run(self) -> Int64:
        """Keys (S, k) int64, ascending."""
        sample64, sample_lengths = self._sample()
        units = sample64 / torch.where(sample_lengths > 0, sample_lengths, 1.0)[:, None]
        mean = units.mean(dim=0)
        length = float(torch.linalg.vector_norm(units[::16] - mean, dim=1).median())
        del units
        scale = 2.0 ** min(14, max(0, round(-math.log2(max(length, 1e-9)))))
        guesses = torch.full((len(self.seeds64),), -torch.inf, device=self.device)
        if self.product.needs_guess:
            guesses = self._guess(mean, scale, sample64, sample_lengths)
        del sample64
        centre = topk.Centre(mean, scale, self.product.dtype)
        keys = self._scan(centre, self.seeds64, self.lengths, guesses, resumable=True)
        last = exact.similarities_of(keys[:, -1])
        full = keys[:, -1] != exact.EMPTY
        missed = (~full | (last < guesses)).nonzero().squeeze(1)
        if len(missed):
            log.info("search: %d of %d seeds are searched again: the sample misjudged them", len(missed), len(keys))
            certain = torch.where(full, last, -torch.inf)[missed]
            keys[missed] = self._scan(centre, self.seeds64[missed], self.lengths[missed], certain, resumable=False)
        assert not bool((keys == exact.EMPTY).any()), "a seed has fewer than k neighbours"
        return keys.cpu().numpy()

    def _sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows spread evenly over the pool, (n, dim) float64, and their lengths."""
        num_pool = self.pool.shape[0]
        num_sample = min(num_pool, SAMPLE_ROWS if self.product.needs_guess else SAMPLE_ROWS // 8)
        pieces = 1 if num_pool == num_sample else min(SAMPLE_PIECES, num_sample)
        length = num_sample // pieces
        rows = torch.empty(pieces * length, self.pool.shape[1], dtype=torch.float64, device=self.device)
        for i, start in enumerate(np.linspace(0, num_pool - length, pieces).astype(int).tolist()):
            piece = rows[i * length : (i + 1) * length]
            piece.copy_(self._block(start, start + length))
            check_finite(exact.lengths_of(piece), self.pool, start)
        return rows, exact.lengths_of(rows)

    def _guess(self, mean: torch.Tensor, scale: float, sample64: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Per seed a similarity below its K-th, very probably (S,) float32."""
        num_pool, num_sample = self.pool.shape[0], len(sample64)
        expected = self.k * num_sample / num_pool
        spread = math.sqrt(expected * (1 - num_sample / num_pool))
        # Of the rows that it holds a sample knows the ranks, but for the rounding of low precision.
        rank = math.ceil(expected + 5 * spread + 4 + expected / 8 * num_sample / num_pool)
        if rank >= num_sample:
            return torch.full((len(self.seeds64),), -torch.inf, device=self.device)
        centre = topk.Centre(mean, scale, topk.first_pass_dtype(self.device))
        seeds, constants = centre.seeds(self.seeds64)
        sample = centre.empty(num_sample)
        centre.pool(sample64.float(), sample64, lengths, sample, bounds=False)

        def best(some: torch.Tensor) -> torch.Tensor:
            return topk.ranked(some @ sample.t(), rank)

        if self.device.type == "cpu":
            with Cores() as cores:  # the ranking runs on one core
                return centre.cosines(torch.cat(cores.map(best, torch.split(seeds, 128))), constants)
        return centre.cosines(torch.cat([best(some) for some in torch.split(seeds, 1024)]), constants)

    def _scan(
        self,
        centre: topk.Centre,
        seeds64: torch.Tensor,
        lengths: torch.Tensor,
        guesses: torch.Tensor,
        *,
        resumable: bool,
    ) -> torch.Tensor:
        """One pass over the pool: keys (S, k), complete wherever the last similarity is at least the guess."""
        num_pool = self.pool.shape[0]
        batches = [
            _Batch(centre, seeds64[i : i + SEED_ROWS], lengths[i : i + SEED_ROWS], guesses[i : i + SEED_ROWS])
            for i in range(0, len(seeds64), SEED_ROWS)
        ]
        running = exact.Running(len(seeds64), self.k, self.device)
        start = self._resume(running, guesses) if resumable else 0
        saved, block_rows = start, self.block_rows
        matrix = centre.empty(block_rows)
        self.progress(start, num_pool)
        while start < num_pool:
            stop = min(start + block_rows, num_pool)
            try:
                self._add_block(start, stop, centre, matrix, batches, running)
            except torch.cuda.OutOfMemoryError:
                block_rows = (stop - start) // 2
                if not block_rows:
                    raise
                running.forget(start)
                torch.cuda.empty_cache()
                log.info("search: the GPU is out of memory; going on with blocks of %d rows", block_rows)
                continue
            start = stop
            if resumable and start - saved >= GROUP_ROWS and start < num_pool:
                running.merge()
                self._save(running, start, guesses)
                saved = start
            self.progress(start, num_pool)
        running.merge()
        return running.keys

    def _add_block(
        self,
        start: int,
        stop: int,
        centre: topk.Centre,
        matrix: torch.Tensor,
        batches: list[_Batch],
        running: exact.Running,
    ) -> None:
        """Pool rows start … stop against every seed."""
        rows, matrix = self._block(start, stop), matrix[: stop - start]
        lengths = torch.empty(len(rows), dtype=torch.float64, device=self.device)
        parts = [slice(first, first + self.part_rows) for first in range(0, len(rows), self.part_rows)]
        for part in parts:
            wide = self.wide[: len(lengths[part])]
            centre.pool(rows[part], wide, lengths[part], matrix[part])
            check_finite(lengths[part], self.pool, start + part.start)
        likely = self._likely(len(rows), start)
        if not self.product.needs_guess:  # then nothing but the running K-th keeps the pairs few
            running.merge()
        first_seed = 0
        for batch in batches:
            lowest = running.lowest[first_seed : first_seed + len(batch.matrix)]
            thresholds = centre.thresholds(torch.maximum(batch.guesses, lowest), batch.constants)
            starts, row_at = self.product.above(centre, batch.matrix, matrix, thresholds, self.k, likely)
            for some, its_starts, its_rows in _chunks(starts, row_at):
                for part, part_starts, part_rows in _split(its_starts, its_rows, parts):
                    if len(parts) > 1:
                        wide = self.wide[: len(lengths[part])].copy_(rows[part])
                    similarities = exact.cosines(
                        batch.seeds64[some], batch.lengths[some], wide, lengths[part], part_starts, part_rows
                    )
                    keys = exact.to_keys(similarities, part_rows + (start + part.start))
                    running.add(first_seed + some.start, part_starts, keys)
            first_seed += len(batch.matrix)

    def _likely(self, num_rows: int, num_done: int) -> int:
        """How many of a block's rows reach a seed's running K-th, for nearly all seeds, if the pool is well mixed: of
        both numbers the uncertainty is the square root. Never many more than k: the k-th certifies a threshold."""
        expected = self.k * num_rows / max(num_done, 1)
        return min(self.k + self.k // 16 + 8, math.ceil(expected + 4 * math.sqrt(expected + expected**2 / self.k) + 8))

    def _block(self, start: int, stop: int) -> torch.Tensor:
        return torch.as_tensor(self.pool.read(start, stop)).to(self.device)

    def _resume(self, running: exact.Running, guesses: torch.Tensor) -> int:
        """The row to go on with; the saved keys and guesses go into `running` and `guesses`."""
        names = {"signature", "keys", "guesses", "start"}
        state = read_npz(self.scratch / "state.npz", names) if self.scratch else None
        if state is None or str(state["signature"]) != self.signature:
            return 0
        running.restore(torch.from_numpy(state["keys"]))
        guesses.copy_(torch.from_numpy(state["guesses"]))
        start = int(state["start"])
        log.info("search: goes on at clip %d of %d, where it was interrupted", start, self.pool.shape[0])
        return start

    def _save(self, running: exact.Running, start: int, guesses: torch.Tensor) -> None:
        if self.scratch is None:
            return
        arrays: dict[str, Any] = {
            "keys": running.keys.cpu().numpy(),
            "guesses": guesses.cpu().numpy(),
            "start": np.int64(start),
            "signature": np.array(self.signature),
        }
        try:
            write_npz(self.scratch / "state.npz", arrays)
        except OSError as error:
            log.warning("search: cannot save its state, so it cannot be resumed: %s", error)
            self.scratch = None


class _Batch:
    """The seeds of one product; `guesses` is a view."""

    def __init__(
        self, centre: topk.Centre, seeds64: torch.Tensor, lengths: torch.Tensor, guesses: torch.Tensor
    ) -> None:
        self.seeds64, self.lengths, self.guesses = seeds64, lengths, guesses
        self.matrix, self.constants = centre.seeds(seeds64)


def _chunks(starts: torch.Tensor, row_at: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Runs of seeds with at most about RESCORE_PAIRS pairs: (seeds, their starts from 0, their rows)."""
    num_seeds, num_pairs = len(starts) - 1, len(row_at)
    cuts = range(RESCORE_PAIRS, num_pairs, RESCORE_PAIRS)
    at = torch.searchsorted(starts, torch.tensor(cuts, device=starts.device)).tolist() if cuts else []
    for first, stop in itertools.pairwise(sorted({0, *at, num_seeds})):
        if stop - first == num_seeds:
            yield slice(0, num_seeds), starts, row_at
        else:
            begin, end = int(starts[first]), int(starts[stop])
            yield slice(first, stop), starts[first : stop + 1] - begin, row_at[begin:end]


def _split(
    starts: torch.Tensor, row_at: torch.Tensor, parts: list[slice]
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """The pairs of each part of a block, rows counted from the part's first. Several parts only on a CPU."""
    if len(parts) == 1:
        yield parts[0], starts, row_at
        return
    seed_at = torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())
    step = parts[0].stop
    order = torch.from_numpy((row_at // step).numpy().astype(np.uint16).argsort(kind="stable"))  # a radix sort
    row_at, seed_at = row_at[order], seed_at[order]
    firsts = torch.searchsorted(row_at // step, torch.arange(len(parts) + 1, device=starts.device)).tolist()
    for i, part in enumerate(parts):
        here = slice(firsts[i], firsts[i + 1])
        counts = torch.bincount(seed_at[here], minlength=len(starts) - 1)
        yield part, topk.to_starts(counts), row_at[here] - part.start


def check_finite(lengths: torch.Tensor, vectors: Vectors, start: int) -> None:
    """UserError naming the first row from `start` on whose length is not finite."""
    finite = lengths.isfinite()
    if not bool(finite.all()):
        row = start + int((~finite).nonzero()[0])
        raise UserError(f"{vectors.name(row)}: its vector holds a number that is not finite (NaN or infinity)")


def read_npz(path: Path, names: set[str]) -> dict[str, Any] | None:
    """The arrays of these names, or None where there is no such file or a damaged one (zip files carry checksums)."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        return None
    except Exception as error:  # of damaged files zipfile and numpy raise half a dozen kinds
        log.warning("%s cannot be read and is computed anew: %s", path, error)
        return None


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

"""One exact search: the pool streamed block by block past the seeds, with a running top K.

In: non-zero seeds in memory, the pool as `Vectors`, a first pass (candidates.py). Out: sorted keys (rescore.py). A
sample of the pool gives a guess of every seed's K-th similarity. The first pass returns each pair that may reach the
guess, or the running K-th where that is higher; these pairs are rescored exactly while their block is in memory, and
merged. A seed is certified when its K-th similarity is at least its guess; the others are searched again without one.
The price: a guess too low costs rescoring, one too high a second pass for that seed, which is rare where the sample is
like the pool.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance.errors import UserError
from balance.records import Float32, Int32, Vectors
from balance.runtime import files
from balance.runtime.threads import Cores
from balance.runtime.wording import cause
from balance.search import candidates, rescore
from balance.search.cosine_bound import CosineBound
from balance.search.prefetch import Blocks
from balance.search.running import Running, RunningOnGpu
from balance.search.sizes import usual_sizes

log = logging.getLogger(__name__)

SAMPLE_PIECES = 128
GROUP_ROWS = 1 << 18  # rows after which the state may be saved
SAVE_AFTER_S = 30.0  # of work since the last time: a state of 100 MB may take a second

Progress = Callable[[int, int], None]
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one, on whose stream torch and FAISS work; UserError where its memory is too small."""
    if device.type == "cpu":
        yield
        return
    try:
        with torch.cuda.device(device):
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{device} has too little free memory for the search ({str(error).splitlines()[0]}): end other work on it, "
            "or type encoder.device=cpu"
        ) from error


class Search:
    """One search of non-zero seeds: what stays the same through its passes over the pool."""

    def __init__(
        self,
        seeds: Float32,
        pool: Vectors,
        k: int,
        first_pass: candidates.CandidateSearch,
        scratch: Path | None,
        progress: Progress | None,
        block_rows: int | None,
    ) -> None:
        self.pool, self.k, self.first_pass, self.scratch = pool, k, first_pass, scratch
        self.progress = progress or (lambda done, total: None)
        self.device = first_pass.device
        self.signature = f"{hashlib.sha256(seeds.tobytes()).hexdigest()} {pool.shape} {k}" if scratch else ""
        self.seeds64 = torch.from_numpy(seeds).to(self.device).double()
        self.lengths = rescore.lengths_of(self.seeds64)
        self.sizes = usual_sizes(len(seeds), *pool.shape, first_pass)
        if block_rows:
            self.sizes = replace(self.sizes, block_rows=block_rows)
        self.workspace = first_pass.workspace
        self.lock = threading.Lock()
        self.spread: Spread = map

    def run(self) -> tuple[Int32, Float32]:
        """Positions (S, k) int32 and similarities (S, k) float32, in the contract's order."""
        rescore.hear_sparse_warning()
        if self.device.type != "cpu":
            return self._run()
        with Cores() as cores:
            self.spread = cores.map
            return self._run()

    def _run(self) -> tuple[Int32, Float32]:
        sample = self._sample()
        few = sample[::8].double()
        lengths = rescore.lengths_of(few)
        few.mul_(torch.where(lengths > 0, 1 / lengths, 0.0)[:, None])
        mean = few.mean(dim=0)
        length = float(torch.linalg.vector_norm(few - mean, dim=1).median())
        scale = 2.0 ** min(14, max(0, round(-math.log2(max(length, 1e-9)))))
        guesses = torch.full((len(self.seeds64),), -torch.inf, device=self.device)
        if self.first_pass.needs_guess:
            dtype = candidates.first_pass_dtype(self.device)
            guesses = self._guess(CosineBound(mean, scale, dtype, self.workspace), sample)
        del sample
        bound = CosineBound(mean, scale, self.first_pass.dtype, self.workspace)
        keys = self._scan(bound, self.seeds64, self.lengths, guesses, resumable=True)
        last = rescore.similarities_of(keys[:, -1])
        full = keys[:, -1] != rescore.EMPTY
        missed = (~full | (last < guesses)).nonzero().squeeze(1)
        if len(missed):
            log.info("search: %d of %d seeds are searched again: the sample misjudged them", len(missed), len(keys))
            certain = torch.where(full, last, -torch.inf)[missed]
            keys[missed] = self._scan(bound, self.seeds64[missed], self.lengths[missed], certain, resumable=False)
        assert not bool((keys == rescore.EMPTY).any()), "a seed has fewer than k neighbours"
        return rescore.from_keys(keys)

    def _sample(self) -> torch.Tensor:
        """Rows spread evenly over the pool, (n, dim) float32."""
        num_pool = self.pool.shape[0]
        num_sample = min(num_pool, self.sizes.sample_rows)
        pieces = 1 if num_pool == num_sample else min(SAMPLE_PIECES, num_sample)
        length = num_sample // pieces
        starts = np.linspace(0, num_pool - length, pieces).astype(int).tolist()
        rows = torch.cat([torch.as_tensor(self.pool.read(start, start + length)) for start in starts]).to(self.device)
        finite = rows.sum(dim=1, dtype=torch.float64).isfinite().view(pieces, length).all(dim=1)
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0])
            piece = rows[at * length : (at + 1) * length]
            check_finite(piece.sum(dim=1, dtype=torch.float64), self.pool, starts[at])
        return rows

    def _guess(self, bound: CosineBound, sample: torch.Tensor) -> torch.Tensor:
        """Per seed a similarity below its K-th, very probably (S,) float32."""
        num_pool, num_sample = self.pool.shape[0], len(sample)
        expected = self.k * num_sample / num_pool
        spread = math.sqrt(expected * (1 - num_sample / num_pool))
        # Of the rows that it holds a sample knows the ranks, but for the rounding of low precision.
        rank = math.ceil(expected + 5 * spread + 4 + expected / 8 * num_sample / num_pool)
        if rank >= num_sample:
            return torch.full((len(self.seeds64),), -torch.inf, device=self.device)
        seeds, constants = bound.seeds(self.seeds64)

        def lower(some: torch.Tensor) -> torch.Tensor:
            return bound.pool(some, *self._room(len(some)), bounds=False)[0].clone()

        on_cpu = self.device.type == "cpu"
        matrix = torch.cat(list(self.spread(lower, torch.split(sample, 1024 if on_cpu else len(sample)))))

        def best(some: torch.Tensor) -> torch.Tensor:
            return candidates.ranked(some @ matrix.t(), rank)

        at_once = self.sizes.block_rows * min(self.sizes.seed_rows, len(seeds)) // len(sample)
        rows = 128 if on_cpu else max(1, min(1024, at_once))
        return bound.cosines(torch.cat(list(self.spread(best, torch.split(seeds, rows)))), constants)

    def _scan(
        self,
        bound: CosineBound,
        seeds64: torch.Tensor,
        lengths: torch.Tensor,
        guesses: torch.Tensor,
        *,
        resumable: bool,
    ) -> torch.Tensor:
        """One pass over the pool: keys (S, k), complete wherever the last similarity is at least the guess."""
        num_pool = self.pool.shape[0]
        batches = [
            _Batch(bound, seeds64, lengths, guesses, slice(i, min(i + self.sizes.seed_rows, len(seeds64))))
            for i in range(0, len(seeds64), self.sizes.seed_rows)
        ]
        running: Running | RunningOnGpu = Running(len(seeds64), self.k)
        if self.device.type != "cpu":
            running = RunningOnGpu(len(seeds64), self.k, self.device, self.sizes.new_pairs)
        done = start = self._resume(running, guesses) if resumable else 0
        self.progress(done, num_pool)
        saved_at = time.monotonic()

        def add(block: slice) -> None:
            nonlocal done
            self._add(block, bound, batches, running)
            with self.lock:
                done += block.stop - block.start
                self.progress(done, num_pool)

        with Blocks(self.pool, self.device) as self.blocks:
            while start < num_pool:
                whole_blocks = -(-GROUP_ROWS // self.sizes.block_rows) * self.sizes.block_rows
                stop = min(start + whole_blocks, num_pool)
                for _ in self.spread(add, self._blocks(start, stop)):
                    pass
                running.merge()
                start = stop
                if resumable and start < num_pool and time.monotonic() - saved_at >= SAVE_AFTER_S:
                    self._save(running, start, guesses)
                    saved_at = time.monotonic()
        return running.keys

    def _blocks(self, start: int, stop: int) -> Iterator[slice]:
        while start < stop:
            block = slice(start, min(start + self.sizes.block_rows, stop))
            yield block
            start = block.stop

    def _add(self, block: slice, bound: CosineBound, batches: list[_Batch], running: Running | RunningOnGpu) -> None:
        """`_add_block`, in halves where it does not fit into the GPU's memory."""
        fits = True
        try:
            self._add_block(block, bound, batches, running)
        except torch.cuda.OutOfMemoryError:
            if block.stop - block.start == 1:
                raise
            fits = False  # and out of the clause, where the failed block's tensors are let go
        if not fits:
            assert isinstance(running, RunningOnGpu)  # whose memory it was
            self._halve_blocks(block)
            running.forget(block.start)
            for half in self._blocks(block.start, block.stop):
                self._add(half, bound, batches, running)

    def _halve_blocks(self, block: slice) -> None:
        self.sizes = self.sizes.halved(block.stop - block.start)
        self.workspace.clear()
        torch.cuda.empty_cache()
        log.info("search: the GPU is out of memory; going on with blocks of %d rows", self.sizes.block_rows)

    def _add_block(
        self, block: slice, bound: CosineBound, batches: list[_Batch], running: Running | RunningOnGpu
    ) -> None:
        """These rows of the pool against every seed."""
        following = slice(block.stop, min(block.stop + self.sizes.block_rows, self.pool.shape[0]))
        rows = self.blocks.take(block, following)
        wide, lengths = self._room(len(rows))
        matrix, ordinary = bound.pool(rows, wide, lengths)
        if not ordinary:
            check_finite(lengths, self.pool, block.start)
        likely = self._likely(len(rows), block.start)
        if not self.first_pass.needs_guess:  # then nothing but the running K-th keeps the pairs few
            running.merge()
        for batch in batches:
            floors = torch.maximum(batch.guesses, running.lowest[batch.seeds])
            thresholds = bound.thresholds(floors, batch.constants)
            seed_at, row_at = self.first_pass.find(bound, batch.matrix, matrix, thresholds, self.k, likely)
            for first in range(0, len(seed_at), self.sizes.rescore_pairs):
                some = slice(first, first + self.sizes.rescore_pairs)
                similarities = rescore.cosines(
                    batch.seeds64, batch.lengths, wide, lengths, seed_at[some], row_at[some], floors
                )
                running.add(batch.seeds, seed_at[some], rescore.to_keys(similarities, row_at[some] + block.start))

    def _room(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For rows in float64 and their lengths, until this thread asks again."""
        wide = self.workspace.empty("wide", num_rows, self.pool.shape[1], dtype=torch.float64)
        return wide, self.workspace.empty("lengths", num_rows, dtype=torch.float64)

    def _likely(self, num_rows: int, num_done: int) -> int:
        """How many of a block's rows reach a seed's running K-th, for nearly all seeds, if the pool is well mixed: of
        both numbers the uncertainty is the square root. Never many more than k: the k-th certifies a threshold."""
        expected = self.k * num_rows / max(num_done, 1)
        return min(self.k + self.k // 16 + 8, math.ceil(expected + 4 * math.sqrt(expected + expected**2 / self.k) + 8))

    def _resume(self, running: Running | RunningOnGpu, guesses: torch.Tensor) -> int:
        """The row to go on with; the saved keys and guesses go into `running` and `guesses`."""
        state = files.read_npz(self.scratch / "state.npz") if self.scratch else None
        if state is None or str(state["signature"]) != self.signature:
            return 0
        running.restore(torch.from_numpy(state["keys"]))
        guesses.copy_(torch.from_numpy(state["guesses"]))
        start = int(state["start"])
        log.info("search: goes on at clip %d of %d, where it was interrupted", start, self.pool.shape[0])
        return start

    def _save(self, running: Running | RunningOnGpu, start: int, guesses: torch.Tensor) -> None:
        if self.scratch is None:
            return
        arrays: dict[str, Any] = {
            "keys": running.keys.cpu().numpy(),
            "guesses": guesses.cpu().numpy(),
            "start": np.int64(start),
            "signature": np.array(self.signature),
        }
        try:
            files.write_npz(self.scratch / "state.npz", arrays)
        except OSError as error:
            log.warning("search: cannot save its state, so it cannot be resumed: %s", cause(error))
            self.scratch = None


class _Batch:
    """The seeds of one product; `guesses` is a view."""

    def __init__(
        self,
        bound: CosineBound,
        seeds64: torch.Tensor,
        lengths: torch.Tensor,
        guesses: torch.Tensor,
        seeds: slice,
    ) -> None:
        self.seeds64, self.lengths, self.guesses, self.seeds = seeds64[seeds], lengths[seeds], guesses[seeds], seeds
        self.matrix, self.constants = bound.seeds(self.seeds64)


def check_finite(numbers: torch.Tensor, vectors: Vectors, start: int) -> None:
    """UserError naming the first row from `start` on whose number (its length, its sum) is not finite."""
    finite = numbers.isfinite()
    if not bool(finite.all()):
        row = start + int((~finite).nonzero()[0])
        raise UserError(f"{vectors.name(row)}: its vector holds a number that is not finite (NaN or infinity)")

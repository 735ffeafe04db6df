"""One process's share of embedding: parts of clips -> decoders -> fbank -> forward -> parts in the store.

Decoding, host copies and the forward pass overlap: decoder processes run ahead through the list of parts, this
process consumes their results in order and, on CUDA, only enqueues work, with a few batches in flight. Within a part
waveforms are batched by sample rate for the fbank and its spectrograms, all of one shape, for the forward pass, both
in an order that depends on the part's clips alone, the last batch padded to full shape: a part has the same bytes
whoever makes it. The price of parts as the unit: a killed run redoes its unfinished ones (about a minute).
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from balance.audio.decode import kept_samples
from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded
from balance.audio.fbank import LogMel
from balance.embed import store
from balance.encoders.checkpoint import Checkpoint, read_checkpoint
from balance.encoders.precision import Precision
from balance.encoders.vipant import Encoder, build_encoder
from balance.engine.local import run_shares
from balance.errors import UserError
from balance.records import DecodeFailure, Facts, Float32, Index, Int64
from balance.runtime import locks
from balance.runtime.threads import Cores

log = logging.getLogger(__name__)

PART_CLIPS = {"cuda": 4096, "cpu": 512}  # under a minute of work on either; 2 M clips are 489 files on a GPU
_IN_FLIGHT = 4  # batches that CUDA may be behind
_STAGED_CLIPS_CPU = 16  # waveforms staged on a CPU: bounds the memory, loses no speed
_CPU_CLIPS = 2  # clips a task on a CPU: 2 x 306 tokens x 3072 bfloat16 are 3.8 MB; alone they are 5 % slower


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All clips to embed, cut into parts: part i is rows bounds[i] … bounds[i + 1], to be stored as names[i]."""

    ids: Any
    paths: Any
    offsets: Int64
    sizes: Int64
    splits: tuple[str, ...]  # of each part
    names: tuple[str, ...]
    bounds: Int64

    def jobs(self, part: int) -> list[Job]:
        at = slice(int(self.bounds[part]), int(self.bounds[part + 1]))
        columns = (self.ids[at].to_pylist(), self.paths[at].to_pylist(), self.offsets[at], self.sizes[at])
        return [Job(i, p, int(o), int(s)) for i, p, o, s in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return int(self.bounds[-1])


def plan_parts(
    todo: Sequence[tuple[str, Index, Int64]], part_clips: int, attempts: Callable[[str], str] | None = None
) -> Plan:
    """Cut what is to be embedded into parts: (split, its whole index, the ascending rows that need an embedding).

    attempts: of clips that are decoded again, `Store.attempts`; else their part would be taken for done.

    Parts are cut at fixed rows of the whole index, not of what is left of it: a job that starts later, with less
    left, plans the same parts for it. A path that occurs in two splits is planned once.
    """
    columns: list[tuple[Any, Any, Int64, Int64]] = []
    names: list[str] = []
    splits: list[str] = []
    bounds = [0]
    planned = pa.array([], pa.string())
    for split, index, rows in todo:
        paths = index.paths.take(pa.array(rows))
        fresh = ~np.asarray(pc.is_in(paths, value_set=planned).to_numpy(zero_copy_only=False), dtype=bool)
        rows, paths = rows[fresh], paths.filter(pa.array(fresh))
        first = np.asarray(pc.index_in(paths, value_set=pc.unique(paths)).to_numpy(zero_copy_only=False))
        if len(first) and len(np.unique(first)) < len(first):  # one file listed twice under two ids
            keep = np.sort(np.unique(first, return_index=True)[1])
            rows, paths = rows[keep], paths.take(pa.array(keep))
        planned = pa.concat_arrays([planned, paths])
        offsets, sizes = index.places()
        columns.append((index.ids.take(pa.array(rows)), paths, offsets[rows], sizes[rows]))
        cuts = np.flatnonzero(np.diff(rows // part_clips)) + 1
        for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            if b > a:
                clips = paths[int(a) : int(b)].to_pylist()
                earlier = [attempts(path) for path in clips] if attempts else []
                names.append(store.plan_name(clips, [x for x in earlier if x]))
                splits.append(split)
                bounds.append(bounds[-1] + int(b - a))
    empty = pa.array([], pa.string())
    return Plan(
        ids=pa.concat_arrays([empty] + [c[0] for c in columns]),
        paths=pa.concat_arrays([empty] + [c[1] for c in columns]),
        offsets=np.concatenate([np.empty(0, np.int64)] + [c[2] for c in columns]),
        sizes=np.concatenate([np.empty(0, np.int64)] + [c[3] for c in columns]),
        splits=tuple(splits),
        names=tuple(names),
        bounds=np.array(bounds, dtype=np.int64),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """Everything a process needs to embed: picklable, no handles, no models."""

    directory: Path
    plan: Plan
    checkpoint: Path
    device: str
    precision: Precision
    compile: bool
    batch_size: int
    decode: DecodeSettings
    num_workers: int
    clip_timeout_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What happened since the last report: clips decoded, and for a finished part its number and failures."""

    num_clips: int = 0
    part: int | None = None
    failures: tuple[DecodeFailure, ...] = ()
    by_others: bool = False


Report = Callable[[Progress], None]
Spread = Callable[[Callable[[slice], torch.Tensor], list[slice]], Iterable[torch.Tensor]]


def embed(task: EmbedTask, report: Report) -> None:
    """Make every part of the plan that is not there, sharing with whoever else works on it; returns when all are.

    Raises UserError (out of memory, disk) and whatever `report` raises; finished parts stay.
    """
    device = torch.device(task.device)
    checkpoint = read_checkpoint(task.checkpoint)
    encoder = build_encoder(checkpoint, device, task.precision, task.compile)
    if device.type == "cuda":
        _embed(task, _Batches(encoder, checkpoint, device, task.batch_size, spread=map), report)
        return
    with Cores() as cores:
        _embed(task, _Batches(encoder, checkpoint, device, task.batch_size, spread=cores.map), report)


def embed_on(task: EmbedTask, devices: Sequence[str], report: Report) -> None:
    """`embed` on these devices at once, a process each; `report` is called in this process, once for each part.

    All processes go through the same list of parts; the parts' locks decide who makes which, exactly as between jobs
    on one cache. Raises what `embed` raises.
    """
    reported: set[int] = set()

    def report_once(progress: Progress) -> None:
        if progress.part is not None:
            if progress.part in reported:  # the process that waited for it tells too
                return
            reported.add(progress.part)
        elif progress.by_others:
            return
        report(progress)

    decoders = (len(range(i, task.num_workers, len(devices))) or 1 for i in range(len(devices)))
    shares = [
        dataclasses.replace(task, device=device, num_workers=num_workers)
        for device, num_workers in zip(devices, decoders, strict=True)
    ]
    try:
        run_shares(embed, shares, report_once)
    finally:
        store.remove_leftovers(task.directory)  # a killed process's; parts are atomic, its locks stale at once
    if missing := len(task.plan.names) - len(reported):
        raise RuntimeError(f"encoder processes ended before {missing} parts were made: run the same command again")


def _embed(task: EmbedTask, batches: _Batches, report: Report) -> None:
    left = list(range(len(task.plan.names)))
    while left:
        claimed = _Claims(task, left)
        try:  # around the pool: its threads claim as soon as it is made
            with DecoderPool(
                task.decode, claimed.jobs(), num_workers=task.num_workers, clip_timeout_s=task.clip_timeout_s
            ) as decoders:
                _consume(task, decoders, claimed, batches, report)
        finally:
            claimed.release()
        left = claimed.held_by_others
        for part in claimed.done_by_others:
            clips = int(task.plan.bounds[part + 1] - task.plan.bounds[part])
            report(Progress(num_clips=clips, part=part, by_others=True))
        if left:
            time.sleep(1.0)  # another job holds them: look again for its part, or its death


class _Claims:
    """Goes through parts in order, taking the lock of each that is not yet made; the decoders pull jobs through it."""

    def __init__(self, task: EmbedTask, parts: Sequence[int]) -> None:
        self._task, self._parts = task, parts
        self._locks: dict[int, locks.Lock] = {}
        self._guard = threading.Lock()
        self._stopped = False
        self.held_by_others: list[int] = []
        self.done_by_others: list[int] = []

    def jobs(self) -> Iterator[tuple[tuple[int, int, int], Job]]:
        """((part, row in it, its number of clips), job) of each claimed part's clips."""
        directory, plan = self._task.directory, self._task.plan
        for part in self._parts:
            name = plan.names[part]
            if store.part_done(directory, name):
                self.done_by_others.append(part)
                continue
            with self._guard:
                if self._stopped:
                    return
                lock = locks.acquire(store.lock_path(directory, name))
                if lock is None:
                    self.held_by_others.append(part)
                    continue
                self._locks[part] = lock
            if store.part_done(directory, name):  # made between the look and the lock
                self.release(part)
                self.done_by_others.append(part)
                continue
            jobs = plan.jobs(part)
            for row, job in enumerate(jobs):
                yield (part, row, len(jobs)), job

    def release(self, part: int | None = None) -> None:
        """Give back one lock, or all and claim no more."""
        with self._guard:
            if part is None:
                self._stopped = True
            for number in list(self._locks) if part is None else [part]:
                self._locks.pop(number).release()


def _consume(task: EmbedTask, decoders: DecoderPool, claimed: _Claims, batches: _Batches, report: Report) -> None:
    current: _OpenPart | None = None
    for (part, row, num_clips), job, result in decoders.results():
        if current is None:
            current = _OpenPart(part, num_clips)
        if isinstance(result, Undecoded):
            current.failures.append(DecodeFailure(job.id, job.path, result.reason, result.detail))
        else:
            current.add(job, result)
            batches.add(result)
        if row + 1 < num_clips:
            report(Progress(num_clips=1))
            continue
        current.finish(task, batches)
        claimed.release(part)
        report(Progress(num_clips=1, part=part, failures=tuple(current.failures)))
        current = None


@dataclass(slots=True)
class _OpenPart:
    """The facts of a part's decoded clips, in order, until it is written."""

    part: int
    num_clips: int
    jobs: list[Job] = field(default_factory=list)
    facts: list[tuple[int, int, float, bytes]] = field(default_factory=list)
    failures: list[DecodeFailure] = field(default_factory=list)

    def add(self, job: Job, clip: Decoded) -> None:
        self.jobs.append(job)
        self.facts.append((clip.sample_rate, clip.num_samples, clip.rms_db, clip.pcm_sha1))

    def finish(self, task: EmbedTask, batches: _Batches) -> None:
        embeddings = batches.finish()
        finite = np.isfinite(embeddings).all(axis=1)
        for at in np.flatnonzero(~finite):
            job = self.jobs[at]
            detail = "the encoder's output is not finite"
            self.failures.append(DecodeFailure(job.id, job.path, "not_finite", detail))
        kept = np.flatnonzero(finite)
        facts = [self.facts[i] for i in kept]
        rows = store.PartRows(
            ids=[self.jobs[i].id for i in kept],
            paths=[self.jobs[i].path for i in kept],
            embeddings=embeddings[kept],
            facts=Facts(
                np.array([f[0] for f in facts], dtype=np.int32),
                np.array([f[1] for f in facts], dtype=np.int64),
                np.array([f[2] for f in facts], dtype=np.float32),
                np.frombuffer(b"".join(f[3] for f in facts), dtype=np.uint8).reshape(-1, 20),
            ),
        )
        store.write_part(task.directory, task.plan.names[self.part], rows, self.failures, batches.made_by())


class _Batches:
    """Waveforms in, in order; the part's embeddings out at `finish()`, in the same order. `spread`: the built-in map,
    or one that works on several items at a time."""

    def __init__(
        self, encoder: Encoder, checkpoint: Checkpoint, device: torch.device, batch_size: int, *, spread: Spread
    ) -> None:
        self._encoder = encoder
        self._max_frames = checkpoint.front_end.max_frames
        self._log_mel = LogMel(checkpoint.front_end)
        self._dim = checkpoint.dim
        self._device = device
        self._spread = spread
        on_cuda = device.type == "cuda"
        self._batch_size = batch_size
        self._at_once = batch_size if on_cuda else min(batch_size, _CPU_CLIPS)  # clips of one call
        self._halved_from: int | None = None
        self._staged_clips = batch_size if on_cuda else min(batch_size, _STAGED_CLIPS_CPU)
        self._in_flight: deque[Any] = deque()
        self._start()

    def _start(self) -> None:
        self._num_clips = 0
        self._staged: dict[int, _Staged] = {}
        self._spectrograms: list[torch.Tensor] = []
        self._order: list[int] = []  # the clip of each spectrogram, in the order of the forward pass
        self._outputs: list[torch.Tensor] = []

    def add(self, clip: Decoded) -> None:
        """Stage a waveform (its samples are copied at once)."""
        rate = clip.sample_rate
        staged = self._staged.get(rate)
        if staged is None:
            longest = kept_samples(rate, self._max_frames)
            staged = self._staged[rate] = _Staged(self._staged_clips, longest, pinned=self._device.type == "cuda")
        staged.add(self._num_clips, clip.samples)
        self._num_clips += 1
        if len(staged.clips) == self._staged_clips:
            self._fbank(rate)

    def finish(self) -> Float32:
        """(clips added since the last call, dim) float32."""
        for rate in sorted(self._staged):
            self._fbank(rate)
        self._forward(last=True)
        out = np.empty((self._num_clips, self._dim), dtype=np.float32)
        if self._outputs:
            out[self._order] = torch.cat(self._outputs).cpu().numpy()
        self._in_flight.clear()
        self._start()
        return out

    def made_by(self) -> dict[str, Any]:
        """Facts about this process for the part's metadata."""
        made: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "batch_size": self._at_once,
            "torch": torch.__version__,
        }
        if self._halved_from is not None:
            made["batch_size_halved_from"] = self._halved_from
        return made

    def _fbank(self, rate: int) -> None:
        staged = self._staged.pop(rate)
        waves = staged.samples[: len(staged.clips), : max(staged.lengths)]

        def run(clips: slice) -> torch.Tensor:
            samples = waves[clips].to(self._device, non_blocking=True)
            return self._log_mel(samples, staged.lengths[clips], rate)

        self._spectrograms.extend(self._in_pieces(run, len(waves)).unbind())
        self._order.extend(staged.clips)
        self._forward(last=False)

    def _forward(self, *, last: bool) -> None:
        while len(self._spectrograms) >= self._batch_size or (last and self._spectrograms):
            batch, self._spectrograms = self._spectrograms[: self._batch_size], self._spectrograms[self._batch_size :]

            def run(clips: slice, batch: list[torch.Tensor] = batch) -> torch.Tensor:
                piece = torch.stack(batch[clips])
                missing = clips.stop - clips.start - len(piece)
                if missing:  # padded to full shape: the class token's products depend on the number of rows
                    piece = torch.cat([piece, piece.new_zeros((missing, *piece.shape[1:]))])
                return self._encoder(piece)[: len(piece) - missing]

            self._outputs.append(self._in_pieces(run, len(batch)))
            if self._device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self._in_flight.append(event)
                if len(self._in_flight) > _IN_FLIGHT:
                    self._in_flight.popleft().synchronize()

    def _in_pieces(self, run: Callable[[slice], torch.Tensor], num_clips: int) -> torch.Tensor:
        """`run` on all clips, `_at_once` a call."""
        while True:
            size = self._at_once
            pieces = [slice(at, at + size) for at in range(0, num_clips, size)]
            try:
                return torch.cat(list(self._spread(run, pieces)))
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UserError(
                        "the GPU's memory does not hold a single clip: free some of it, or type encoder.device=cpu"
                    ) from error
            self._halved_from = self._halved_from or size
            self._at_once = size // 2
            torch.cuda.empty_cache()
            log.warning("the GPU ran out of memory: going on with encoder.batch_size=%d", self._at_once)


class _Staged:
    """Waveforms of one sample rate waiting for the fbank: rows of one (pinned) host tensor."""

    def __init__(self, num_clips: int, num_samples: int, *, pinned: bool) -> None:
        self.samples = torch.empty((num_clips, num_samples), dtype=torch.float32, pin_memory=pinned)
        self.clips: list[int] = []
        self.lengths: list[int] = []

    def add(self, clip: int, samples: Float32) -> None:
        row = self.samples[len(self.clips)]
        row[: len(samples)] = torch.from_numpy(np.array(samples, copy=False))
        self.clips.append(clip)
        self.lengths.append(len(samples))

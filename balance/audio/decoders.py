"""Decoder processes at work: an iterator of jobs in, decoded clips out, in the jobs' order.

The samples lie in the slots of one shared memory block. A decoder that dies or hangs costs its own clip only: it is
replaced and the clip becomes `undecodable` (one that died is first tried once more, since the kernel's memory killer
may have picked an innocent). A server that does not answer is no clip's fault: `Unreachable` ends the results. One
thread of the parent minds one process; a thread takes a slot before it takes a job, so the oldest job always has a slot
and waiting for results in order cannot deadlock. The price of the order: one slow clip holds up those behind it, for as
long as there are slots.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from balance.audio.decode import kept_samples
from balance.audio.decoder_process import DecoderProcess, DecodeSettings, Job
from balance.data.config import MediaSource
from balance.errors import UserError
from balance.runtime.remote import Unreachable

_START_ATTEMPTS = 5  # of a decoder that is killed each time


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded clip: `samples` (num_kept,) float32 of channel 0, or so many windows of equal length one after the
    other, valid until the next result; facts of the whole clip; `partial`: what of it could not be decoded, in words,
    or ""; quality: as `quality.Quality.numbers`; is_last: whether the next result is another clip's, not more windows
    of this one; slot: where the samples lie, for who wants to keep them longer, if the pool lends its slots."""

    samples: npt.NDArray[np.float32]
    sample_rate: int
    num_samples: int
    rms_db: float
    pcm_sha1: bytes
    partial: str
    quality: tuple[float, ...]
    num_windows: int = 1
    is_last: bool = True
    slot: Slot | None = None


class Slot:
    """The place of one clip's samples: its decoder may fill it again after the next result, or, if the consumer keeps
    it, once it is given back. most_kept: at once, or decoders would have none."""

    def __init__(self, number: int, most_kept: int, free: queue.SimpleQueue[int | None]) -> None:
        self._number, self._free, self.most_kept, self.is_kept = number, free, most_kept, False

    def keep(self) -> None:
        self.is_kept = True

    def give_back(self) -> None:
        self._free.put(self._number)


@dataclass(frozen=True, slots=True)
class Undecoded:
    """Why there is no waveform: one of `records.REASONS` and a detail without folder, time or process id."""

    reason: str
    detail: str


def plan_slots(queue_bytes: int, max_frames: int, num_workers: int) -> tuple[int, int]:
    """(bytes per slot, number of slots) of a decode queue of at most `queue_bytes`.

    A slot holds a whole cropped clip at 192 kHz; its pages become resident only as far as a clip fills them. A longer
    one (a higher rate) crosses the pipe instead. At least two slots per decoder, however small the queue.
    """
    return plan_window_slots(queue_bytes, kept_samples(192_000, max_frames), num_workers)


def plan_window_slots(queue_bytes: int, num_samples: int, num_workers: int) -> tuple[int, int]:
    """`plan_slots` for slots of so many samples."""
    slot_bytes = -(-4 * num_samples // mmap.PAGESIZE) * mmap.PAGESIZE
    return slot_bytes, min(max(queue_bytes // slot_bytes, 2 * num_workers), 16 * num_workers)


def channel_settings(source: MediaSource, max_frames: int, queue_bytes: int, num_workers: int) -> DecodeSettings:
    """For whoever wants the first channel as it is, at most `max_frames` frames of a clip."""
    slot_bytes, num_slots = plan_slots(queue_bytes, max_frames, num_workers)
    return DecodeSettings(
        media_root=str(source.root),
        format=source.format.value,
        columns=asdict(source.columns),
        max_frames=max_frames,
        zero_mean=False,
        slot_bytes=slot_bytes,
        num_slots=num_slots,
    )


class DecoderPool:
    """`num_workers` decoder processes working through an iterator of jobs; iterate over `results()`.

    jobs is advanced by the minding threads (one at a time), never more than the slots ahead of the consumer.
    """

    def __init__(
        self, settings: DecodeSettings, jobs: Iterator[tuple[Any, Job]], *, num_workers: int, clip_timeout_s: float
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._timeout_s = clip_timeout_s + settings.fetch_limit_s
        size = settings.slot_bytes * settings.num_slots
        self._fd = _anonymous_memory(size)
        self._memory = mmap.mmap(self._fd, size)
        self.lends_slots = False  # whether results say in which slot they lie
        self._slots: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(settings.num_slots):
            self._slots.put(slot)
        self._order = threading.Lock()
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closed = False
        self._starting = threading.Lock()  # nothing is started once the pool is closed
        self._processes: dict[int, DecoderProcess] = {}
        self._at_work: dict[int, _Pending] = {}
        self._threads = [
            threading.Thread(target=self._mind, args=(i,), daemon=True, name=f"decoder {i}") for i in range(num_workers)
        ]
        self._running = num_workers
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[tuple[Any, Job, Decoded | Undecoded]]:
        """(tag, job, result) in the order of the jobs. A result's samples are valid until the next iteration.

        A long clip that an encoder hears in windows has several results, one after the other, until one `is_last`; an
        `Undecoded` may end them.
        """
        finished = 0
        while finished < len(self._threads):
            pending = self._pending.get()
            if pending is None:
                finished += 1
                continue
            while True:
                result = pending.results.get()
                if isinstance(result, BaseException):
                    raise result
                yield pending.tag, pending.job, result
                if isinstance(result, Undecoded) or result.is_last:
                    break
                pending.consumed.put(None)  # the slot may be filled again
            if isinstance(result, Undecoded) or result.slot is None or not result.slot.is_kept:
                self._slots.put(pending.slot)

    @property
    def memory(self) -> mmap.mmap:
        """All slots, one after the other."""
        return self._memory

    def process_ids(self) -> list[int]:
        """The process ids of the decoders that live now."""
        return [process.pid for process in self._processes.values()]

    def close(self) -> None:
        """Stop the processes; what is not yet consumed is dropped."""
        with self._starting:
            self._closed = True
            for process in list(self._processes.values()):
                process.kill()  # its thread gets EOFError and clears it away
        for _ in self._threads:
            self._slots.put(None)
        for pending in list(self._at_work.values()):
            pending.consumed.put(None)
        for thread in self._threads:
            thread.join(timeout=5)
        with contextlib.suppress(BufferError):  # a consumer may still hold a view of a slot
            self._memory.close()
        os.close(self._fd)

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mind(self, number: int) -> None:
        try:
            while not self._closed:
                slot = self._slots.get()
                if slot is None:
                    break
                with self._order:  # taking a job and queueing it is one step: results keep the jobs' order
                    try:
                        tag, job = next(self._jobs)
                    except StopIteration:
                        self._slots.put(slot)
                        break
                    except BaseException as error:
                        failed = _Pending(None, Job("", ""), slot)
                        failed.results.put(error)
                        self._pending.put(failed)
                        break
                    pending = self._at_work[number] = _Pending(tag, job, slot)
                    self._pending.put(pending)
                try:
                    self._serve(number, pending)
                except BaseException as error:
                    pending.results.put(error)
        finally:
            self._clear_away(number)
            self._pending.put(None)

    def _serve(self, number: int, pending: _Pending) -> None:
        """All of a clip's results, each once the one before is consumed."""
        for piece in itertools.count():
            result = self._decode(number, pending.job, pending.slot, piece)
            pending.results.put(result)
            if isinstance(result, Undecoded) or result.is_last:
                return
            pending.consumed.get()
            if self._closed:
                return

    def _decode(self, number: int, job: Job, slot: int, piece: int) -> Decoded | Undecoded:
        for attempt in (1, 2):
            process = self._processes.get(number) or self._start(number)
            try:
                answer, payload = process.decode(job, slot, self._timeout_s, piece)
                break
            except TimeoutError:
                self._clear_away(number)
                return Undecoded("undecodable", "the decoder gave no answer within its time limit")
            except (EOFError, OSError, ValueError):
                self._clear_away(number)
                if self._closed:
                    raise
                if attempt == 2:
                    return Undecoded("undecodable", "the decoder process died")
        if "unreachable" in answer:
            raise Unreachable(answer["unreachable"])
        if "reason" in answer:
            return Undecoded(answer["reason"], answer["detail"])
        lent = None
        if payload:
            samples = np.frombuffer(payload, dtype=np.float32)
        else:
            at = slot * self._settings.slot_bytes
            samples = np.frombuffer(self._memory, dtype=np.float32, count=answer["num_kept"], offset=at)
            if self.lends_slots:
                lent = Slot(slot, self._settings.num_slots // 2, self._slots)
        return Decoded(
            samples,
            answer["sample_rate"],
            answer["num_samples"],
            float(answer["rms_db"]),
            bytes.fromhex(answer["pcm_sha1"]),
            answer["partial"],
            tuple(answer["quality"]),
            answer["num_windows"],
            answer["is_last"],
            lent,
        )

    def _start(self, number: int) -> DecoderProcess:
        for _ in range(_START_ATTEMPTS):
            with self._starting:
                if self._closed:
                    raise EOFError
                process = self._processes[number] = DecoderProcess(self._settings, self._fd)
            try:
                process.wait_until_ready()
                return process
            except EOFError:
                self._clear_away(number)
            except UserError:
                self._clear_away(number)
                raise
        raise UserError(
            f"decoder processes are killed while they start ({_START_ATTEMPTS} times): is there enough memory? "
            "Type a smaller num_workers=…"
        )

    def _clear_away(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is not None:
            process.stop()


class _Pending:
    """A job on its way: its results come from the minding thread; the consumer says when it is done with one."""

    __slots__ = ("consumed", "job", "results", "slot", "tag")

    def __init__(self, tag: Any, job: Job, slot: int) -> None:
        self.tag, self.job, self.slot = tag, job, slot
        self.results: queue.SimpleQueue[Decoded | Undecoded | BaseException] = queue.SimpleQueue()
        self.consumed: queue.SimpleQueue[None] = queue.SimpleQueue()


def _anonymous_memory(size: int) -> int:
    """A descriptor of `size` bytes of shared memory without a name (nothing is left behind by kill -9)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("balance-decode")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor

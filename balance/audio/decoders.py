"""Decoding outside the process that owns the model: `python -m balance.audio.decoders` subprocesses and shared memory.

In: jobs (which clip, where its bytes lie) in an order. Out: results in that same order, the samples in a slot of one
shared memory block, so that a clip of 1.8 MB crosses no pipe. A decoder that dies or hangs costs its own clip only:
it is replaced and the clip becomes `undecodable` (one that died is first tried once more, since the kernel's memory
killer may have picked an innocent). Plain subprocesses, not multiprocessing: they import no torch and start in 0.2 s.
One thread of the parent minds one subprocess; a slot is taken before a job, so the oldest job always has one and
waiting for results in order cannot deadlock.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from balance.audio.decode import Undecodable, load
from balance.data import media

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_LIMIT_S = 120.0  # imports from a cold network file system take their time


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """What a decoder process needs to know; crosses the process border as JSON."""

    media_root: str
    format: str
    columns: dict[str, str]
    max_frames: int
    zero_mean: bool
    slot_bytes: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to decode. `path` is its key; `offset`, `size` its place in a container (else −1)."""

    id: str
    path: str
    offset: int = -1
    size: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded clip: `samples` (num_kept,) float32 of channel 0, valid until `release()`; facts of the whole clip."""

    samples: npt.NDArray[np.float32]
    sample_rate: int
    num_samples: int
    rms_db: float
    pcm_sha1: bytes


@dataclass(frozen=True, slots=True)
class Undecoded:
    """Why there is no waveform: one of `records.REASONS` and a detail without folder, time or process id."""

    reason: str
    detail: str


def plan_slots(queue_bytes: int, max_frames: int, num_workers: int) -> tuple[int, int]:
    """(bytes a slot, number of slots) of a decode queue of at most `queue_bytes`.

    A slot holds a whole cropped clip at 192 kHz; its pages become resident only as far as a clip fills them. A longer
    one (a higher rate) crosses the pipe instead. At least two slots a decoder, however small the queue.
    """
    slot_bytes = -(-4 * int(192_000 * (max_frames / 100 + 0.05)) // mmap.PAGESIZE) * mmap.PAGESIZE
    return slot_bytes, min(max(queue_bytes // slot_bytes, 2 * num_workers), 16 * num_workers)


class DecoderCannotStart(RuntimeError):
    """The decoder program itself fails: no clip is to blame."""


class _Process:
    """One decoder subprocess; `decode` gives its answer, or raises TimeoutError / EOFError. One thread's own, but for
    `kill`."""

    def __init__(self, settings: DecodeSettings, memory_fd: int) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "balance.audio.decoders", json.dumps(asdict(settings)), str(memory_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libsndfile's mp3 decoder writes warnings there
            pass_fds=[memory_fd],
            bufsize=0,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout

    def wait_until_ready(self) -> None:
        """Raises EOFError or TimeoutError where it does not start."""
        self._read_until(lambda data: b"\n" in data, time.monotonic() + _START_LIMIT_S)

    def decode(self, job: Job, slot: int, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        request = {"path": job.path, "offset": job.offset, "size": job.size, "slot": slot}
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise EOFError from error
        deadline = time.monotonic() + timeout_s
        header, _, rest = self._read_until(lambda data: b"\n" in data, deadline).partition(b"\n")
        answer = json.loads(header)
        inline = int(answer.get("inline_bytes", 0))
        if inline:
            rest += self._read_until(lambda data: len(data) >= inline - len(rest), deadline)
        return answer, rest

    def _read_until(self, enough: Any, deadline: float) -> bytes:
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        data = b""
        while not enough(data):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise TimeoutError
            chunk = os.read(self._stdout.fileno(), 1 << 20)
            if not chunk:
                raise EOFError
            data += chunk
        return data

    @property
    def pid(self) -> int:
        return self._popen.pid

    def kill(self) -> None:
        """Ends it from any thread: whoever reads its answers gets EOFError."""
        self._popen.kill()

    def stop(self) -> None:
        self.kill()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._popen.wait()


class DecoderPool:
    """`num_workers` decoder processes working through an iterator of jobs; iterate over `results()`.

    jobs is advanced by the minding threads (one at a time), never more than the slots ahead of the consumer.
    """

    def __init__(
        self, settings: DecodeSettings, jobs: Iterator[tuple[Any, Job]], *, num_workers: int, clip_timeout_s: float
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._timeout_s = clip_timeout_s
        size = settings.slot_bytes * settings.num_slots
        self._fd = _anonymous_memory(size)
        self._memory = mmap.mmap(self._fd, size)
        self._slots: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(settings.num_slots):
            self._slots.put(slot)
        self._order = threading.Lock()
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closed = False
        self._starting = threading.Lock()  # nothing is started once the pool is closed
        self._processes: dict[int, _Process] = {}
        self._threads = [
            threading.Thread(target=self._mind, args=(i,), daemon=True, name=f"decoder {i}") for i in range(num_workers)
        ]
        self._running = num_workers
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[tuple[Any, Job, Decoded | Undecoded]]:
        """(tag, job, result) in the order of the jobs. A result's samples are valid until the next iteration."""
        finished = 0
        while finished < len(self._threads):
            pending = self._pending.get()
            if pending is None:
                finished += 1
                continue
            pending.ready.wait()
            if pending.error is not None:
                raise pending.error
            assert pending.result is not None
            yield pending.tag, pending.job, pending.result
            self._slots.put(pending.slot)

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
                        failed.error = error
                        failed.ready.set()
                        self._pending.put(failed)
                        break
                    pending = _Pending(tag, job, slot)
                    self._pending.put(pending)
                try:
                    pending.result = self._decode(number, job, slot)
                except BaseException as error:
                    pending.error = error
                finally:
                    pending.ready.set()
        finally:
            self._clear_away(number)
            self._pending.put(None)

    def _decode(self, number: int, job: Job, slot: int) -> Decoded | Undecoded:
        for attempt in (1, 2):
            process = self._processes.get(number) or self._start(number)
            try:
                answer, payload = process.decode(job, slot, self._timeout_s)
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
        if "reason" in answer:
            return Undecoded(answer["reason"], answer["detail"])
        if payload:
            samples = np.frombuffer(payload, dtype=np.float32)
        else:
            at = slot * self._settings.slot_bytes
            samples = np.frombuffer(self._memory, dtype=np.float32, count=answer["num_kept"], offset=at)
        return Decoded(
            samples,
            answer["sample_rate"],
            answer["num_samples"],
            float(answer["rms_db"]),
            bytes.fromhex(answer["pcm_sha1"]),
        )

    def _start(self, number: int) -> _Process:
        with self._starting:
            if self._closed:
                raise EOFError
            process = self._processes[number] = _Process(self._settings, self._fd)
        try:
            process.wait_until_ready()
        except (EOFError, TimeoutError) as error:
            self._clear_away(number)
            raise DecoderCannotStart(
                "a decoder process did not start; see: python -m balance.audio.decoders"
            ) from error
        return process

    def _clear_away(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is not None:
            process.stop()


class _Pending:
    """A job on its way: filled by the minding thread, awaited by the consumer."""

    __slots__ = ("error", "job", "ready", "result", "slot", "tag")

    def __init__(self, tag: Any, job: Job, slot: int) -> None:
        self.tag, self.job, self.slot = tag, job, slot
        self.ready = threading.Event()
        self.result: Decoded | Undecoded | None = None
        self.error: BaseException | None = None


def _anonymous_memory(size: int) -> int:
    """A descriptor of `size` bytes of shared memory without a name (nothing is left behind by kill -9)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("balance-decode")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _decode_one(
    request: dict[str, Any], settings: DecodeSettings, reader: media.MediaReader, memory: mmap.mmap
) -> tuple[dict[str, Any], bytes]:
    try:
        source = reader.open(request["path"], request["offset"], request["size"])
        with contextlib.nullcontext() if isinstance(source, str) else source:
            wave = load(source, max_frames=settings.max_frames, zero_mean=settings.zero_mean)
    except Undecodable as error:
        return {"reason": error.reason, "detail": error.detail}, b""
    except OSError as error:
        return {"reason": "undecodable", "detail": error.strerror or "cannot be opened"}, b""
    answer: dict[str, Any] = {
        "sample_rate": wave.sample_rate,
        "num_samples": wave.num_samples,
        "rms_db": repr(float(wave.rms_db)),
        "pcm_sha1": wave.pcm_sha1.hex(),
        "num_kept": len(wave.samples),
    }
    data = np.ascontiguousarray(wave.samples, dtype=np.float32)
    if data.nbytes > settings.slot_bytes:
        payload = data.tobytes()
        return {**answer, "inline_bytes": len(payload)}, payload
    at = request["slot"] * settings.slot_bytes
    memory[at : at + data.nbytes] = data.tobytes()
    return answer, b""


def main() -> None:
    """A decoder: JSON lines in on stdin, answers out on stdout, samples into the shared memory; ends with stdin."""
    if sys.platform == "linux":  # a decoder that hangs in a read does not notice that its parent was killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole job: the parent decides, and closes stdin
    settings = DecodeSettings(**json.loads(sys.argv[1]))
    memory = mmap.mmap(int(sys.argv[2]), settings.slot_bytes * settings.num_slots)
    reader = media.MediaReader(settings.media_root, settings.format, settings.columns)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints cannot spoil the answers
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answer, payload = _decode_one(json.loads(line), settings, reader, memory)
        answers.write(json.dumps(answer).encode() + b"\n" + payload)
        answers.flush()


if __name__ == "__main__":
    main()

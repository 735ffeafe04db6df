"""One decoder process, both ends of its pipe: `DecoderProcess` in the parent, `main` in the subprocess.

In: a clip's job, as a JSON line. Out: a JSON line with the clip's facts, or with the reason why there are none; the
samples go into a slot of shared memory, so that the 1.8 MB of a clip cross no pipe (a clip too long for its slot
follows its line; windows come in pieces that fit, one for each request). A plain subprocess, not multiprocessing: it
imports no torch and starts in 0.2 s. The price: whoever changes the line changes both ends, which is why they stand in
one file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from balance.audio.decode import Waveform, load, load_windows
from balance.audio.sound_file import Undecodable
from balance.data import media
from balance.errors import UserError
from balance.runtime.child import follow_parent
from balance.runtime.remote import LIMIT_S, Unreachable, is_url

_MODULE = "balance.audio.decoder_process"
_START_LIMIT_S = 120.0  # imports from a cold network file system take their time


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """What a decoder process needs to know; crosses the process border as JSON.

    media_root: a folder, or its URL; windows: whether the encoder hears the whole clip mixed, at `sample_rate_hz`
    (None: the file's), in windows of `max_duration_s` (None: any length); else VIP-ANT's crop of `max_frames`.
    """

    media_root: str
    format: str
    columns: dict[str, str]
    max_frames: int
    zero_mean: bool
    slot_bytes: int
    num_slots: int
    windows: bool = False
    sample_rate_hz: int | None = None
    max_duration_s: float | None = None

    @property
    def fetch_limit_s(self) -> float:
        """Seconds beyond those of decoding that a clip may take until a server has answered."""
        return LIMIT_S if is_url(self.media_root) else 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to decode. `path` is its key; `offset`, `size` its place in a container, else −1 and its file's size
    when it was listed (−1: unknown)."""

    id: str
    path: str
    offset: int = -1
    size: int = -1


class DecoderProcess:
    """The parent's end of one decoder. One thread uses it; any thread may call `kill`."""

    def __init__(self, settings: DecodeSettings, memory_fd: int) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", _MODULE, json.dumps(asdict(settings)), str(memory_fd)],
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
        """Raises EOFError where it is killed while it starts, UserError where it cannot start: no clip is to blame."""
        try:
            self._read_until(lambda data: b"\n" in data, time.monotonic() + _START_LIMIT_S)
        except TimeoutError:
            raise UserError(f"a decoder process did not start within {_START_LIMIT_S:.0f} s: try again") from None
        except EOFError:
            if self._popen.wait() < 0:  # by a signal, as the kernel's memory killer sends it
                raise
            raise UserError(f"decoder processes cannot start: {_why_not()}") from None

    def decode(self, job: Job, slot: int, timeout_s: float, piece: int = 0) -> tuple[dict[str, Any], bytes]:
        """The answer's line, and the samples' bytes where they did not fit into the slot.

        piece: the number of the piece of windows that is asked for. Raises TimeoutError, and EOFError where the
        process has died.
        """
        request = {**asdict(job), "slot": slot, "piece": piece}
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
        return answer, bytes(rest)

    def _read_until(self, enough: Callable[[bytearray], bool], deadline: float) -> bytearray:
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        data = bytearray()
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


def _why_not() -> str:
    """The last line of what the program says when it fails."""
    done = subprocess.run([sys.executable, "-c", f"import {_MODULE}"], capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or [f"{_MODULE} ended at once"])[-1]


class _Decoder:
    """The subprocess's work: an answer for each request; keeps the clip open whose next piece may be asked for."""

    def __init__(self, settings: DecodeSettings, memory: mmap.mmap) -> None:
        self._settings, self._memory = settings, memory
        self._reader = media.MediaReader(settings.media_root, settings.format, settings.columns)
        self._open: Iterator[Waveform] = iter(())
        self._next: tuple[str, int] | None = None  # the path and the number of the piece that `_open` gives next

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer's line, and the samples' bytes where they do not fit into the slot."""
        try:
            wave = self._piece(request)
        except Unreachable as error:
            return {"unreachable": str(error)}, b""
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
            "partial": wave.partial,
            "quality": wave.quality,
            "num_windows": wave.num_windows,
            "is_last": wave.is_last,
        }
        data = np.ascontiguousarray(wave.samples, dtype=np.float32)
        if data.nbytes > self._settings.slot_bytes:
            payload = data.tobytes()
            return {**answer, "inline_bytes": len(payload)}, payload
        at = request["slot"] * self._settings.slot_bytes
        self._memory[at : at + data.nbytes] = data.tobytes()
        return answer, b""

    def _piece(self, request: dict[str, Any]) -> Waveform:
        """Raises Undecodable, OSError."""
        path, number = request["path"], request["piece"]
        if self._next != (path, number):
            self._open = self._pieces(request)  # closes what was open
            for _ in range(number):  # an earlier process gave them and died
                next(self._open)
        self._next = None
        wave = next(self._open)
        self._next = None if wave.is_last else (path, number + 1)
        return wave

    def _pieces(self, request: dict[str, Any]) -> Iterator[Waveform]:
        settings = self._settings
        source = self._reader.open(request["path"], request["offset"], request["size"])
        stretch_s = media.stretch_s(request["path"])
        with contextlib.nullcontext() if isinstance(source, str) else source:
            if settings.windows:
                yield from load_windows(
                    source,
                    sample_rate_hz=settings.sample_rate_hz,
                    max_duration_s=settings.max_duration_s,
                    most_samples=settings.slot_bytes // 4,
                    stretch_s=stretch_s,
                )
            else:
                yield load(source, max_frames=settings.max_frames, zero_mean=settings.zero_mean, stretch_s=stretch_s)


def main() -> None:
    """The subprocess: jobs come in on stdin, answers go out on stdout; it ends with stdin."""
    follow_parent()  # a decoder that hangs in a read does not notice that its stdin was closed
    settings = DecodeSettings(**json.loads(sys.argv[1]))
    memory = mmap.mmap(int(sys.argv[2]), settings.slot_bytes * settings.num_slots)
    decoder = _Decoder(settings, memory)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints cannot spoil the answers
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answer, payload = decoder.answer(json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n" + payload)
        answers.flush()


if __name__ == "__main__":
    main()

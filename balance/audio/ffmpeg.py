"""An open file that libsndfile cannot read -> its samples block by block, by FFmpeg (PyAV): m4a, webm, wma, aac …

In: a seekable file. Out: its samples, as an `open_sound.Sound`: the first audio stream at its own rate, with its own
channels; FFmpeg takes the encoder's delay and padding off. Only formats of sound and video are tried, so that a
playlist opens no other file or address. A packet that cannot be decoded is left out, as the `ffmpeg` program does, and
said in `partial`. The price: samples cross from FFmpeg to numpy frame by frame, which costs a tenth of the decoding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.stream import Discard

from balance.audio.sound_file import BLOCK_VALUES, Undecodable

_FORMATS = (
    *("aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "avi", "caf", "dsf", "dts", "dtshd", "eac3"),
    *("flac", "flv", "loas", "matroska", "mlp", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "nut", "ogg", "oma"),
    *("qcp", "rm", "shn", "tak", "truehd", "tta", "voc", "w64", "wav", "wv"),
)
_OPTIONS = {"format_whitelist": ",".join(_FORMATS)}
# Of these FFmpeg's length is a guess from the bit rate.
_GUESSED_LENGTH = {
    "aac",
    "ac3",
    "amr",
    "amrnb",
    "amrwb",
    "dts",
    "dtshd",
    "eac3",
    "loas",
    "mlp",
    "mp3",
    "mpeg",
    "truehd",
}
_SLACK_S = 0.2  # headers count an encoder's delay and padding, or the video beside the sound

Block = npt.NDArray[np.float32]


class FFmpegSound:
    """The samples of one open file; attributes as those of `open_sound.Sound`."""

    def __init__(self, file: BinaryIO) -> None:
        """file: seekable; it stays open and the caller's own. Raises Undecodable, OSError."""
        self._file = file
        self._announced_s: float | None = None
        self.partial = ""
        self._frames: Iterator[Any] | None = self._decode()
        self._first = next(self._frames, None)
        if self._first is None:
            raise Undecodable("undecodable", self.partial or "no sample could be decoded")
        self.sample_rate, self.channels = _kind(self._first)

    def blocks(self) -> Iterator[Block]:
        """(n, channels) float32, n the same for all but the last; each call begins at the first sample."""
        frames = self._frames or self._decode()
        first, self._frames = self._first if self._frames else None, None
        size = max(1, BLOCK_VALUES // self.channels)
        block, filled, num_samples = np.empty((size, self.channels), np.float32), 0, 0
        for frame in frames if first is None else _after(first, frames):
            self._refuse_change(frame, num_samples)
            samples = _samples(frame, self.channels)
            num_samples += len(samples)
            while len(samples):
                some, samples = samples[: size - filled], samples[size - filled :]
                block[filled : filled + len(some)] = some
                filled += len(some)
                if filled == size:
                    yield block
                    block, filled = np.empty((size, self.channels), np.float32), 0
        if filled:
            yield block[:filled]
        self._say_what_is_missing(num_samples / self.sample_rate)

    def _decode(self) -> Iterator[Any]:
        """The frames of the first audio stream that hold samples. `partial` then tells of packets left out."""
        self._file.seek(0)
        self.partial, num_damaged = "", 0
        with _said(), av.open(self._file, "r", metadata_errors="replace", options=_OPTIONS) as container:
            stream = _first_audio(container)
            self._announced_s = _announced_s(container, stream)
            for packet in self._packets(container, stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    num_damaged += 1
                    continue
                yield from (frame for frame in frames if frame.samples)
        if num_damaged:
            self.partial = f"{num_damaged} of its packets cannot be decoded"

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """All packets of the stream, the last one empty: it gets out what the decoder holds back."""
        try:
            yield from container.demux(stream)
        except av.error.FFmpegError as error:
            self.partial = f"it cannot be read further ({error.strerror})"

    def _refuse_change(self, frame: Any, num_samples: int) -> None:
        """Raises Undecodable where the stream goes on with another rate or other channels: that is no one waveform."""
        sample_rate, channels = _kind(frame)
        if (sample_rate, channels) != (self.sample_rate, self.channels):
            raise Undecodable(
                "undecodable",
                f"after {num_samples / self.sample_rate:.3f} s the sound changes from {self.sample_rate} Hz with "
                f"{self.channels} channels to {sample_rate} Hz with {channels}",
            )

    def _say_what_is_missing(self, decoded_s: float) -> None:
        if self._announced_s is not None and self._announced_s - decoded_s > _SLACK_S:
            self.partial = f"{self._announced_s:.3f} s announced, {decoded_s:.3f} s decoded"
        elif self.partial:
            self.partial = f"{decoded_s:.3f} s decoded; {self.partial}"


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """FFmpeg's errors as Undecodable, without a name or an address in memory."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise Undecodable("undecodable", f"FFmpeg cannot read it ({error.strerror})") from error


def _first_audio(container: Any) -> Any:
    if not container.streams.audio:
        raise Undecodable("undecodable", "there is no sound in it")
    stream = container.streams.audio[0]
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1  # a decoder process has one core
    return stream


def _announced_s(container: Any, stream: Any) -> float | None:
    """Seconds of the stream, None where the file does not say."""
    if container.format.name in _GUESSED_LENGTH:
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tagged := stream.metadata.get("DURATION"):  # Matroska: hours:minutes:seconds
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = tagged.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    is_alone = len(container.streams) == 1
    return container.duration / av.time_base if container.duration and is_alone else None


def _kind(frame: Any) -> tuple[int, int]:
    return int(frame.sample_rate), len(frame.layout.channels)


def _after(first: Any, frames: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from frames


_FULL_SCALE = {"u8": 1 << 7, "s16": 1 << 15, "s32": 1 << 31}


def _samples(frame: Any, channels: int) -> Block:
    """(n, channels) float32 of a frame, full scale 1.0."""
    values = frame.to_ndarray()  # (channels, n), or (1, n * channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    name = frame.format.name.removesuffix("p")
    if name == "u8":
        values = values.astype(np.float32) - np.float32(_FULL_SCALE["u8"])
    scale = np.float32(1 / _FULL_SCALE.get(name, 1))
    samples: Block = values.astype(np.float32) * scale
    return samples

"""An open file that libsndfile cannot read -> its samples block by block, by FFmpeg (PyAV): m4a, webm, wma, aac …

In: a seekable file. Out: its samples, as an `open_sound.Sound`: the first audio stream at its own rate, with its own
channels; FFmpeg takes the encoder's delay and padding off. Only formats of sound and video are tried, so that a
playlist opens no other file or address. A packet that cannot be decoded is left out, as the `ffmpeg` program does, and
said in `partial`. The price: samples cross from FFmpeg to numpy frame by frame, which costs a tenth of the decoding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.stream import Discard

from balance.audio.sound_file import BLOCK_VALUES, Undecodable, without_first

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
_GUESSED_TIMES = _GUESSED_LENGTH - {"aac"}  # its packets are counted on the way
_RUN_UP_S = 1.0  # decoded before a stretch: frames overlap, and lean on earlier ones
_SLACK_S = 0.2  # headers count an encoder's delay and padding, or the video beside the sound

Block = npt.NDArray[np.float32]


class FFmpegSound:
    """The samples of one open file; attributes as those of `open_sound.Sound`."""

    def __init__(self, file: BinaryIO) -> None:
        """file: seekable; it stays open and the caller's own. Raises Undecodable, OSError."""
        self._file = file
        self._announced_s: float | None = None
        self.partial = ""
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise Undecodable("undecodable", self.partial or "no sample could be decoded")
        self.sample_rate, self.channels = _kind(first)
        self._first_pts, self._first_size = first.pts, first.samples
        self._frames: Iterator[Any] | None = itertools.chain([first], frames)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """(n, channels) float32 from sample `start` on; n the same for all but the last, and the first of a `start`."""
        at, frames = self._frames_before(start)
        yield from without_first(self._blocks(at, frames), start - at)

    def _blocks(self, num_samples: int, frames: Iterator[Any]) -> Iterator[Block]:
        """The frames' samples; num_samples: those before them."""
        size = max(1, BLOCK_VALUES // self.channels)
        block, filled = np.empty((size, self.channels), np.float32), 0
        for frame in frames:
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

    def _frames_before(self, start: int) -> tuple[int, Iterator[Any]]:
        """(number of the first sample, frames) from at most `start` on: from near it where a seek leads there."""
        frames, self._frames = self._frames, None
        if start > _RUN_UP_S * self.sample_rate and self._first_pts is not None:
            if self._announced_s is not None and start > (self._announced_s + _SLACK_S) * self.sample_rate:
                return start, iter(())
            near = self._decode(from_s=start / self.sample_rate - _RUN_UP_S)
            first = next(near, None)
            if first is not None and first.pts is not None and (at := self._number(first)) <= start:
                return at, itertools.chain([first], near)
            frames = None
        return 0, frames or self._decode()

    def _number(self, frame: Any) -> int:
        """The number of a frame's first sample by its time, which some containers round to a millisecond: frames of one
        size begin at its multiples."""
        seconds = float((frame.pts - self._first_pts) * frame.time_base)
        rounding = 2 * max(1.0, float(frame.time_base) * self.sample_rate)  # of both times
        by_time = seconds * self.sample_rate - self._first_size
        by_size = round(by_time / frame.samples) * frame.samples
        return int(self._first_size + (by_size if abs(by_size - by_time) <= rounding else round(by_time)))

    def _decode(self, from_s: float = 0.0) -> Iterator[Any]:
        """The frames of the first audio stream that hold samples, from a time on; none where no seek leads there.
        `partial` then tells of packets left out."""
        self._file.seek(0)
        self.partial, num_damaged = "", 0
        with _said(), av.open(self._file, "r", metadata_errors="replace", options=_OPTIONS) as container:
            stream = _first_audio(container)
            self._announced_s = _announced_s(container, stream)
            if from_s and not self._seek(container, stream, from_s):
                return
            for packet in self._packets(container, stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    num_damaged += 1
                    continue
                yield from (frame for frame in frames if frame.samples)
        if num_damaged:
            self.partial = f"{num_damaged} of its packets cannot be decoded"

    def _seek(self, container: Any, stream: Any, to_s: float) -> bool:
        """Go to a frame at this time or before it; whether that could be done."""
        if container.format.name in _GUESSED_TIMES:
            return False
        try:
            next(container.decode(stream), None)  # else FFmpeg takes the encoder's delay off the frame that it goes to
            container.seek(self._first_pts + int(to_s / stream.time_base), stream=stream)
        except av.error.FFmpegError:
            return False
        return True

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

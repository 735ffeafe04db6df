"""One audio file → the waveform that the encoder hears, at the file's own rate, and facts of the whole decoded clip.

In: a path or an open binary file, the front end's `max_frames` and `zero_mean`. Out: a `Waveform`, or `Undecodable`
with the clip's reason. libsndfile is the reference decoder, then comes FFmpeg (`open_sound`): for VIP-ANT no
resampling, no mixing of channels. Decoder processes import this module, so it imports neither torch nor `records`: they
start in 0.2 s. Facts are measured as the samples stream by, and a decoder holds at most `_KEPT_BYTES` of them and three
crops of one channel (24 MB at 192 kHz), whatever the clip's length. The price: a clip of more samples than that is
decoded again up to the end of its crop.
Encoders other than VIP-ANT hear the whole clip, mixed and resampled, in windows: `load_windows`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from balance.audio.crop import Moments, crop, first_channel
from balance.audio.frames import shift_samples, window_samples
from balance.audio.open_sound import Sound, open_sound
from balance.audio.quality import Quality
from balance.audio.resample import Mixer, cut, mixed, window_starts
from balance.audio.sound_file import Undecodable, open_regular
from balance.audio.stretch import Stretch

# The published loader keeps max_len frames of 10 ms and 50 ms more.
CROP_MARGIN_S = 0.05
MAX_SAMPLE_RATE_HZ = 655_350  # the most that flac can say; a damaged header may promise anything
# Who has refused a clip that counts as undecodable: a failure that fewer decoders remember is tried again.
DECODERS = "libsndfile, FFmpeg"
_KEPT_BYTES = 64 << 20  # of decoded samples: 3 min of stereo at 44.1 kHz


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """What one file gave.

    samples: (num_kept,) float32 in about [-1, 1], channel 0 of the cropped clip, mean removed if `zero_mean`, no
    longer than `max_frames` frames need; or, of `load_windows`, so many windows of equal length, one after the other;
    is_last: whether more windows of the clip follow; sample_rate: Hz of the file. Of the whole decoded clip:
    num_samples per channel; rms_db: 20 log10 of the rms over all channels, −inf for zeros; pcm_sha1: sha1 of the
    interleaved little-endian float32; partial: in words, what of the clip could not be decoded, "" where nothing is
    known to be missing; quality: as `quality.Quality.numbers`.
    """

    samples: npt.NDArray[np.float32]
    sample_rate: int
    num_samples: int
    rms_db: float
    pcm_sha1: bytes
    partial: str
    quality: tuple[float, ...]
    num_windows: int = 1
    is_last: bool = True


def kept_samples(sample_rate: int, max_frames: int) -> int:
    """Samples per channel that the crop leaves of a longer clip."""
    return int(sample_rate * (max_frames / 100 + CROP_MARGIN_S))


def load(
    file: str | os.PathLike[str] | BinaryIO,
    *,
    max_frames: int,
    zero_mean: bool,
    stretch_s: tuple[float, float] | None = None,
) -> Waveform:
    """Decode, measure, crop, remove the mean (the published evaluation path).

    file: a path, or a seekable binary file; max_frames: 10 ms frames that the encoder takes; zero_mean: subtract the
    mean over all channels and samples of the cropped clip; stretch_s: the clip is this part of the file. Raises
    `Undecodable`. libsndfile's mp3 decoder may write warnings to file descriptor 2: silencing them is the caller's
    business.
    """
    with _opened(file, stretch_s) as sound:
        return _load(sound, max_frames, zero_mean)


def load_windows(
    file: str | os.PathLike[str] | BinaryIO,
    *,
    sample_rate_hz: int | None,
    max_duration_s: float | None,
    most_samples: int,
    stretch_s: tuple[float, float] | None = None,
) -> Iterator[Waveform]:
    """Decode, measure, mix, resample, cut: what encoders other than VIP-ANT hear of a clip.

    sample_rate_hz: None keeps the file's; max_duration_s: of a window, None for the whole clip; most_samples: gives
    the windows in pieces of no more, but at least one window each. Raises `Undecodable`, perhaps after some pieces.
    Mixed samples above `_KEPT_BYTES` are not held: the clip is decoded a second time while its windows are taken.
    """
    with _opened(file, stretch_s) as sound:
        heard = _Heard(sound, sample_rate_hz)
        whole, _ = _measure(sound, heard.add)
        heard.end()
        if not heard.num_samples:
            raise Undecodable("too_short", f"{whole.num_samples} samples, none at {sample_rate_hz} Hz")
        rate = sample_rate_hz or sound.sample_rate
        window = None if max_duration_s is None else max(1, round(max_duration_s * rate))
        starts = window_starts(heard.num_samples, window)
        size = min(heard.num_samples, window or heard.num_samples)
        at_once = max(1, most_samples // size)
        windows = heard.windows(starts, size)
        for left in range(len(starts), 0, -at_once):
            piece = [next(windows) for _ in range(min(left, at_once))]
            samples = piece[0] if len(piece) == 1 else np.concatenate(piece)
            yield replace(whole, samples=samples, num_windows=len(piece), is_last=left <= at_once)


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | BinaryIO, stretch_s: tuple[float, float] | None) -> Iterator[Sound]:
    """Whatever goes wrong with it inside is `Undecodable`."""
    try:
        with open_regular(file) if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file) as opened:
            sound = open_sound(opened)
            yield sound if stretch_s is None else Stretch(sound, *stretch_s)
    except OSError as error:
        raise Undecodable("undecodable", error.strerror or type(error).__name__) from error
    except (soundfile.SoundFileError, MemoryError, ValueError, OverflowError) as error:
        raise Undecodable("undecodable", f"it cannot be decoded ({type(error).__name__})") from error


def _measure(sound: Sound, take: Callable[[npt.NDArray[np.float32]], None]) -> tuple[Waveform, float]:
    """(the facts of the whole clip, without samples; the mean of all its values), while `take` gets each block."""
    moments, digest, quality = Moments(), hashlib.sha1(), Quality(sound.sample_rate, sound.channels)
    for block in sound.blocks():
        moments.add(block)
        quality.add(block)
        digest.update(np.ascontiguousarray(block, dtype="<f4").data)
        take(block)
    num_samples = moments.count // sound.channels
    _refuse(num_samples, sound.sample_rate)
    if not math.isfinite(moments.energy):
        raise Undecodable("not_finite", "the decoded samples hold NaN or infinity")
    mean_square = moments.energy / moments.count
    whole = Waveform(
        samples=np.empty(0, dtype=np.float32),
        sample_rate=sound.sample_rate,
        num_samples=num_samples,
        rms_db=10 * math.log10(mean_square) if mean_square > 0 else -math.inf,
        pcm_sha1=digest.digest(),
        partial=sound.partial,  # what follows may decode again
        quality=quality.numbers(moments.mean),
    )
    return whole, moments.mean


def _load(sound: Sound, max_frames: int, zero_mean: bool) -> Waveform:
    kept = _Kept()
    whole, mean = _measure(sound, kept.add)
    sample_rate, num_samples = whole.sample_rate, whole.num_samples
    num_kept = kept_samples(sample_rate, max_frames)
    num_needed = window_samples(sample_rate) + (max_frames - 1) * shift_samples(sample_rate)
    again = sound.blocks if kept.blocks is None else kept.blocks.__iter__
    if num_samples <= num_kept:
        samples = first_channel(again(), min(num_samples, num_needed))
    else:
        samples, mean = crop(again, kept.std(), num_samples, num_kept, num_needed)
    return replace(whole, samples=samples - np.float32(mean if zero_mean else 0.0))


class _Heard:
    """A clip mixed and resampled as it streams by: kept while it is short, only counted once it is long."""

    def __init__(self, sound: Sound, to_rate: int | None) -> None:
        self._sound, self._to_rate = sound, to_rate
        self._mixer: Mixer | None = None  # made with the first block: a damaged header may promise any rate
        self._kept: list[npt.NDArray[np.float32]] | None = []
        self.num_samples = 0

    def add(self, block: npt.NDArray[np.float32]) -> None:
        if self._mixer is None:
            self._mixer = Mixer(self._sound.sample_rate, self._to_rate)
        self._take(self._mixer.add(block))

    def end(self) -> None:
        if self._mixer is not None:
            self._take(self._mixer.end())

    def _take(self, samples: npt.NDArray[np.float32]) -> None:
        self.num_samples += len(samples)
        if self._kept is not None:
            self._kept.append(samples)
            if 4 * self.num_samples > _KEPT_BYTES:
                self._kept = None

    def windows(self, starts: list[int], size: int) -> Iterator[npt.NDArray[np.float32]]:
        """The windows of `size` samples that begin at these."""
        if self._kept is not None:
            whole = np.concatenate(self._kept)
            return (whole[start : start + size] for start in starts)
        return cut(mixed(self._sound.blocks(), self._sound.sample_rate, self._to_rate), starts, size)


class _Kept:
    """A clip's blocks while they are few; once they are more than `_KEPT_BYTES`, `blocks` is None and only their spread
    is followed."""

    def __init__(self) -> None:
        self.blocks: list[npt.NDArray[np.float32]] | None = []
        self._num_bytes = 0
        self._spread = Moments(spread=True)

    def add(self, block: npt.NDArray[np.float32]) -> None:
        self._num_bytes += block.nbytes
        if self.blocks is not None:
            self.blocks.append(block)
            if self._num_bytes > _KEPT_BYTES:
                self._let_go()
        else:
            self._spread.add(block)

    def std(self) -> float:
        """Of all values of all channels; to be asked for once, at the end."""
        if self.blocks is not None:
            for block in self.blocks:
                self._spread.add(block)
        return self._spread.std

    def _let_go(self) -> None:
        for block in self.blocks or ():
            self._spread.add(block)
        self.blocks = None


def _refuse(num_samples: int, sample_rate: int) -> None:
    """Raises Undecodable for a clip that has no frame."""
    if not num_samples:
        raise Undecodable("undecodable", "no sample could be decoded")
    if shift_samples(sample_rate) < 1 or sample_rate > MAX_SAMPLE_RATE_HZ:
        raise Undecodable("undecodable", f"a sample rate of {sample_rate} Hz")
    window = window_samples(sample_rate)
    if num_samples < window:
        raise Undecodable("too_short", f"{num_samples} samples at {sample_rate} Hz, a window has {window}")

"""One audio file → the waveform that the encoder hears, at the file's own rate, and facts of the whole decoded clip.

In: a path or an open binary file, the front end's `max_frames` and `zero_mean`. Out: a `Waveform`, or `Undecodable`
with the clip's reason. libsndfile is the reference decoder: no resampling, no mixing of channels. Decoder processes
import this module, so it imports neither torch nor `records`: they start in 0.2 s.
The price: a clip is decoded whole, however long it is, because crop and facts need all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

# Kaldi's frames: whole samples, rounded down (int(0.025 sr), int(0.010 sr)); integers, so that no rate is off by one.
WINDOW_MS, SHIFT_MS = 25, 10
# The published loader keeps max_len frames of 10 ms and 50 ms more.
CROP_MARGIN_S = 0.05
MAX_SAMPLE_RATE_HZ = 655_350  # the most that flac can say; a damaged header may promise anything
_RECOVERY_BLOCK = 65536  # samples per channel read at a time from a file that breaks off
_BLOCK = 8192  # samples summed at a time in float64: they stay in the first cache


class Undecodable(Exception):
    """A clip that cannot be encoded. `reason` is `undecodable`, `too_short` or `not_finite`; `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """What one file gave.

    samples: (num_kept,) float32 in about [-1, 1], channel 0 of the cropped clip, mean removed if `zero_mean`, no
    longer than `max_frames` frames need; sample_rate: Hz. Of the whole decoded clip: num_samples per channel; rms_db:
    20 log10 of the rms over all channels, −inf for zeros; pcm_sha1: sha1 of the interleaved little-endian float32.
    """

    samples: npt.NDArray[np.float32]
    sample_rate: int
    num_samples: int
    rms_db: float
    pcm_sha1: bytes


def window_samples(sample_rate: int) -> int:
    """Samples of one analysis window (25 ms, rounded down)."""
    return sample_rate * WINDOW_MS // 1000


def shift_samples(sample_rate: int) -> int:
    """Samples from one frame to the next (10 ms, rounded down)."""
    return sample_rate * SHIFT_MS // 1000


def kept_samples(sample_rate: int, max_frames: int) -> int:
    """Samples per channel that the crop leaves of a longer clip."""
    return int(sample_rate * (max_frames / 100 + CROP_MARGIN_S))


def load(file: str | os.PathLike[str] | BinaryIO, *, max_frames: int, zero_mean: bool) -> Waveform:
    """Decode, measure, crop, remove the mean (the published evaluation path).

    file: a path, or a seekable binary file; max_frames: 10 ms frames that the encoder takes; zero_mean: subtract the
    mean over all channels and samples of the cropped clip. Raises `Undecodable`. libsndfile's mp3 decoder may write
    warnings to file descriptor 2: silencing them is the caller's business.
    """
    decoded, sample_rate = _decode(file)
    num_samples = len(decoded)
    if not num_samples:
        raise Undecodable("undecodable", "no sample could be decoded")
    if shift_samples(sample_rate) < 1 or sample_rate > MAX_SAMPLE_RATE_HZ:
        raise Undecodable("undecodable", f"a sample rate of {sample_rate} Hz")
    window = window_samples(sample_rate)
    if num_samples < window:
        raise Undecodable("too_short", f"{num_samples} samples at {sample_rate} Hz, a window has {window}")
    total, energy = _sums(decoded)
    if not math.isfinite(energy):
        raise Undecodable("not_finite", "the decoded samples hold NaN or infinity")
    mean_square = energy / decoded.size
    cropped = crop(decoded, kept_samples(sample_rate, max_frames))
    mean = 0.0
    if zero_mean:
        mean = (total if cropped is decoded else _sums(cropped)[0]) / cropped.size
    frames_need = window + (max_frames - 1) * shift_samples(sample_rate)
    return Waveform(
        samples=cropped[:frames_need, 0] - np.float32(mean),
        sample_rate=sample_rate,
        num_samples=num_samples,
        rms_db=10 * math.log10(mean_square) if mean_square > 0 else -math.inf,
        pcm_sha1=hashlib.sha1(np.ascontiguousarray(decoded, dtype="<f4").data).digest(),
    )


def crop(samples: npt.NDArray[np.float32], num_kept: int) -> npt.NDArray[np.float32]:
    """The part of an over-long clip that the published loader takes: a view (num_kept, channels).

    samples: (num_samples, channels). The centre; but where the centre's standard deviation (unbiased, all channels
    together) is below half of the whole clip's, the head; and where the head's is then below the centre's, the tail.
    """
    num_samples = len(samples)
    if num_samples <= num_kept:
        return samples
    left = round((num_samples - num_kept) / 2)
    centre, head = samples[left : left + num_kept], samples[:num_kept]
    centre_std = _std(centre)
    if centre_std >= _std(samples) / 2:
        return centre
    return samples[num_samples - num_kept :] if _std(head) < centre_std else head


def _decode(file: str | os.PathLike[str] | BinaryIO) -> tuple[npt.NDArray[np.float32], int]:
    """All samples of all channels (num_samples, channels) float32 and the rate in Hz."""
    try:
        try:
            # A header may promise more than memory holds: pages that no sample reaches cost nothing.
            samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
            return samples, int(sample_rate)
        except soundfile.LibsndfileError as error:
            return _decode_up_to_error(file, error)
    except soundfile.LibsndfileError as error:
        # Not str(error), which names the folder; and libsndfile's first guess about unknown bytes misleads.
        words = "not a known audio format" if "not a regular file" in error.error_string else error.error_string
        raise Undecodable("undecodable", words) from error
    except OSError as error:
        raise Undecodable("undecodable", error.strerror or type(error).__name__) from error
    except TypeError as error:  # soundfile's answer to a headerless .raw file
        raise Undecodable("undecodable", "a raw file: it does not say its sample rate") from error
    except (MemoryError, ValueError) as error:
        raise Undecodable("undecodable", "more samples than fit in memory") from error


def _decode_up_to_error(
    file: str | os.PathLike[str] | BinaryIO, cause: soundfile.LibsndfileError
) -> tuple[npt.NDArray[np.float32], int]:
    """What a cut-off flac file gives before libsndfile reports an error; raises `cause` if that is nothing.

    Read in blocks, since a header may promise more than memory holds. soundfile raises without saying how many samples
    of a block it wrote: those that are no longer the NaN put there before.
    """
    if not isinstance(file, (str, os.PathLike)):
        file.seek(0)
    with soundfile.SoundFile(file) as sound:
        sample_rate = int(sound.samplerate)
        blocks: list[npt.NDArray[np.float32]] = []
        complete = True
        while complete:
            block = np.full((_RECOVERY_BLOCK, sound.channels), np.nan, dtype=np.float32)
            with contextlib.suppress(soundfile.LibsndfileError):
                sound.read(dtype="float32", out=block)
            unwritten = np.isnan(block).all(axis=1)
            complete = not unwritten.any()
            blocks.append(block if complete else block[: int(unwritten.argmax())])
    samples = np.concatenate(blocks)
    if not len(samples):
        raise cause
    return samples, sample_rate


def _sums(samples: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Sum and sum of squares in float64, in one pass through the cache; not finite if any sample is not."""
    flat = samples.reshape(-1)
    buffer = np.empty(min(_BLOCK, flat.size), dtype=np.float64)
    total = energy = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = buffer[: min(_BLOCK, flat.size - start)]
        block[:] = flat[start : start + _BLOCK]
        total += float(block.sum())
        energy += float(np.einsum("i,i->", block, block))
    return total, energy


def _std(samples: npt.NDArray[np.float32]) -> float:
    return float(np.std(samples, dtype=np.float64, ddof=1))

"""The sound of the clips on the page: decoded group by group, and as short MP3s that the page itself holds.

In: groups of clips (a seed and its neighbours), and where their bytes lie; out: waveforms of the first channel, at most
MAX_FRAMES of 10 ms. The decoder processes decode them, as for embedding, so a damaged file costs its own clip alone.
MP3, because every browser plays it: 16 kHz, one channel, about 30 KB for ten seconds.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.signal
import soundfile

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool, channel_settings
from balance.data.config import MediaSource
from balance.records import Float32, Index

MAX_FRAMES = 1000
EMBEDDED_HZ = 16_000

Clips: TypeAlias = Sequence[tuple[Index, int]]  # index and row of each


@dataclass(frozen=True, slots=True)
class Sound:
    """Where the clips' bytes lie, and how they are decoded: processes, bytes between them and this one, seconds after
    which a clip is given up."""

    source: MediaSource
    num_workers: int
    queue_bytes: int
    clip_timeout_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """samples: (n,) float32 of the first channel, n ≥ 1; rate: in Hz."""

    samples: Float32
    rate: int


def decode(groups: Sequence[Clips], sound: Sound) -> Iterator[list[Wave | None]]:
    """The waveforms of each group, in order; None where a clip cannot be decoded."""
    num_clips = sum(len(group) for group in groups)
    num_workers = max(1, min(sound.num_workers, 4, num_clips))
    settings = channel_settings(sound.source, MAX_FRAMES, sound.queue_bytes, num_workers)

    def jobs() -> Iterator[tuple[None, Job]]:
        for group in groups:
            for index, row in group:
                offsets, sizes = index.places()
                yield None, Job(index.ids[row].as_py(), index.paths[row].as_py(), int(offsets[row]), int(sizes[row]))

    with DecoderPool(settings, jobs(), num_workers=num_workers, clip_timeout_s=sound.clip_timeout_s) as decoders:
        results = decoders.results()
        for group in groups:
            yield [_wave(next(results)[2]) for _ in group]


def _wave(result: object) -> Wave | None:
    if not isinstance(result, Decoded) or not len(result.samples):
        return None
    return Wave(result.samples.copy(), result.sample_rate)


def mp3(wave: Wave) -> str:
    """A waveform as MP3 at EMBEDDED_HZ in a data URI; louder than full scale is cut."""
    common = math.gcd(wave.rate, EMBEDDED_HZ)
    samples = scipy.signal.resample_poly(wave.samples.astype(np.float64), EMBEDDED_HZ // common, wave.rate // common)
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(samples, -1.0, 1.0), EMBEDDED_HZ, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(stream.getvalue()).decode()

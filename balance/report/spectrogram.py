"""Small grey spectrograms of the clips that the page plays, as PNG in data URIs.

In: groups of clips (a seed and its neighbours), and where their sound lies; out: a picture per clip. The clips of a
group share one scale (time to the end of the longest, frequency to half the highest rate, grey from the loudest point
down), so that they can be compared by eye: a clip of a lower rate is empty above its own half. Drawn from the first
channel of what the decoders give, at most MAX_FRAMES of 10 ms. Price: half a second and about 3 KB per clip and page.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, plan_slots
from balance.data.config import MediaSource
from balance.records import Float32, Float64, Index

WIDTH, HEIGHT = 144, 72  # pixels
MAX_FRAMES = 1000
HIGHEST_HZ = 16_000.0
RANGE_DB = 70.0
LEVELS = 24  # of grey: enough for the eye, and few bytes
WINDOW_S = 0.03  # at least: a pixel's window is never shorter than the pixel


@dataclass(frozen=True, slots=True)
class Sound:
    """Where the clips' bytes lie, and how they are decoded: processes, bytes between them and this one, seconds after
    which a clip is given up."""

    source: MediaSource
    num_workers: int
    queue_bytes: int
    clip_timeout_s: float


def draw(groups: Sequence[Sequence[tuple[Index, int]]], sound: Sound) -> list[list[str | None]]:
    """The pictures of groups of (index, row), as data URIs; None where a clip cannot be decoded."""
    clips = _decode([clip for group in groups for clip in group], sound)
    return [_pictures([next(clips) for _ in group]) for group in groups]


def _decode(clips: Sequence[tuple[Index, int]], sound: Sound) -> Iterator[tuple[Float32, int] | None]:
    """(samples, rate in Hz) of each clip, in order; None where it cannot be decoded."""
    num_workers = max(1, min(sound.num_workers, 4, len(clips)))
    slot_bytes, num_slots = plan_slots(sound.queue_bytes, MAX_FRAMES, num_workers)
    settings = DecodeSettings(
        media_root=str(sound.source.root),
        format=sound.source.format.value,
        columns=asdict(sound.source.columns),
        max_frames=MAX_FRAMES,
        zero_mean=False,
        slot_bytes=slot_bytes,
        num_slots=num_slots,
    )

    def jobs() -> Iterator[tuple[None, Job]]:
        for index, row in clips:
            offsets, sizes = index.places()
            yield None, Job(index.ids[row].as_py(), index.paths[row].as_py(), int(offsets[row]), int(sizes[row]))

    with DecoderPool(settings, jobs(), num_workers=num_workers, clip_timeout_s=sound.clip_timeout_s) as decoders:
        for _, _, result in decoders.results():
            yield (result.samples.copy(), result.sample_rate) if isinstance(result, Decoded) else None


def _pictures(clips: Sequence[tuple[Float32, int] | None]) -> list[str | None]:
    there = [clip for clip in clips if clip is not None and len(clip[0])]
    if not there:
        return [None] * len(clips)
    seconds = max(len(samples) / rate for samples, rate in there)
    highest_hz = min(HIGHEST_HZ, max(rate for _, rate in there) / 2)
    powers = [power(*clip, seconds, highest_hz) if clip is not None and len(clip[0]) else None for clip in clips]
    loudest = max(float(one.max()) for one in powers if one is not None)
    return [None if one is None else _png(_grey(one, loudest)) for one in powers]


def power(samples: Float32, rate: int, seconds: float, highest_hz: float) -> Float64:
    """Mean power in WIDTH stretches of time up to `seconds` and HEIGHT bands, evenly spaced in mel, up to `highest_hz`:
    (HEIGHT, WIDTH) float64, the highest band first; 0 beyond the clip's end and above half its rate."""
    hop = seconds * rate / WIDTH
    size = 2 ** int(np.ceil(np.log2(max(hop, WINDOW_S * rate, 2.0))))
    starts = (np.arange(WIDTH) * hop).astype(np.int64)
    padded = np.concatenate([samples, np.zeros(int(starts[-1]) + size, dtype=np.float32)])
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    spectrum = np.abs(np.fft.rfft(frames)) ** 2 / size  # (WIDTH, bins)
    spectrum[starts >= len(samples)] = 0.0
    mel = np.linspace(0.0, 2595.0 * np.log10(1.0 + highest_hz / 700.0), HEIGHT + 1)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0) * size / rate  # in bins
    below = np.concatenate([np.zeros((WIDTH, 1)), np.cumsum(spectrum, axis=1)], axis=1)  # power below each bin
    at = np.minimum(edges, spectrum.shape[1])
    whole = np.minimum(at.astype(np.int64), spectrum.shape[1] - 1)
    summed = below[:, whole] + (at - whole) * spectrum[:, whole]
    bands: Float64 = np.diff(summed, axis=1) / np.diff(edges)
    return bands.T[::-1]


def _grey(power: Float64, loudest: float) -> npt.NDArray[np.uint8]:
    """0 (the loudest) to 255 (RANGE_DB below it, or less), in LEVELS steps."""
    least = max(loudest, 1e-30) * 10.0 ** (-RANGE_DB / 10.0)
    share = 10.0 * np.log10(np.maximum(power, least) / least) / RANGE_DB
    return np.asarray(255 - np.round(share * (LEVELS - 1)) * (255 / (LEVELS - 1)), dtype=np.uint8)


def _png(grey: npt.NDArray[np.uint8]) -> str:
    """An 8-bit grey PNG as a data URI (RFC 2083: signature, IHDR, one IDAT of unfiltered rows, IEND)."""
    height, width = grey.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), grey], axis=1)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()

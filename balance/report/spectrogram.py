"""Small grey spectrograms of the clips that the page plays, as PNG in data URIs.

In: the waveforms of a group (a seed and its neighbours); out: a picture of each. They share one scale (time to the end
of the longest, frequency to half the highest rate, grey from the loudest point down), so that they can be compared by
eye: a clip of a lower rate is empty above its own half. Price: about 3 KB per clip.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from balance.records import Float32, Float64
from balance.report.sound import Wave

WIDTH, HEIGHT = 144, 72  # pixels
HIGHEST_HZ = 16_000.0
RANGE_DB = 70.0
LEVELS = 24  # of grey: enough for the eye, and few bytes
WINDOW_S = 0.03  # at least: a pixel's window is never shorter than the pixel


def draw(waves: Sequence[Wave | None]) -> list[str | None]:
    """The pictures of a group as data URIs; None where there is no waveform."""
    there = [wave for wave in waves if wave is not None]
    if not there:
        return [None] * len(waves)
    seconds = max(len(wave.samples) / wave.rate for wave in there)
    highest_hz = min(HIGHEST_HZ, max(wave.rate for wave in there) / 2)
    powers = [None if wave is None else power(wave.samples, wave.rate, seconds, highest_hz) for wave in waves]
    loudest = max(float(one.max()) for one in powers if one is not None)
    return [None if one is None else _png(_grey(one, loudest)) for one in powers]


def alone(wave: Wave, width: int, height: int) -> npt.NDArray[np.uint8]:
    """One clip by itself, to its own end and from its own loudest point down: (height, width) uint8, 0 the loudest."""
    seconds = len(wave.samples) / wave.rate
    shown = power(wave.samples, wave.rate, seconds, min(HIGHEST_HZ, wave.rate / 2), width, height)
    return _grey(shown, float(shown.max()))


def power(
    samples: Float32, rate: int, seconds: float, highest_hz: float, width: int = WIDTH, height: int = HEIGHT
) -> Float64:
    """Mean power in `width` stretches of time up to `seconds` and `height` bands, evenly spaced in mel, up to
    `highest_hz`: (height, width) float64, the highest band first; 0 beyond the clip's end and above half its rate."""
    hop = seconds * rate / width
    size = 2 ** int(np.ceil(np.log2(max(hop, WINDOW_S * rate, 2.0))))
    starts = (np.arange(width) * hop).astype(np.int64)
    padded = np.concatenate([samples, np.zeros(int(starts[-1]) + size, dtype=np.float32)])
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    spectrum = np.abs(np.fft.rfft(frames)) ** 2 / size  # (width, bins)
    spectrum[starts >= len(samples)] = 0.0
    mel = np.linspace(0.0, 2595.0 * np.log10(1.0 + highest_hz / 700.0), height + 1)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0) * size / rate  # in bins
    below = np.concatenate([np.zeros((width, 1)), np.cumsum(spectrum, axis=1)], axis=1)  # power below each bin
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

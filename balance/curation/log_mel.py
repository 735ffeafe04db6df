"""What clips are compared by: a log-mel spectrogram below 4 kHz, the same at every sample rate.

In: samples of one channel. Out: frames of 20 ms by 24 bands, half of each frame's loudness taken out, which alone makes
sparse clips alike; and the same frames as a clip would have that runs faster or slower. The bands end below 4 kHz, so
that copies at another sample rate compare (the encoder's own log-mel runs to each file's own Nyquist).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from balance.records import Float32, Float64

HOP_S = 0.02
WINDOW_S = 0.048
NUM_BANDS = 24
LOW_HZ, HIGH_HZ = 100.0, 3800.0
FLOOR = 0.005  # of a clip's mean band energy: what is quieter is not heard through noise or mp3
LOUDNESS_KEPT = 0.5  # of each frame's mean over bands: one onset in silence looks alike in unrelated clips
MIN_FRAMES = 12  # a quarter of a second: a shorter clip has no pattern to compare
SHORTEST_S = (MIN_FRAMES - 1) * HOP_S + WINDOW_S


def _mel(hz: float) -> float:
    """Kaldi's mel scale."""
    return float(1127 * np.log1p(hz / 700))


_EDGES = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), NUM_BANDS + 2)  # of the triangles, in mel


def _bands(sample_rate: int, num_fft: int) -> Float32:
    """Triangles even on the mel scale: (num_fft // 2 + 1, NUM_BANDS) float32."""
    mel = 1127 * np.log1p(np.fft.rfftfreq(num_fft, 1 / sample_rate) / 700)
    up = (mel[:, None] - _EDGES[:-2]) / (_EDGES[1:-1] - _EDGES[:-2])
    down = (_EDGES[2:] - mel[:, None]) / (_EDGES[2:] - _EDGES[1:-1])
    triangles: Float32 = np.maximum(np.minimum(up, down), 0).astype(np.float32)
    return triangles


def features(samples: Float32, sample_rate: int) -> Float32:
    """Log-mel of a clip less half its loudness, (frames of 20 ms, NUM_BANDS) float32; samples: (n,) float32.

    No frame for a silent clip, nor for one of fewer than MIN_FRAMES.
    """
    window = max(int(WINDOW_S * sample_rate), 1)
    num_frames = int((len(samples) - window) / (HOP_S * sample_rate)) + 1 if len(samples) >= window else 0
    if num_frames < MIN_FRAMES:
        return np.empty((0, NUM_BANDS), dtype=np.float32)
    # Rounded frame by frame: at 11,025 Hz a hop is 220.5 samples, and two copies at different rates stay in step.
    starts = np.round(np.arange(num_frames) * (HOP_S * sample_rate)).astype(np.int64)
    starts = starts[starts + window <= len(samples)]
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[starts] * np.hanning(window).astype(np.float32)
    num_fft = 1 << (window - 1).bit_length()
    spectrum = torch.fft.rfft(torch.from_numpy(frames), n=num_fft).numpy()
    energy = (spectrum.real**2 + spectrum.imag**2) @ _bands(sample_rate, num_fft)
    level = float(energy.mean())
    if not level > 0:
        return np.empty((0, NUM_BANDS), dtype=np.float32)
    log_mel: Float32 = np.log(energy + np.float32(FLOOR * level))
    log_mel -= np.float32(1 - LOUDNESS_KEPT) * log_mel.mean(axis=1, keepdims=True)
    return log_mel


@dataclass(frozen=True, slots=True, order=True)
class Pace:
    """How much faster (above 1) or slower a clip runs, and whether its pitch goes with it, as on a tape."""

    speed: float = 1.0
    with_pitch: bool = False


def at_pace(log_mel: Float32, pace: Pace) -> Float32:
    """The features that a clip would have at another pace; (frames / speed, NUM_BANDS) float32. Between frames and
    bands linear; bands that would come from beyond the ends are repeated."""
    if pace.speed == 1.0 or len(log_mel) < 2:
        return log_mel
    at = np.arange(int((len(log_mel) - 1) / pace.speed) + 1)
    out = _between(log_mel, np.multiply(at, pace.speed, dtype=np.float64))
    if pace.with_pitch:
        hz = 700 * np.expm1(_EDGES[1:-1] / 1127) / pace.speed
        bands: Float64 = (1127 * np.log1p(hz / 700) - _EDGES[1]) / (_EDGES[1] - _EDGES[0])
        out = np.ascontiguousarray(_between(out.T, np.clip(bands, 0.0, NUM_BANDS - 1.0).astype(np.float64)).T)
    return out


def _between(rows: Float32, at: Float64) -> Float32:
    """Rows at fractional places, all within the first and the last."""
    low = np.minimum(at.astype(np.int64), len(rows) - 2)
    share = (at - low)[:, None].astype(np.float32)
    mixed: Float32 = rows[low] * (1 - share) + rows[low + 1] * share
    return mixed

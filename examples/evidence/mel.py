"""Mel spectrograms for the plugins of this folder: Slaney's mel scale, triangles of equal area, as in librosa."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BEND_HZ, BEND_MEL = 1000.0, 15.0  # Slaney 1998: linear below, logarithmic above
STEP = np.log(6.4) / 27.0  # of the logarithm per mel


class Mel:
    """Power in mel bands of 25 ms every 10 ms: centred frames, a Hann window, bands from 0 Hz to half the rate."""

    def __init__(self, sample_rate_hz: int, num_bands: int) -> None:
        self.size, self.hop = sample_rate_hz // 40, sample_rate_hz // 100
        self.bands = torch.from_numpy(_triangles(sample_rate_hz, self.size, num_bands))
        self.window = torch.hann_window(self.size)

    def __call__(self, waveforms: Tensor) -> Tensor:
        """(n, samples) float32 -> (n, 1 + samples // hop, bands) float32."""
        spectra = torch.stft(
            waveforms, self.size, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return (self.bands @ spectra.abs().square()).transpose(1, 2)


def _triangles(sample_rate_hz: int, size: int, num_bands: int) -> np.ndarray:
    """(bands, size // 2 + 1) float32."""
    mels = np.linspace(0.0, _mel(sample_rate_hz / 2), num_bands + 2)
    edges = np.where(mels < BEND_MEL, mels * BEND_HZ / BEND_MEL, BEND_HZ * np.exp(STEP * (mels - BEND_MEL)))
    left, centre, right = (edges[i : i + num_bands, None] for i in range(3))
    bins = np.arange(size // 2 + 1) * sample_rate_hz / size
    slopes = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return (np.maximum(slopes, 0) * 2 / (right - left)).astype(np.float32)


def _mel(hz: float) -> float:
    return hz * BEND_MEL / BEND_HZ if hz < BEND_HZ else BEND_MEL + float(np.log(hz / BEND_HZ)) / STEP

"""Cepstral statistics as an encoder (`encoder.target=cepstra:Cepstra`): no weights, no training, 60 numbers per clip.

Of 20 cepstral coefficients (the cosine transform of 40 log-mel bands at 16 kHz): mean and standard deviation over the
clip, and the standard deviation of their change from frame to frame. It knows nothing of any training set, which makes
it a judge that no pretrained encoder is related to, and a weak one.
"""

from __future__ import annotations

import math

import torch
from mel import Mel
from torch import Tensor

NUM_BANDS, NUM_COEFFICIENTS = 40, 20
FLOOR = 1e-8  # of the power in a band


class Cepstra:
    sample_rate_hz, dim, max_duration_s = 16_000, 3 * NUM_COEFFICIENTS, 60.0

    def __init__(self) -> None:
        self.mel = Mel(self.sample_rate_hz, NUM_BANDS)
        angles = math.pi / NUM_BANDS * torch.arange(NUM_COEFFICIENTS)[:, None] * (torch.arange(NUM_BANDS) + 0.5)
        self.cosines = math.sqrt(2 / NUM_BANDS) * torch.cos(angles)

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([self._one(wave[:size]) for wave, size in zip(waveforms, lengths.tolist(), strict=True)])

    def _one(self, wave: Tensor) -> Tensor:
        """(samples,) -> (60,)"""
        cepstra = self.mel(wave[None])[0].clamp(min=FLOOR).log() @ self.cosines.T
        changes = cepstra.diff(dim=0) if len(cepstra) > 1 else torch.zeros_like(cepstra)
        return torch.cat([cepstra.mean(0), cepstra.std(0, correction=0), changes.std(0, correction=0)])

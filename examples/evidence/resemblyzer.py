"""Resemblyzer's voice encoder (`encoder.target=resemblyzer:Resemblyzer`), a GE2E speaker model: 16 kHz, 256 numbers.

    pip download --no-deps Resemblyzer==0.1.4
    unzip -j Resemblyzer-0.1.4-py3-none-any.whl resemblyzer/pretrained.pt

Only the weights are taken from the wheel (Apache 2.0); the forward pass is written here, so none of its dependencies is
needed. A clip is heard in stretches of 1.6 s, the length that the model was trained on, whose embeddings are averaged.
Unlike the package it leaves silences in: its voice detector would cut out what is no speech. Wan et al. 2018.
"""

from __future__ import annotations

import torch
from mel import Mel
from torch import Tensor, nn

NUM_FRAMES, NUM_BANDS, WIDTH, NUM_LAYERS = 160, 40, 256, 3
LEAST_DBFS = -30.0  # quieter stretches are made so loud


class Resemblyzer:
    sample_rate_hz, dim, max_duration_s = 16_000, WIDTH, 1.6

    def __init__(self, weights: str) -> None:
        saved = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self.lstm = nn.LSTM(NUM_BANDS, WIDTH, NUM_LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        for name, layer in (("lstm", self.lstm), ("linear", self.linear)):
            own = {key.removeprefix(f"{name}."): value for key, value in saved.items() if key.startswith(f"{name}.")}
            layer.load_state_dict(own)
            layer.eval()
        self.mel = Mel(self.sample_rate_hz, NUM_BANDS)

    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        rms = (waveforms.square().sum(1, keepdim=True) / lengths[:, None]).sqrt()
        louder = (10 ** (LEAST_DBFS / 20) / rms.clamp(min=1e-8)).clamp(min=1.0)
        size = round(self.max_duration_s * self.sample_rate_hz)
        filled = nn.functional.pad(waveforms * louder, (0, size - waveforms.shape[1]))
        _, (hidden, _) = self.lstm(self.mel(filled)[:, :NUM_FRAMES])
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

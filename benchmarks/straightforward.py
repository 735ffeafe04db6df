"""The straightforward way to embed clips, for `benchmarks/embed.py` to compare with: what one writes first.

Per clip: soundfile, Kaldi's fbank as torchaudio.compliance.kaldi computes it (one clip at a time), the published
tower as published (float32, `nn.MultiheadAttention`, QuickGELU, length-first layout), one `.npz` a clip. torchaudio
itself cannot be imported with the CPU build of torch, so its algorithm stands here, operation by operation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from balance.audio.fbank import FrontEnd
from balance.encoders.checkpoint import Checkpoint

EPSILON = torch.tensor(torch.finfo(torch.float).eps)


def kaldi_fbank(waveform: Tensor, sample_rate: float, num_mel_bins: int) -> Tensor:
    """torchaudio.compliance.kaldi.fbank(waveform, htk_compat=True, sample_frequency=sample_rate, use_energy=False,
    window_type="hanning", num_mel_bins=num_mel_bins, dither=0.0, frame_shift=10): (frames, num_mel_bins)."""
    waveform = waveform[0]
    window_shift, window_size = int(sample_rate * 10.0 * 0.001), int(sample_rate * 25.0 * 0.001)
    padded_size = 1 if window_size == 0 else 2 ** (window_size - 1).bit_length()
    num_frames = 1 + (len(waveform) - window_size) // window_shift
    strides = (window_shift * waveform.stride(0), waveform.stride(0))
    frames = waveform.as_strided((num_frames, window_size), strides)
    frames = frames - torch.mean(frames, dim=1).unsqueeze(1)
    offset = torch.nn.functional.pad(frames.unsqueeze(0), (1, 0), mode="replicate").squeeze(0)
    frames = frames - 0.97 * offset[:, :-1]
    frames = frames * torch.hann_window(window_size, periodic=False).unsqueeze(0)
    if padded_size != window_size:
        frames = torch.nn.functional.pad(frames.unsqueeze(0), (0, padded_size - window_size), value=0).squeeze(0)
    spectrum = torch.fft.rfft(frames).abs().pow(2.0)
    mel = torch.nn.functional.pad(_mel_banks(num_mel_bins, padded_size, sample_rate), (0, 1), value=0)
    return torch.max(torch.mm(spectrum, mel.T), EPSILON).log()


def _mel_banks(num_bins: int, padded_size: int, sample_rate: float) -> Tensor:
    """torchaudio.compliance.kaldi.get_mel_banks with low_freq=20, high_freq=0, no warping: (bins, padded_size / 2)."""
    mel_low, mel_high = 1127.0 * math.log(1.0 + 20.0 / 700.0), 1127.0 * math.log(1.0 + 0.5 * sample_rate / 700.0)
    delta = (mel_high - mel_low) / (num_bins + 1)
    bins = torch.arange(num_bins).unsqueeze(1)
    left, centre, right = mel_low + bins * delta, mel_low + (bins + 1.0) * delta, mel_low + (bins + 2.0) * delta
    mel = (1127.0 * (1.0 + sample_rate / padded_size * torch.arange(padded_size // 2) / 700.0).log()).unsqueeze(0)
    up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.max(torch.zeros(1), torch.min(up, down))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """CLIP's block, as published."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                [
                    ("c_fc", nn.Linear(width, width * 4)),
                    ("gelu", QuickGELU()),
                    ("c_proj", nn.Linear(width * 4, width)),
                ]
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class PublishedTower(nn.Module):
    """The published audio tower with a checkpoint's weights, float32. (batch, time, mel) → (batch, dim)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config, state = checkpoint.config, checkpoint.state
        assert len(state["positional_embedding"]) == config.num_tokens
        self.stride = config.stride
        self.conv1 = nn.Parameter(state["conv1.weight"])
        self.class_embedding = nn.Parameter(state["class_embedding"])
        self.positional_embedding = nn.Parameter(state["positional_embedding"])
        self.ln_pre, self.ln_post = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.blocks = nn.Sequential(
            *(ResidualAttentionBlock(config.width, config.num_heads) for _ in range(config.num_layers))
        )
        self.proj = nn.Parameter(state["proj"])
        for name in ("ln_pre", "ln_post", "blocks"):
            part = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            getattr(self, name).load_state_dict(part)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x.unsqueeze(1), self.conv1.mean(1, keepdim=True), stride=self.stride)
        x = x.flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding + torch.zeros(len(x), 1, x.shape[-1]), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        x = self.blocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.proj


def embed_one(path: Path, tower: PublishedTower, front_end: FrontEnd, out: Path) -> np.ndarray:
    """One clip of at most `max_frames` frames, decoded, embedded and saved: (dim,) float32."""
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.T)
    waveform = waveform - waveform.mean()
    spectrogram = kaldi_fbank(waveform, float(sample_rate), front_end.num_mel_bins)[: front_end.max_frames]
    missing = front_end.max_frames - len(spectrogram)
    spectrogram = nn.functional.pad(spectrogram, (0, 0, 0, missing))
    if front_end.mean is not None and front_end.std is not None:
        spectrogram = (spectrogram - front_end.mean) / front_end.std
    with torch.no_grad():
        embedding = tower(spectrogram.unsqueeze(0))[0].numpy()
    np.savez(out / f"{path.stem}.npz", v=embedding)
    return embedding

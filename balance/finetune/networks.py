"""The networks that are trained: a small CNN on log-mel spectrograms, or a transformers model for classification.

In: waveforms of one length at RATE_HZ, one channel. Each network says how a waveform becomes its input (done once per
clip and kept, `inputs.py`) and builds itself with random or pretrained weights. The price of inputs of one shape: a
transformers model with an attention mask hears the padding of short clips as silence.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from balance.audio.fbank import FrontEnd, LogMel
from balance.errors import UserError
from balance.finetune.config import FinetuneConfig
from balance.records import Float32

RATE_HZ = 16_000
NUM_MEL_BINS = 64
WIDTHS = (32, 64, 128, 256)  # channels of the CNN's blocks: 0.4 M weights


class Network(Protocol):
    """What is trained. name: for tables; key: everything that changes an input; is_small: on a CPU one core is faster
    than several, which wait for each other."""

    name: str
    is_small: bool
    key: str
    shape: tuple[int, ...]

    def prepare(self, samples: Float32) -> Float32:
        """(max_duration_s x RATE_HZ,) float32 → its input, `shape`."""
        ...

    def build(self, num_labels: int, mean: Tensor, std: Tensor) -> nn.Module:
        """(n, *shape) → logits (n, num_labels), float32; mean, std: () float32, of the seeds' inputs. Random weights
        come from torch's generator."""
        ...


def network_of(config: FinetuneConfig) -> Network:
    """The network that the configuration names. UserError where it cannot be read."""
    if config.model is None:
        return _Cnn(config.max_duration_s)
    return _Transformer(config.model, config.max_duration_s, config.from_scratch)


class _Cnn:
    """Four blocks of strided convolution, batch norm and ReLU; mean and maximum over time; a linear layer."""

    name = "a small CNN on log-mel"
    is_small = True

    def __init__(self, max_duration_s: float) -> None:
        frames = max(16, round(100 * max_duration_s) - 2)  # 25 ms windows every 10 ms that lie inside
        self.shape: tuple[int, ...] = (frames, NUM_MEL_BINS)
        self.key = f"log-mel {frames} {NUM_MEL_BINS} {RATE_HZ}"
        self._log_mel = LogMel(
            FrontEnd(max_frames=frames, num_mel_bins=NUM_MEL_BINS, mean=None, std=None, zero_mean=True)
        )

    def prepare(self, samples: Float32) -> Float32:
        wave = torch.from_numpy(samples - samples.mean(dtype=np.float64).astype(np.float32))
        spectrogram: Float32 = self._log_mel(wave[None], [len(samples)], RATE_HZ)[0].numpy()
        return spectrogram

    def build(self, num_labels: int, mean: Tensor, std: Tensor) -> nn.Module:
        return _CnnModule(num_labels, mean, std)


class _CnnModule(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, num_labels: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        blocks: list[nn.Module] = []
        for i, (width, wider) in enumerate(itertools.pairwise((1, *WIDTHS))):
            size, stride = (7, 4) if i == 0 else (3, 2)
            convolution = nn.Conv2d(width, wider, size, stride=stride, padding=size // 2, bias=False)
            blocks += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], num_labels)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, frames, mel bins) → (n, num_labels)"""
        x = self.blocks(((inputs - self.mean) / self.std)[:, None]).mean(dim=3)  # over frequency: (n, width, time)
        logits: Tensor = self.head(x.mean(dim=2) + x.amax(dim=2))
        return logits


class _Transformer:
    """Any audio classifier of transformers, with its own feature extractor."""

    is_small = False

    def __init__(self, model: str, max_duration_s: float, from_scratch: bool) -> None:
        try:
            import transformers
        except ImportError:
            raise UserError(
                f"finetune.model={model} needs transformers: pip install 'audio-balance[train]', or leave it out for "
                "the small CNN"
            ) from None
        where = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
        self._transformers, self._where, self._from_scratch = transformers, where, from_scratch
        with _said(model):
            self._extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(where)
            self._config: Any = transformers.AutoConfig.from_pretrained(where)
        if getattr(self._extractor, "sampling_rate", RATE_HZ) != RATE_HZ:
            rate = self._extractor.sampling_rate
            raise UserError(f"finetune.model={model} hears {rate} Hz; models of {RATE_HZ} Hz can be trained here")
        self.name = f"{self._config.model_type}, {'from scratch' if from_scratch else 'pretrained'}"
        self.shape = self.prepare(np.zeros(round(max_duration_s * RATE_HZ), dtype=np.float32)).shape
        self.key = f"{self._extractor.to_json_string()} {self.shape}"

    def prepare(self, samples: Float32) -> Float32:
        made = self._extractor(samples, sampling_rate=RATE_HZ, return_tensors="np")
        name = next(name for name in ("input_values", "input_features") if name in made)
        values: Float32 = np.asarray(made[name][0], dtype=np.float32)
        return values

    def build(self, num_labels: int, mean: Tensor, std: Tensor) -> nn.Module:
        auto = self._transformers.AutoModelForAudioClassification
        with _said(self._where):
            if self._from_scratch:
                self._config.num_labels = num_labels
                model = auto.from_config(self._config)
            else:
                model = auto.from_pretrained(self._where, num_labels=num_labels, ignore_mismatched_sizes=True)
        return _Logits(model)


class _Logits(nn.Module):
    """A transformers model whose output is its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs).logits
        return logits


@contextlib.contextmanager
def _said(model: str) -> Any:
    """What transformers raises of a model that it cannot read, in one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"finetune.model={model} cannot be read as an audio classifier ({(str(error).splitlines() or [''])[0]}); "
            "give a folder with config.json, preprocessor_config.json and weights, or a hub name"
        ) from error

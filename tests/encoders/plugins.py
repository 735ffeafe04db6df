"""Encoders as people write them, for tests: sound ones and deliberately broken ones.

`numpy_spectrum` is the reference of `Spectrum`, without torch.
"""

from __future__ import annotations

import numpy as np
import torch

BANDS = 8


class Spectrum:
    """The mean power of a waveform's blocks of 256 samples in 8 bands, the end padded with zeros; dim 8."""

    sample_rate_hz: int | None = 8000
    dim = BANDS
    max_duration_s: float | None = None

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        rows = []
        for waveform, length in zip(waveforms, lengths.tolist(), strict=True):
            padded = torch.nn.functional.pad(waveform[:length], (0, -length % 256))
            power = torch.fft.rfft(padded.reshape(-1, 256)).abs().square().mean(0)
            rows.append(power[:128].reshape(BANDS, -1).mean(1))
        return torch.stack(rows)


class ShortSpectrum(Spectrum):
    """It hears half a second at a time."""

    max_duration_s = 0.5


class AnyRate(Spectrum):
    sample_rate_hz = None


def numpy_spectrum(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % 256)).reshape(-1, 256)
    power = np.mean(np.abs(np.fft.rfft(padded)) ** 2, axis=0)
    return power[:128].reshape(BANDS, -1).mean(axis=1)


class FactoryFails:
    def __init__(self) -> None:
        raise FileNotFoundError("no weights here")


class EmbedFails(Spectrum):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")


class WithoutFacts:
    dim = 3

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return waveforms[:, :3]


class OtherDim(Spectrum):
    dim = 5


class OddDuration(Spectrum):
    max_duration_s = -1.0


class BatchNormInTraining(Spectrum):
    """Its factory forgot `eval()`."""

    def __init__(self) -> None:
        self.norm = torch.nn.BatchNorm1d(BANDS)

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.norm(super().embed(waveforms, lengths))


class HearsOtherClips(Spectrum):
    """Batch statistics that no layer gives away."""

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = super().embed(waveforms, lengths)
        return given - 0.1 * given.mean(0)


class HearsPadding(Spectrum):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().embed(waveforms, torch.full_like(lengths, waveforms.shape[1]))


class KeepsState(Spectrum):
    calls = 0

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().embed(waveforms, lengths) * (1 + 0.01 * self.calls)


class KnowsItsPlace(Spectrum):
    """The first of a batch is louder."""

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = super().embed(waveforms, lengths).clone()
        given[0] *= 1 + 0.01 * (len(given) - 1)
        return given


class NanForSilence(Spectrum):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = super().embed(waveforms, lengths)
        return given / given.norm(dim=1, keepdim=True)


class NanForShort(Spectrum):
    """Clips under half a second have no frame of its own."""

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = super().embed(waveforms, lengths).clone()
        given[lengths < 4000] = float("nan")
        return given


class NanAlways(Spectrum):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().embed(waveforms, lengths) * float("nan")


class GradientLeftOn(Spectrum):
    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(BANDS))

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().embed(waveforms, lengths) * self.weight


class GradientTurnedOn(GradientLeftOn):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return super().embed(waveforms, lengths)


class WrongDevice(Spectrum):
    def to(self, device: torch.device) -> None:
        pass

    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().embed(waveforms, lengths).to("meta")


class NoTensor(Spectrum):
    def embed(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return super().embed(waveforms, lengths).numpy()

"""How the demo's 14 sound classes sound: a function each, from noise and sine waves.

In: a `Take`, the time axis and a generator. Out: (n,) float64, of any amplitude. What a function draws, and in which
order, decides the demo's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.signal

from balance.records import Float64


@dataclass(frozen=True, slots=True)
class Take:
    """One sound to be made. t: (n,) float64, seconds; rate: Hz; rng: draws what makes it unlike others of its class."""

    t: Float64
    rate: int
    rng: np.random.Generator

    @property
    def top_hz(self) -> float:
        """The highest frequency to use."""
        return min(self.rate / 2, 8000.0) * 0.9


def _hum(take: Take) -> Float64:
    base = take.rng.uniform(48, 62)
    return _sum([np.sin(2 * np.pi * base * h * take.t) / h for h in (1, 2, 3)])


def _whistle(take: Take) -> Float64:
    base = take.rng.uniform(0.55, 0.75) * min(take.top_hz, 3500)
    return np.asarray(np.sin(2 * np.pi * base * take.t + 3 * np.sin(2 * np.pi * 5 * take.t)))


def _rising_sweep(take: Take) -> Float64:
    return _sweep(take, (take.t * take.rng.uniform(0.4, 0.8)) % 1.0)


def _falling_sweep(take: Take) -> Float64:
    return _sweep(take, 1.0 - (take.t * take.rng.uniform(0.4, 0.8)) % 1.0)


def _sweep(take: Take, position: Float64) -> Float64:
    return np.asarray(np.sin(2 * np.pi * np.cumsum(150 + position * (0.8 * take.top_hz - 150)) / take.rate))


def _hiss(take: Take) -> Float64:
    return _shaped(take, lambda f: f / (f + 1500.0))


def _rumble(take: Take) -> Float64:
    return _shaped(take, lambda f: 1.0 / (1.0 + (f / 120.0) ** 2))


def _rain(take: Take) -> Float64:
    num_samples, rate, rng = len(take.t), take.rate, take.rng
    drops = (rng.random(num_samples) < 60 / rate) * rng.standard_normal(num_samples)
    tail = np.exp(-np.arange(rate // 50) / (rate / 400)) * rng.standard_normal(rate // 50)
    wet = scipy.signal.fftconvolve(drops, tail)[:num_samples]
    return np.asarray(wet + 0.02 * rng.standard_normal(num_samples))


def _clicking(take: Take) -> Float64:
    clicks = np.where((take.t * take.rng.uniform(6, 10)) % 1.0 < 0.004, 1.0, 0.0)
    return np.asarray(clicks * take.rng.standard_normal(len(take.t)))


def _tremolo(take: Take) -> Float64:
    tone = np.sin(2 * np.pi * take.rng.uniform(500, 800) * take.t)
    return np.asarray(tone * (0.5 + 0.5 * np.sin(2 * np.pi * take.rng.uniform(6, 9) * take.t)))


def _siren(take: Take) -> Float64:
    wave = 900 + 400 * np.sin(2 * np.pi * take.rng.uniform(0.5, 0.9) * take.t)
    phase = 2 * np.pi * np.cumsum(wave) / take.rate
    return np.asarray(np.sin(phase) + 0.4 * np.sin(2 * phase))


def _plucked_string(take: Take) -> Float64:
    since = (take.t * take.rng.uniform(1.5, 2.5)) % 1.0
    base = take.rng.uniform(180, 330)
    return _sum([np.exp(-since * (3 + h)) * np.sin(2 * np.pi * base * h * take.t) / h for h in range(1, 7)])


def _drum(take: Take) -> Float64:
    since = (take.t * take.rng.uniform(2, 3)) % 1.0
    noise = 0.6 * take.rng.standard_normal(len(take.t))
    return np.asarray(np.exp(-since * 14) * (np.sin(2 * np.pi * 80 * take.t) + noise))


def _engine(take: Take) -> Float64:
    return 2 * ((take.t * take.rng.uniform(70, 110)) % 1.0) - 1 + 0.3 * take.rng.standard_normal(len(take.t))


def _bell(take: Take) -> Float64:
    since = (take.t * take.rng.uniform(0.6, 1.0)) % 1.0
    base = take.rng.uniform(350, 500)
    return _sum([np.exp(-since * 3 * r) * np.sin(2 * np.pi * base * r * take.t) for r in (1, 2.01, 2.75, 4.1)])


def _sum(parts: list[Float64]) -> Float64:
    return np.asarray(np.sum(parts, axis=0))


def _shaped(take: Take, gain: Callable[[Float64], Float64]) -> Float64:
    """Noise whose spectrum follows gain(Hz)."""
    frequencies_hz = np.asarray(np.fft.rfftfreq(len(take.t), 1 / take.rate), dtype=np.float64)
    spectrum = np.fft.rfft(take.rng.standard_normal(len(take.t))) * gain(frequencies_hz)
    return np.asarray(np.fft.irfft(spectrum, len(take.t)))


SOUNDS: dict[str, Callable[[Take], Float64]] = {
    "Hum": _hum,
    "Whistle": _whistle,
    "Rising sweep": _rising_sweep,
    "Falling sweep": _falling_sweep,
    "Hiss": _hiss,
    "Rumble": _rumble,
    "Rain": _rain,
    "Clicking": _clicking,
    "Tremolo": _tremolo,
    "Siren": _siren,
    "Plucked string": _plucked_string,
    "Drum": _drum,
    "Engine": _engine,
    "Bell": _bell,
}

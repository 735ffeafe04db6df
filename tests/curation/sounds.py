"""Sounds for tests of acoustic copies."""

import numpy as np


def sound(seed, seconds=8.0, rate=16000):
    """Noise bursts of random colour and loudness: no two alike."""
    rng = np.random.default_rng(seed)
    out = 0.003 * rng.standard_normal(int(seconds * rate))
    for _ in range(40):
        start, size = rng.integers(0, len(out) - 4000), rng.integers(1500, 4000)
        tone = np.sin(2 * np.pi * rng.uniform(150, 3500) / rate * np.arange(size))
        out[start : start + size] += tone * np.hanning(size) * rng.uniform(0.05, 0.4)
    return (out / np.abs(out).max() * 0.8).astype(np.float32)

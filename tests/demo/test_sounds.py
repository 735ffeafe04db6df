"""The sound classes: each is finite, heard, and unlike the others."""

from __future__ import annotations

import numpy as np

from balance.demo.sounds import SOUNDS, Take


def test_every_class_has_a_sound_of_its_own() -> None:
    """At the lowest and the highest rate; the same generator gives the same sound, another one another."""
    for rate in (8000, 48_000):
        t = np.arange(rate) / rate
        made = {name: sound(Take(t, rate, np.random.default_rng(1))) for name, sound in SOUNDS.items()}
        for name, samples in made.items():
            assert samples.shape == (rate,)
            assert samples.dtype == np.float64
            assert np.isfinite(samples).all()
            assert samples.std() > 1e-3
            np.testing.assert_array_equal(samples, SOUNDS[name](Take(t, rate, np.random.default_rng(1))))
            assert (samples != SOUNDS[name](Take(t, rate, np.random.default_rng(2)))).any()
        spectra = np.stack([np.abs(np.fft.rfft(samples)) for samples in made.values()])
        spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
        likeness = spectra @ spectra.T - np.eye(len(spectra))
        assert likeness.max() < 0.95

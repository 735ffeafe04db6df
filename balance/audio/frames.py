"""Kaldi's frames at any sample rate. Without imports, so that the spectrogram needs no audio library."""

# Kaldi's frames: whole samples, rounded down (int(0.025 sr), int(0.010 sr)); integers, so that no rate is off by one.
WINDOW_MS, SHIFT_MS = 25, 10


def window_samples(sample_rate: int) -> int:
    """Samples of one analysis window (25 ms, rounded down)."""
    return sample_rate * WINDOW_MS // 1000


def shift_samples(sample_rate: int) -> int:
    """Samples from one frame to the next (10 ms, rounded down)."""
    return sample_rate * SHIFT_MS // 1000

"""What encoders other than VIP-ANT hear: mixed, resampled, in windows; against scipy and the contract's own formula."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from balance.audio import decode, resample
from balance.audio.sound_file import Undecodable


def sound(num_samples: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(num_samples)[:, None]
    tones = sum(np.sin(2 * np.pi * f * t / 44_100 + rng.uniform(0, 6, channels)) for f in (220.0, 1333.0, 4100.0))
    return (0.2 * tones + 0.02 * rng.standard_normal((num_samples, channels))).astype(np.float32)


def heard(path: Path, *, rate: int | None, duration: float | None, most: int = 1 << 30) -> list[decode.Waveform]:
    return list(decode.load_windows(path, sample_rate_hz=rate, max_duration_s=duration, most_samples=most))


@pytest.mark.parametrize(("rate", "to_rate"), [(44_100, 16_000), (48_000, 16_000), (8_000, 32_000), (22_050, 48_000)])
def test_resampling_is_scipy_s_within_a_thousandth(tmp_path: Path, rate: int, to_rate: int) -> None:
    """Tones well below both Nyquists, away from the ends, where filters of different length differ."""
    t = np.arange(2 * rate) / rate
    samples = np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 1500 * t)], axis=1) * 0.4
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    (wave,) = heard(tmp_path / "a.wav", rate=to_rate, duration=None)
    ratio = math.gcd(rate, to_rate)
    expected = scipy.signal.resample_poly(samples.mean(axis=1), to_rate // ratio, rate // ratio, window=("kaiser", 12))
    assert len(wave.samples) == 2 * to_rate
    inside = slice(to_rate // 10, -to_rate // 10)
    assert np.abs(wave.samples[inside] - expected[inside]).max() < 1e-3 * np.abs(expected).max()


def test_the_mean_of_the_channels_at_the_file_s_own_rate(tmp_path: Path) -> None:
    samples = sound(30_000, 3)
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    for rate in (None, 44_100):
        (wave,) = heard(tmp_path / "a.wav", rate=rate, duration=None)
        np.testing.assert_array_equal(wave.samples, samples.mean(axis=1, dtype=np.float64).astype(np.float32))
    published = decode.load(tmp_path / "a.wav", max_frames=100, zero_mean=True)
    for fact in ("sample_rate", "num_samples", "rms_db", "pcm_sha1", "partial"):  # of the clip before any mixing
        assert getattr(wave, fact) == getattr(published, fact)


@pytest.mark.parametrize(
    ("num_samples", "window"), [(100, 100), (99, 100), (101, 100), (1000, 100), (1001, 100), (12_345, 777), (199, 100)]
)
def test_windows_are_evenly_spaced_over_the_whole_clip(num_samples: int, window: int) -> None:
    starts = resample.window_starts(num_samples, window)
    count = max(1, math.ceil(num_samples / window))
    assert starts == np.linspace(0, max(0, num_samples - window), count).round().astype(int).tolist()
    covered = np.zeros(num_samples, dtype=bool)
    for start in starts:
        covered[start : start + window] = True
    assert covered.all()
    assert resample.window_starts(num_samples, None) == [0]


@pytest.mark.parametrize("is_long", [False, True])
def test_windows_come_in_pieces_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool) -> None:
    """Of a clip that is held, and of one that is decoded a second time."""
    samples = sound(3_210_987, 2)
    soundfile.write(tmp_path / "a.flac", samples, 44_100)
    whole = heard(tmp_path / "a.flac", rate=16_000, duration=None)[0].samples
    if is_long:
        monkeypatch.setattr(decode, "_KEPT_BYTES", 1 << 20)
    pieces = heard(tmp_path / "a.flac", rate=16_000, duration=2.5, most=100_000)
    assert [piece.num_windows for piece in pieces] == [2] * 14 + [2]
    assert [piece.is_last for piece in pieces] == [False] * 14 + [True]
    windows = np.concatenate([piece.samples.reshape(-1, 40_000) for piece in pieces])
    starts = np.linspace(0, len(whole) - 40_000, math.ceil(len(whole) / 40_000)).round().astype(int)
    np.testing.assert_array_equal(windows, np.stack([whole[start : start + 40_000] for start in starts]))
    assert len({piece.pcm_sha1 for piece in pieces}) == 1


def test_a_clip_of_which_nothing_is_left_is_too_short(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1200, 1), 44_100)
    with pytest.raises(Undecodable) as caught:
        heard(tmp_path / "a.wav", rate=1, duration=None)
    assert caught.value.reason == "too_short"

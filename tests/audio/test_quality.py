"""What is measured of a clip's sound, block by block, against the whole clip in numpy float64 and scipy."""

import numpy as np
import pytest
import scipy.signal
import soundfile

from balance.audio import decode
from balance.audio.quality import Quality
from balance.records import QUALITY

RATE = 44_100


def measured(samples: np.ndarray, block: int = 1000, rate: int = RATE) -> dict[str, float]:
    quality = Quality(rate, samples.shape[1])
    for at in range(0, len(samples), block):
        quality.add(samples[at : at + block])
    return dict(zip(QUALITY, quality.numbers(float(samples.mean(dtype=np.float64))), strict=True))


def noise(seconds: float, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((int(seconds * RATE), channels))).astype(np.float32)


@pytest.mark.parametrize("block", [777, 10_000, 10**6])
def test_against_the_whole_clip(block: int) -> None:
    samples = np.clip(10 * noise(2.0), -1, 1) + np.float32(0.0)
    samples[: RATE // 2] = 1e-4
    samples[-RATE // 4 :, 1] = 0
    samples[-RATE // 4 :, 0] = -5e-4
    found = measured(samples, block)
    loud = np.flatnonzero((np.abs(samples.astype(np.float64)) > 1e-3).any(axis=1))
    assert found["clipped"] == pytest.approx((np.abs(samples) >= 1 - 2**-15).mean(), abs=1e-12)
    assert found["clipped"] > 0.1
    assert found["leading_silence_s"] == loud[0] / RATE
    assert found["trailing_silence_s"] == (len(samples) - 1 - loud[-1]) / RATE
    assert found["dc_offset"] == pytest.approx(samples.mean(dtype=np.float64))
    assert (found["channels"], found["channels_equal"]) == (2, 0)


def test_channels() -> None:
    samples = noise(1.0)
    assert measured(samples)["channels_equal"] == 0
    alike = np.repeat(samples[:, :1], 3, axis=1)
    assert measured(alike)["channels_equal"] == 1
    alike[-1, 2] += 0.001
    assert measured(alike)["channels_equal"] == 0
    assert measured(samples[:, :1])["channels_equal"] == 1


@pytest.mark.parametrize("cutoff_hz", [3400, 8000, 16_000])
def test_bandwidth_is_where_a_low_pass_ends(cutoff_hz: int) -> None:
    taps = scipy.signal.firwin(2001, cutoff_hz, fs=RATE, window=("kaiser", 14.0))
    samples = scipy.signal.lfilter(taps, 1, noise(4.0), axis=0).astype(np.float32)
    sixteen_bits = (np.round(samples * 32_768) / 32_768).astype(np.float32)
    for some in (samples, sixteen_bits):
        assert measured(some, 50_000)["bandwidth_hz"] == pytest.approx(cutoff_hz, abs=250)
    assert measured(noise(4.0), 50_000)["bandwidth_hz"] == pytest.approx(RATE / 2, abs=50)


def test_silence_has_no_bandwidth_and_no_end() -> None:
    found = measured(np.zeros((RATE, 1), np.float32))
    assert (found["bandwidth_hz"], found["clipped"], found["dc_offset"]) == (0, 0, 0)
    assert (found["leading_silence_s"], found["trailing_silence_s"]) == (1, 1)


def test_decoding_measures_the_whole_clip_before_any_crop(tmp_path) -> None:
    samples = noise(5.0)
    samples[: 2 * RATE] = 0
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    found = decode.load(tmp_path / "a.wav", max_frames=100, zero_mean=True).quality
    assert found == pytest.approx(tuple(measured(samples, 73_728).values()))
    windows = decode.load_windows(tmp_path / "a.wav", sample_rate_hz=16_000, max_duration_s=1, most_samples=1)
    assert {wave.quality for wave in windows} == {found}

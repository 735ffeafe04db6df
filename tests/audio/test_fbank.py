"""Spectrograms against the published code's numbers, against kaldi-native-fbank, and against themselves in batches."""

import math

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from balance.audio import decode, fbank
from balance.audio.fbank import VIPANT_FRONT_END, FrontEnd, LogMel
from tests.paths import VIPANT

EXPECTED = np.load(VIPANT / "clip_head.expected.npz")
NAMES = [str(name) for name in EXPECTED["names"]]
RAW = FrontEnd(max_frames=400, num_mel_bins=128, mean=None, std=None, zero_mean=False)


def one(samples: np.ndarray, sample_rate: int, front_end: FrontEnd) -> np.ndarray:
    return LogMel(front_end)(torch.from_numpy(samples)[None], [len(samples)], sample_rate)[0].numpy()


@pytest.fixture(params=["clip by clip", "whole batches"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of cutting the work, also the GPU's, on whatever device the tests have."""
    if request.param == "whole batches":
        monkeypatch.setattr(fbank, "_clip_by_clip", lambda device: False)
    return str(request.param)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("name", NAMES)
def test_published_numbers(name: str) -> None:
    row = NAMES.index(name)
    waveform = decode.load(VIPANT / "clips" / name, max_frames=1000, zero_mean=True)
    spectrogram = one(waveform.samples, waveform.sample_rate, VIPANT_FRONT_END)
    tolerance = 1e-2 if name.endswith(".mp3") else 3e-4
    np.testing.assert_allclose(spectrogram[:32], EXPECTED["fbank_first"][row], atol=tolerance, rtol=0)
    np.testing.assert_allclose(spectrogram[500:516], EXPECTED["fbank_mid"][row], atol=tolerance, rtol=0)
    assert spectrogram.mean() == pytest.approx(EXPECTED["fbank_mean"][row], abs=1e-4)


def kaldi(samples: np.ndarray, sample_rate: int, num_mel_bins: int) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = num_mel_bins
    options.mel_opts.low_freq = 20.0
    options.use_energy = False
    options.htk_compat = True
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(sample_rate, samples.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("num_mel_bins", [128, 40])
def test_kaldi_native_fbank_agrees(sample_rate: int, num_mel_bins: int) -> None:
    generator = np.random.default_rng(sample_rate)
    num_samples = int(sample_rate * 1.37) + 5
    seconds = np.arange(num_samples) / sample_rate
    samples = 0.3 * np.sin(2 * math.pi * 440 * seconds) + 0.05 * generator.standard_normal(num_samples) + 0.02
    samples = samples.astype(np.float32)
    expected = kaldi(samples, sample_rate, num_mel_bins)
    front_end = FrontEnd(max_frames=400, num_mel_bins=num_mel_bins, mean=None, std=None, zero_mean=False)
    ours = one(samples, sample_rate, front_end)
    assert fbank.num_frames(num_samples, sample_rate) == len(expected)
    # Its triangles are float32: where a bin lies near an edge the weights differ, by up to 4e-4 of the logarithm here.
    np.testing.assert_allclose(ours[: len(expected)], expected, atol=1e-3, rtol=0)
    assert np.median(np.abs(ours[: len(expected)] - expected)) < 2e-5
    assert not ours[len(expected) :].any()


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("sample_rate", [8000, 44100])
def test_a_clip_does_not_depend_on_its_batch(sample_rate: int) -> None:
    generator = np.random.default_rng(3)
    lengths = [sample_rate * 2, sample_rate // 40, sample_rate * 5, sample_rate // 3]
    clips = [generator.standard_normal(n).astype(np.float32) * 0.1 for n in lengths]
    batch = torch.full((4, max(lengths)), 9.0)  # what follows a clip's end must not matter
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = torch.from_numpy(clip)
    log_mel = LogMel(VIPANT_FRONT_END)
    together = log_mel(batch, lengths, sample_rate)
    permuted = log_mel(batch[[2, 0, 3, 1]], [lengths[i] for i in (2, 0, 3, 1)], sample_rate)
    assert torch.equal(together[[2, 0, 3, 1]], permuted)
    for row, clip in enumerate(clips):
        alone = batch.new_zeros(4, len(clip))  # the same shape of batch, other clips in it
        alone[row] = torch.from_numpy(clip)
        assert torch.equal(log_mel(alone, [len(clip)] * 4, sample_rate)[row], together[row])


def test_padding_is_raw_zeros_normalised() -> None:
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    spectrogram = one(samples, 16000, VIPANT_FRONT_END)
    assert (spectrogram[98:] == np.float32(np.float32(4.93839311) / np.float32(5.75751113))).all()
    assert (spectrogram[97] != spectrogram[98]).all()


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(one(np.zeros(44100, np.float32), 44100, RAW)[:98], math.log(2.0**-23), rtol=1e-7)


def test_frames_of_ten_seconds() -> None:
    rates = {8000: 998, 11025: 1000, 16000: 998, 22050: 1000, 32000: 998, 44100: 998, 48000: 998}
    assert {rate: fbank.num_frames(10 * rate, rate) for rate in rates} == rates


def test_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="1101 samples at 44100 Hz is shorter than one window"):
        LogMel(RAW)(torch.zeros(2, 2000), [2000, 1101], 44100)


def test_triangles() -> None:
    weights = fbank.mel_weights(16000, 128, 512).numpy()
    assert weights.shape == (256, 128)
    assert weights.min() == 0
    assert 0.9 < weights.max() <= 1
    assert (weights.sum(0) == 0).any()  # 31 Hz bins: some of the lowest triangles hold none
    inside = weights[20:200].sum(1)  # neighbouring triangles add up to one between the first and last peak
    np.testing.assert_allclose(inside, 1, atol=1e-5)

"""The benchmark runs, and the straightforward path it compares with computes the same thing as the product."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from balance.audio import decode, fbank
from balance.encoders.checkpoint import read_checkpoint
from balance.encoders.precision import Precision
from balance.encoders.vipant import build_encoder
from benchmarks import straightforward
from tests.paths import REPOSITORY, VIPANT


def test_it_runs_and_says_what_was_asked() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "embed.py"), "--tiny"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    figures = json.loads(answer.stdout.splitlines()[-1])
    ratios = {"end_to_end_ratio_bfloat16", "end_to_end_ratio_float32", "fbank_ratio"}
    assert ratios | {"clips_per_s", "peak_rss_bytes"} <= set(figures)
    for stage in ("straightforward", "decode", "fbank", "forward_bfloat16", "end_to_end_bfloat16"):
        assert figures["clips_per_s"][stage] > 0
    assert 1 << 20 < figures["peak_rss_bytes"] < 1 << 36


@pytest.mark.parametrize("name", ["clip_head", "naive_head"])
def test_both_ways_give_the_same_embedding(tmp_path: Path, name: str) -> None:
    checkpoint = read_checkpoint(VIPANT / f"{name}.pth")
    tower = straightforward.PublishedTower(checkpoint)
    encoder = build_encoder(checkpoint, torch.device("cpu"), Precision.float32, compile=False)
    for clip in ("chirp_stereo_44k.mp3", "brown_8k.wav", "short_mono_16k.wav"):
        path = VIPANT / "clips" / clip
        theirs = straightforward.embed_one(path, tower, checkpoint.front_end, tmp_path)
        wave = decode.load(path, max_frames=1000, zero_mean=True)
        samples = torch.from_numpy(wave.samples)[None]
        spectrogram = fbank.LogMel(checkpoint.front_end)(samples, [samples.shape[1]], wave.sample_rate)
        ours = encoder(spectrogram)[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.linalg.norm(theirs), rtol=0)
        np.testing.assert_array_equal(np.load(tmp_path / f"{path.stem}.npz")["v"], theirs)


@pytest.mark.parametrize("sample_rate", [8000, 11025, 44100, 48000])
def test_its_fbank_is_what_ours_replaces(tmp_path: Path, sample_rate: int) -> None:
    generator = np.random.default_rng(1)
    soundfile.write(tmp_path / "a.wav", generator.uniform(-0.5, 0.5, sample_rate), sample_rate, subtype="FLOAT")
    wave = decode.load(tmp_path / "a.wav", max_frames=200, zero_mean=True)
    samples = torch.from_numpy(wave.samples)[None]
    front_end = fbank.FrontEnd(max_frames=200, num_mel_bins=128, mean=None, std=None, zero_mean=True)
    ours = fbank.LogMel(front_end)(samples, [samples.shape[1]], sample_rate)[0, :98]
    theirs = straightforward.kaldi_fbank(samples, float(sample_rate), 128)[:98]
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-3, rtol=0)

"""Front end and encoder on a GPU, against the CPU in float32. Needs nothing that a bare GPU machine may lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balance.audio.fbank import LogMel
from balance.encoders.checkpoint import read_checkpoint
from balance.encoders.precision import Precision
from balance.encoders.vipant import build_encoder
from tests.paths import VIPANT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# tests/test_encoder.py holds the CPU to the published numbers; here the GPU is held to the CPU.
TOLERANCES = {
    Precision.float32: (5e-5, 1 - 1e-8),
    Precision.tf32: (2e-3, 0.9999),
    Precision.bfloat16: (2e-3, 0.9999),
    Precision.float16: (2e-3, 0.9999),
}


def _waves(rate: int, lengths: list[int]) -> torch.Tensor:
    rng = np.random.default_rng(rate)
    waves = np.zeros((len(lengths), max(lengths)), dtype=np.float32)
    for row, length in enumerate(lengths):
        t = np.arange(length) / rate
        waves[row, :length] = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 3000) * t) + 0.05 * rng.standard_normal(length)
    return torch.from_numpy(waves)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_log_mel_on_cuda(rate: int) -> None:
    log_mel = LogMel(read_checkpoint(VIPANT / "clip_head.pth").front_end)
    lengths = [10 * rate, 3 * rate, rate // 2, 7 * rate + 11]
    waves = _waves(rate, lengths)
    expected = log_mel(waves, lengths, rate)
    found = log_mel(waves.cuda(), lengths, rate).cpu()
    assert (found - expected).abs().max() < 3e-4
    # A clip's spectrogram does not depend on its company.
    alone = log_mel(waves[1:2, : lengths[1]].cuda(), lengths[1:2], rate).cpu()
    assert (alone[0] - found[1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["clip_head.pth", "naive_head.pth"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_embeddings_on_cuda(name: str, precision: Precision) -> None:
    checkpoint = read_checkpoint(VIPANT / name)
    lengths = [441_000, 100_000, 300_000, 44_100, 441_000]
    spectrograms = LogMel(checkpoint.front_end)(_waves(44_100, lengths), lengths, 44_100)
    expected = build_encoder(checkpoint, torch.device("cpu"), Precision.float32, False)(spectrograms)
    found = build_encoder(checkpoint, torch.device("cuda"), precision, False)(spectrograms.cuda()).cpu()
    difference, cosine = TOLERANCES[precision]
    wide, reference = found.double(), expected.double()
    norms = reference.norm(dim=1)
    if precision is Precision.float32:
        assert ((wide - reference).abs().max(dim=1).values / norms).max() <= difference
    assert torch.nn.functional.cosine_similarity(wide, reference).min() >= cosine


def test_a_clip_s_row_does_not_depend_on_its_batch() -> None:
    """At one batch shape: what makes a part's bytes independent of who makes it."""
    checkpoint = read_checkpoint(VIPANT / "clip_head.pth")
    encoder = build_encoder(checkpoint, torch.device("cuda"), Precision.tf32, False)
    lengths = [441_000] * 8
    spectrograms = LogMel(checkpoint.front_end)(_waves(44_100, lengths).cuda(), lengths, 44_100)
    other = torch.randn_like(spectrograms)
    other[3] = spectrograms[3]
    assert torch.equal(encoder(spectrograms)[3], encoder(other)[3])

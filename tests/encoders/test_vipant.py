"""The tower against the published code's embeddings, in every kind of batch and precision; devices and their errors."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from balance.audio import decode, fbank
from balance.encoders.checkpoint import read_checkpoint
from balance.encoders.config import EncoderConfig
from balance.encoders.precision import Precision
from balance.encoders.vipant import Encoder, build_encoder
from balance.errors import UserError
from tests.paths import VIPANT

NAMES = ["clip_head", "clip_head_omegaconf21", "clip_head_vision_pos", "naive_head"]
CPU = torch.device("cpu")


def expected(name: str) -> dict[str, np.ndarray]:
    arrays = np.load(VIPANT / f"{name.removesuffix('_omegaconf21')}.expected.npz")
    return dict(zip(map(str, arrays["names"]), arrays["embeddings"].astype(np.float64), strict=True))


@pytest.fixture(scope="module")
def waveforms() -> dict[str, decode.Waveform]:
    names = expected("clip_head")
    assert len(names) == 11
    return {name: decode.load(VIPANT / "clips" / name, max_frames=1000, zero_mean=True) for name in names}


def spectrograms(clips: list[decode.Waveform], front_end: fbank.FrontEnd, batch: int) -> torch.Tensor:
    """Of clips of one rate, padded by repeating the last clip to a full batch."""
    padded = clips + [clips[-1]] * (batch - len(clips))
    samples = torch.zeros(batch, max(len(c.samples) for c in clips))
    for row, clip in enumerate(padded):
        samples[row, : len(clip.samples)] = torch.from_numpy(clip.samples)
    return fbank.LogMel(front_end)(samples, [len(c.samples) for c in padded], clips[0].sample_rate)


def in_batches(encoder: Encoder, clips: dict[str, decode.Waveform], front_end: fbank.FrontEnd) -> dict[str, np.ndarray]:
    """By rate, in batches of four, lengths mixed."""
    by_rate = defaultdict(list)
    for name, clip in clips.items():
        by_rate[clip.sample_rate].append(name)
    result = {}
    for names in by_rate.values():
        for start in range(0, len(names), 4):
            chosen = names[start : start + 4]
            rows = encoder(spectrograms([clips[n] for n in chosen], front_end, 4)).double().numpy()
            result.update(zip(chosen, rows, strict=False))
    return result


def one_by_one(encoder: Encoder, clips: dict[str, decode.Waveform], front_end: fbank.FrontEnd) -> dict[str, np.ndarray]:
    return {n: encoder(spectrograms([c], front_end, 1))[0].double().numpy() for n, c in clips.items()}


@pytest.mark.parametrize("embed", [one_by_one, in_batches])
@pytest.mark.parametrize(
    ("name", "precision"),  # float16 is emulated on most CPUs: one checkpoint is enough
    [(n, p) for n in NAMES for p in (Precision.float32, Precision.bfloat16)] + [("naive_head", Precision.float16)],
)
def test_published_embeddings(name, precision, embed, waveforms) -> None:
    difference, cosine = (5e-5, 1 - 1e-8) if precision is Precision.float32 else (2e-3, 0.9999)
    checkpoint = read_checkpoint(VIPANT / f"{name}.pth")
    encoder = build_encoder(checkpoint, CPU, precision, compile=False)
    ours = embed(encoder, waveforms, checkpoint.front_end)
    for clip, theirs in expected(name).items():
        norm = np.linalg.norm(theirs)
        assert np.abs(ours[clip] - theirs).max() <= difference * norm, clip
        assert ours[clip] @ theirs / (np.linalg.norm(ours[clip]) * norm) >= cosine, clip


@pytest.mark.parametrize(
    ("precision", "batch"),  # 11: two chunks on a CPU, the second padded
    [(p, b) for p in (Precision.float32, Precision.bfloat16) for b in (3, 8, 11)] + [(Precision.float16, 3)],
)
def test_a_clip_does_not_depend_on_its_batch(precision: Precision, batch: int) -> None:
    checkpoint = read_checkpoint(VIPANT / "clip_head_vision_pos.pth")
    encoder = build_encoder(checkpoint, CPU, precision, compile=False)
    generator = torch.Generator().manual_seed(batch)
    clips = torch.randn(batch, 1000, 128, generator=generator)
    first = encoder(clips)
    order = torch.randperm(batch, generator=generator)
    assert torch.equal(encoder(clips[order]), first[order])
    others = torch.randn(batch, 1000, 128, generator=generator)
    others[-1] = clips[0]
    assert torch.equal(encoder(others)[-1], first[0])


def test_whatever_is_in_the_batch_even_nan() -> None:
    checkpoint = read_checkpoint(VIPANT / "naive_head.pth")
    encoder = build_encoder(checkpoint, CPU, Precision.float32, compile=False)
    clips = torch.randn(4, 1000, 128, generator=torch.Generator().manual_seed(0))
    first = encoder(clips)
    clips[1] = float("nan")
    again = encoder(clips)
    assert torch.equal(again[[0, 2, 3]], first[[0, 2, 3]])
    assert again[1].isnan().all()


def test_the_tower_does_not_touch_the_checkpoint() -> None:
    checkpoint = read_checkpoint(VIPANT / "clip_head.pth")
    before = {name: x.clone() for name, x in checkpoint.state.items()}
    build_encoder(checkpoint, CPU, Precision.float32, compile=False)(torch.zeros(1, 1000, 128))
    assert all(torch.equal(checkpoint.state[name], before[name]) for name in before)


def test_precision_table() -> None:
    assert Precision.auto.resolve("cuda") is Precision.tf32
    assert Precision.auto.resolve("cpu") is Precision.float32
    for precision in (Precision.float32, Precision.float16, Precision.bfloat16):
        assert precision.resolve("cpu") is precision.resolve("cuda") is precision
    with pytest.raises(UserError, match="tf32 needs a GPU"):
        Precision.tf32.resolve("cpu")


def test_config_checks() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        assert EncoderConfig(device=device).device == device
    for device in ("gpu", "cuda:", "cuda:x", "cpu:0", "cuda1", "mps"):
        with pytest.raises(ValueError, match="allowed are auto, cpu, cuda"):
            EncoderConfig(device=device)
    with pytest.raises(ValueError, match="must be at least 1"):
        EncoderConfig(batch_size=0)

"""The plugins of docs/encoders.md, run as they are printed, with models of the same interface in a size for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import soxr
import torch
from onnx import TensorProto, helper, numpy_helper

from tests import worlds
from tests.command import command
from tests.docs.blocks import blocks_of
from tests.encoders.test_plugin import store
from tests.paths import REPOSITORY

# BEATs' interface: extract_features(source, padding_mask) -> (states of patches of 400 samples, their padding mask).
BEATS = """
import torch

class BEATsConfig:
    def __init__(self, cfg):
        self.width = cfg["width"]

class BEATs(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layer = torch.nn.Linear(400, cfg.width)
        self.dropout = torch.nn.Dropout(0.5)

    def extract_features(self, source, padding_mask):
        count = source.shape[1] // 400 * 400
        states = self.dropout(self.layer(source[:, :count].unflatten(1, (-1, 400))))
        return states, padding_mask[:, :count].unflatten(1, (-1, 400)).any(-1)
"""


def block(word: str, most_lines: int) -> str:
    (text,) = [b.text for b in blocks_of(REPOSITORY / "docs" / "encoders.md") if word in b.text]
    assert len([line for line in text.splitlines() if line.strip()]) <= most_lines
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=3, pool=8, evaluation=1)


def run(folder: Path, world: worlds.World, target: str, args: str) -> dict[str, np.ndarray]:
    given = [f"dataset.root={world.root}", "k=3", "num_workers=2", "encoder=plugin", f"encoder.target={target}"]
    done = command(folder, *given, f"encoder.args={args}")
    assert done.returncode == 0, done.stderr
    return store(folder)[0]


def heard(path: Path, rate: int) -> np.ndarray:
    import soundfile

    samples, own = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(samples.mean(axis=1, dtype=np.float64).astype(np.float32), own, rate, quality="HQ"))


def test_the_beats_plugin(tmp_path: Path, world: worlds.World) -> None:
    (tmp_path / "my_encoders.py").write_text(block("class Beats", 15))
    (tmp_path / "BEATs.py").write_text(BEATS)
    weight, bias = torch.randn(768, 400, generator=torch.Generator().manual_seed(0)), torch.ones(768)
    saved = {"cfg": {"width": 768}, "model": {"layer.weight": weight, "layer.bias": bias}}
    torch.save(saved, tmp_path / "beats.pt")
    found = run(tmp_path, world, "my_encoders:Beats", f"{{checkpoint: {tmp_path / 'beats.pt'}}}")
    assert len(found) == 12
    for path, embedding in found.items():
        mono = heard(world.root / path, 16_000)
        patches = mono[: len(mono) // 400 * 400].reshape(-1, 400)
        expected = patches.mean(0) @ weight.numpy().T + 1
        np.testing.assert_allclose(embedding, expected, atol=1e-4)


def test_the_onnx_plugin(tmp_path: Path, world: worlds.World) -> None:
    (tmp_path / "my_encoders.py").write_text(block("class Onnx", 20))
    weight = np.random.default_rng(0).normal(size=(8000, 6)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["sound", "weight"], ["embedding"])],
        "tiny",
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["n", 8000])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "tiny.onnx")
    args = f"{{path: {tmp_path / 'tiny.onnx'}, sample_rate_hz: 8000, max_duration_s: 1.0}}"
    found = run(tmp_path, world, "my_encoders:Onnx", args)
    assert len(found) == 12
    for path, embedding in found.items():
        mono = heard(world.root / path, 8000)
        expected = np.pad(mono, (0, 8000 - len(mono))) @ weight
        np.testing.assert_allclose(embedding, expected, atol=1e-3)

"""What `benchmarks/gpu.sh` measures runs to its end on a simulated device, at a small size, before it meets a GPU."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import simulated_cuda
from tests.paths import REPOSITORY


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A benchmark as a module; a generator of a device is the one thing that the simulated device lacks for it."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    ordinary = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": ordinary())
    return importlib.import_module(name)


def test_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = argparse.Namespace(seeds=30, pool=500, dim=16, k=[5], cosines=[0.5, 0.996], repeats=1)
    monkeypatch.setitem(sys.modules, "faiss", None)  # what is installed knows nothing of the simulated device
    neighbours = script(monkeypatch, "neighbours")
    with simulated_cuda.simulated():
        figures = neighbours.gpu(arguments)
    assert figures["gpu_wrong_ids"] == 0
    assert figures["gpu_ours_torch_s"] > 0


def test_the_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for end to end, which a process of its own measures."""
    embed = script(monkeypatch, "embed")
    write_world = embed.write_world
    monkeypatch.setattr(embed, "write_world", lambda root, _, config: write_world(root, 2, config))
    monkeypatch.setattr(embed, "RELEASED", embed.TINY)
    monkeypatch.setattr(embed, "run_end_to_end", lambda *_: (10.0, 0))
    with simulated_cuda.simulated():
        figures = embed.measure_on_gpu(argparse.Namespace(clips=8, batch_size=2, repeats=1, compiled=False), tmp_path)
    stages = {
        "decode",
        "fbank",
        "fbank_forward_tf32",
        "fbank_forward_bfloat16",
        "end_to_end_tf32",
        "end_to_end_bfloat16",
    }
    assert figures["clips_per_s"].keys() == stages
    assert all(rate > 0 for rate in figures["clips_per_s"].values())

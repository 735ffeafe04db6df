"""Batches on a CUDA device, real or simulated: the CPU's embeddings, copies in the background, no waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balance.audio.decoders import Decoded
from balance.embed.batches import Batches
from balance.encoders.precision import Precision
from balance.encoders.vipant import VipAnt, read_vipant
from tests import simulated_cuda, worlds

TOLERANCE = {Precision.float32: 1e-4, Precision.tf32: 2e-2, Precision.float16: 2e-2, Precision.bfloat16: 5e-2}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> VipAnt:
    return read_vipant(worlds.write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth"))


def clips() -> list[Decoded]:
    """Of two rates and many lengths: full batches, a last one that is not, frames to clear behind short clips."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(11):
        rate = (8000, 16000)[number % 3 == 0]
        size = rate if number % 4 else rate // (2 + number)
        samples = (rng.standard_normal(size) * 0.1).astype(np.float32)
        found.append(Decoded(samples, rate, size, 0.0, bytes(20), "", ()))
    return found


def embedded(described: VipAnt, device: torch.device, precision: Precision) -> np.ndarray:
    batches = Batches(described.build(device, precision), described, device, 4, spread=map)
    for clip in clips():
        batches.add(clip)
    return batches.finish().wait()


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_embeddings_are_the_cpu_s(described: VipAnt, precision: Precision) -> None:
    expected = embedded(described, torch.device("cpu"), Precision.float32)
    with simulated_cuda.simulated():
        found = embedded(described, torch.device("cuda", 0), precision)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < TOLERANCE[precision] * scale


def test_the_host_waits_only_for_the_embeddings(described: VipAnt) -> None:
    device = torch.device("cuda", 0)
    with simulated_cuda.simulated() as machine:
        batches = Batches(described.build(device, Precision.tf32), described, device, 2, spread=map)
        batches.add(clips()[0])
        batches.finish()  # tables are made and copied at the first clip of each rate
        batches.add(clips()[1])
        batches.finish()
        machine.syncs.clear()
        machine.copies.clear()
        for clip in clips()[:6]:
            batches.add(clip)
        assert not machine.syncs
        assert machine.copies
        assert all(contiguous and pinned for _, contiguous, pinned in machine.copies)
        finished = batches.finish()
        assert not machine.syncs
        finished.wait()
        assert {why for why, _ in machine.syncs} == {"event"}

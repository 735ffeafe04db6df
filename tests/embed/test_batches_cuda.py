"""Batches on a CUDA device, real or simulated: the CPU's embeddings, copies in the background, no waiting."""

from __future__ import annotations

import dataclasses
import logging
import mmap
import queue
from typing import Any

import numpy as np
import pytest
import torch

from balance.audio.decoders import Decoded, Slot
from balance.embed.batches import Batches
from balance.embed.pinned import pinned
from balance.embed.stage import decoders_beside
from balance.encoders.precision import Precision
from balance.encoders.vipant import VipAnt, read_vipant
from balance.errors import UserError
from balance.runtime.cores import available_cores
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


def test_waveforms_that_do_not_fit_are_embedded_first(described: VipAnt, caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda", 0)
    with simulated_cuda.simulated() as machine:
        expected = embedded(described, device, Precision.float32)
        batches = Batches(described.build(device, Precision.float32), described, device, 4, spread=map)
        for number, clip in enumerate(clips()):
            if number in (3, 8):  # full, but for what those that wait give back
                machine.memory_bytes = machine.used_bytes[0]
                to = machine._copy

                def once(*arguments: Any, to: Any = to) -> Any:
                    try:
                        return to(*arguments)
                    except torch.OutOfMemoryError:
                        machine.memory_bytes = 80 << 30
                        raise

                machine._copy = once  # type: ignore[method-assign]
            batches.add(clip)
        found = batches.finish().wait()
        assert "at most 2 will wait" in caplog.text
        assert "at most 1 will wait" in caplog.text
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        del machine._copy
        machine.memory_bytes = 0
        with pytest.raises(UserError, match="does not hold a single clip"):
            batches.add(clips()[0])


class _Memory:
    """Shared memory of some clips, whose slots are given back to a list."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1 << 20)
        self.lends_slots = False
        self.free: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def clips(self, most_kept: int) -> list[Decoded]:
        found = []
        for number, clip in enumerate(clips()):
            samples = np.frombuffer(self.memory, dtype=np.float32, count=len(clip.samples), offset=number << 16)
            samples[:] = clip.samples
            found.append(dataclasses.replace(clip, samples=samples, slot=Slot(number, most_kept, self.free)))
        return found

    def given_back(self) -> list[int | None]:
        return [self.free.get() for _ in range(self.free.qsize())]


def test_clips_are_copied_from_their_slots(described: VipAnt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are given back once the copy has been made, or waited for where too many are kept; the embeddings are those
    of staged clips."""
    device, shared = torch.device("cuda", 1), _Memory()
    with simulated_cuda.simulated() as machine, torch.cuda.device(device):
        expected = embedded(described, device, Precision.float32)
        batches = Batches(described.build(device, Precision.float32), described, device, 4, spread=map)
        with pinned(shared, device):
            assert shared.lends_slots
            for clip in clips():  # tables are made and copied at the first clip of each rate
                batches.add(clip)
            batches.finish()
            machine.copies.clear()
            lent = shared.clips(most_kept=3)
            monkeypatch.setattr(torch.cuda.Event, "query", lambda event: False)
            for number, clip in enumerate(lent[:6]):
                machine.syncs.clear()
                batches.add(clip)
                assert shared.given_back() == [number - 2] * (number >= 2)
                assert ("event" in {why for why, _ in machine.syncs}) == (number >= 2)
            monkeypatch.setattr(torch.cuda.Event, "query", lambda event: True)
            batches.add(lent[6])
            assert shared.given_back() == [4, 5, 6]
            assert machine.copies
            assert all(contiguous and is_pinned for _, contiguous, is_pinned in machine.copies)
            for clip in lent[7:]:
                batches.add(clip)
                clip.samples[:] = 7  # the decoder's next clip
            np.testing.assert_array_equal(batches.finish().wait(), expected)
        assert not machine.registered
        assert not shared.lends_slots


def test_memory_that_cannot_be_pinned_is_staged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shared, device = _Memory(), torch.device("cuda", 0)
    with simulated_cuda.simulated() as machine:
        machine.refuses_to_register = True
        with pinned(shared, device):
            assert not shared.lends_slots
    assert "cannot be pinned (CUDA error 2)" in caplog.text
    with pinned(shared, torch.device("cpu")):
        assert not shared.lends_slots
    shared.memory.close()  # nobody looks into it any more


@pytest.mark.parametrize(("devices", "typed", "expected"), [(["cpu"], 0, 0), (["cuda:0"], 0, -1), (["cuda:0"], 3, 3)])
def test_a_core_is_left_to_who_feeds_a_gpu(devices: list[str], typed: int, expected: int) -> None:
    cores = available_cores()
    typed = cores + typed
    assert decoders_beside(devices, typed) == max(1, cores + expected)

"""The simulated CUDA device keeps CUDA's rules: what would fail or wait on a GPU fails or is counted here."""

import numpy as np
import pytest
import torch

from tests.simulated_cuda import simulated

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


def test_numbers_are_torch_s_and_places_cuda_s() -> None:
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    with simulated():
        there = numbers.to("cuda:1")
        assert (there.device, there.is_cuda, there.shape, there.dtype) == (SECOND, True, (3, 4), torch.float32)
        assert (there @ there.t())[1:].device == SECOND
        assert torch.zeros(2, device="cuda").device == FIRST
        with torch.cuda.device(1):
            assert torch.zeros(2, device="cuda").device == torch.empty(1, device=there.device).device == SECOND
        there[0] = 7
        there.add_(1)
        assert torch.equal(there.cpu(), torch.tensor([[8.0] * 4, [5, 6, 7, 8], [9, 10, 11, 12]]))
    assert torch.equal(numbers, torch.arange(12, dtype=torch.float32).reshape(3, 4))  # a copy was moved, not the thing


def test_what_a_gpu_refuses() -> None:
    with simulated():
        here, there, host = torch.ones(3, device=FIRST), torch.ones(3, device=SECOND), torch.ones(3)
        for other in (there, host):
            with pytest.raises(RuntimeError, match="on the same device"):
                here + other
            with pytest.raises(RuntimeError, match="on the same device"):
                torch.add(here, 1.0, out=other)
        with pytest.raises(RuntimeError, match="on the same device"):
            host[torch.tensor([0, 1], device=FIRST)] = there[:2]
        for refused in (here.numpy, lambda: np.asarray(here)):
            with pytest.raises(TypeError, match="numpy"):
                refused()
        with pytest.raises(AssertionError, match="invalid device"):
            torch.empty(1, device="cuda:2")
        assert (here + torch.tensor(2.0)).tolist() == [3, 3, 3]  # a single number may come from the host


def test_waits_are_counted() -> None:
    with simulated() as machine:
        here = torch.ones(4, device=FIRST)
        here.mul_(2).sum()
        here[2:].copy_(here[:2])
        here.repeat_interleave(torch.ones(4, dtype=torch.int64, device=FIRST), output_size=4)
        assert not machine.syncs
        bool(here.any())
        here.nonzero()
        here[here > 1]
        here.cpu()
        torch.tensor([1, 2], device=FIRST)
        torch.ones(3).to(FIRST)
    assert sorted(name for name, _ in machine.syncs) == [
        "__bool__",
        "__getitem__ by a mask or from the host",
        "copy to the device",
        "copy to the host",
        "nonzero",
        "tensor to the device",
    ]


def test_only_a_whole_pinned_copy_does_not_wait() -> None:
    with simulated() as machine:
        pinned = torch.ones(4, 6).pin_memory()
        assert pinned.is_pinned()
        pinned.to(FIRST, non_blocking=True)
        torch.empty(2, 6, device=FIRST).copy_(pinned[:2], non_blocking=True)
        torch.empty(3, pin_memory=True).to(FIRST, non_blocking=True)
        assert not machine.syncs
        pinned[:, :5].to(FIRST, non_blocking=True)
        torch.ones(3).to(FIRST, non_blocking=True)
        pinned.to(FIRST)
    assert sum(machine.syncs.values()) == 3
    assert [(contiguous, is_pinned) for _, contiguous, is_pinned in machine.copies] == [
        *[(True, True)] * 3,
        *[(False, True), (True, False), (True, True)],
    ]


def test_memory_is_counted_and_ends() -> None:
    with simulated(memory_bytes=1000) as machine:
        here = torch.empty(100, dtype=torch.float32, device=SECOND)
        view = here[10:].view(9, 10)
        assert torch.cuda.mem_get_info(SECOND) == (600, 1000)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            here.double()
        del here
        assert machine.used_bytes == [0, 400]
        del view
        assert machine.used_bytes == [0, 0]
        assert machine.peak_bytes == [0, 400]


def test_an_event_belongs_to_the_current_device() -> None:
    with simulated():
        torch.ones(3, device=SECOND)
        for take in (torch.cuda.Event().record, torch.cuda.current_stream):
            with pytest.raises(AssertionError, match="belongs to cuda:0, the work is on cuda:1"):
                take()
            with torch.cuda.device(SECOND):
                take()

"""Threads with one core each: order, errors, and torch's number of threads inside and afterwards."""

import threading

import pytest
import torch

from balance.runtime.threads import Cores


def test_items_run_side_by_side_on_one_core_each() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = threading.Barrier(3, timeout=30)  # passes only if three run at a time
        with Cores() as cores:
            assert torch.get_num_threads() == 1

            def work(item: int) -> tuple[int, int]:
                together.wait()
                return item, torch.get_num_threads()

            assert cores.map(work, range(6)) == [(i, 1) for i in range(6)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_out_and_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), Cores() as cores:
        cores.map(lambda item: 1 // item, [2, 1, 0, 3])
    assert torch.get_num_threads() == before

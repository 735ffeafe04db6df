"""The counts of `benchmarks/counts.py` beside torch's own counter and beside a search on the simulated device."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from balance.encoders.checkpoint import read_checkpoint
from balance.encoders.precision import Precision
from balance.encoders.vipant import AudioTower
from balance.search import sizes, streaming
from balance.search.config import Backend, SearchConfig
from balance.search.top_k import ArrayVectors, search
from benchmarks import counts
from tests.paths import VIPANT
from tests.search_reference import crowded
from tests.simulated_cuda import simulated


def test_the_forward_pass_is_what_torch_counts() -> None:
    checkpoint = read_checkpoint(VIPANT / "clip_head.pth")
    tower, front_end = AudioTower(checkpoint, Precision.float32), checkpoint.front_end
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # the fused one it does not count
        tower(torch.zeros(3, front_end.max_frames, front_end.num_mel_bins))
    steps = counts.embedding_steps(checkpoint.config, front_end, 44_100, "float32")
    assert 3 * steps[-1].flop == counter.get_total_flops()


@pytest.mark.parametrize(("num_pool", "k"), [(4000, 30), (9000, 5)])
def test_candidates_and_waits_are_those_of_a_search(num_pool: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank that the guess takes gives the candidates; nothing waits that is not counted."""
    monkeypatch.setattr(sizes, "SAMPLE_ROWS_GPU", 1024)
    monkeypatch.setattr(sizes, "BLOCK_PAIRS_GPU", 20 * 1024)
    ranks = []
    original = streaming.candidates.ranked
    monkeypatch.setattr(
        streaming.candidates, "ranked", lambda scores, rank: ranks.append(rank) or original(scores, rank)
    )
    vectors = crowded(20 + num_pool, 16, 0.5, seed=3)
    with simulated() as machine:
        search(
            vectors[:20],
            ArrayVectors(vectors[20:]),
            k,
            SearchConfig(backend=Backend.torch),
            device=torch.device("cuda", 0),
        )
    per_seed = counts.candidates_per_seed(num_pool, 1024, k)
    np.testing.assert_allclose(per_seed, ranks[0] * num_pool / 1024, rtol=0.1)
    waits = sum(step.waits for step in counts.search_steps(20, num_pool, 16, k))
    in_blocks = sum(
        count for (_, line), count in machine.syncs.items() if re.match("search/(cand|cosine|rescore)", line)
    )
    assert 0 < in_blocks <= waits + 5

"""Weights and the distributed sampler: against the published formula and the statistics of what is drawn."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from balance.errors import UserError
from balance.training.dataset import load_index
from balance.training.sampler import DistributedWeightedSampler, sample_weights
from tests import four_clips
from tests.four_clips import CLIPS


@pytest.fixture
def root(tmp_path) -> Path:
    return four_clips.write(tmp_path / "data")


def test_weights_are_the_published_formula(root):
    weights = sample_weights(load_index(root / "src_X.csv"))
    counts = Counter(label for *_, labels in CLIPS for label in labels)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [sum(1000 / (counts[label] + 1) for label in labels) for *_, labels in CLIPS]


def test_draws_follow_the_weights():
    """Chi-square of 200,000 draws at level 1e-4 (the seed is fixed); weights of 0 are never drawn."""
    weights = np.array([0.0, 1.0, 5.0, 0.5, 0.0, 20.0, 3.0, 0.0])
    draws = np.array(list(DistributedWeightedSampler(weights, 200_000, seed=3)))
    counts = np.bincount(draws, minlength=8)
    assert not counts[weights == 0].any()
    used = weights > 0
    expected = weights[used] / weights.sum() * len(draws)
    assert scipy.stats.chisquare(counts[used], expected).pvalue > 1e-4
    # The test can fail: the same counts against equal weights.
    assert scipy.stats.chisquare(counts[used]).pvalue < 1e-10


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_share_one_draw(num_ranks):
    weights = np.random.default_rng(0).uniform(size=50)
    whole = DistributedWeightedSampler(weights, 100, num_replicas=1, rank=0)
    ranks = [DistributedWeightedSampler(weights, 100, num_replicas=num_ranks, rank=r) for r in range(num_ranks)]
    size = math.ceil(100 / num_ranks)
    for epoch in range(3):
        for sampler in (whole, *ranks):
            sampler.set_epoch(epoch)
        slices = [list(sampler) for sampler in ranks]
        assert [len(s) for s in slices] == [len(sampler) for sampler in ranks] == [size] * num_ranks
        joined = [row for step in zip(*slices, strict=True) for row in step]
        assert joined[:100] == list(whole)
        assert list(ranks[0]) == slices[0]
    assert slices[0] != list(DistributedWeightedSampler(weights, 100, num_replicas=num_ranks, rank=0))


def test_torch_distributed_gives_the_ranks(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sampler = DistributedWeightedSampler([1.0, 2.0], 10)
        assert (sampler.rank, sampler.num_replicas) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("weights", "more", "words"),
    [
        ([], {}, "finite numbers"),
        ([[1.0]], {}, "finite numbers"),
        ([1.0, math.nan], {}, "finite numbers"),
        ([1.0, -1.0], {}, "finite numbers"),
        ([0.0, 0.0], {}, "all 2 weights are 0"),
        ([1.0], {"num_replicas": 2, "rank": 2}, r"rank=2: must be 0 … 1 of 2 ranks"),
        ([1.0], {"num_samples": 0}, "at least 1"),
        ([1.0], {"num_replicas": 0}, "num_replicas=0: at least 1"),
    ],
)
def test_sampler_mistakes(weights, more, words):
    with pytest.raises(UserError, match=words):
        DistributedWeightedSampler(weights, **more)

"""The union of the neighbours against plain Python: loops over pairs, slices, and all draws counted one by one."""

import itertools

import numpy as np
import pytest

from balance.records import Neighbours
from balance.stats import union


@pytest.fixture(params=[0, 1, 2])
def neighbours(request):
    rng = np.random.default_rng(request.param)
    rows = np.stack([rng.permutation(40)[:7] for _ in range(25)]).astype(np.int32)
    similarities = -np.sort(-rng.integers(-3, 4, (25, 7)).astype(np.float32) / 4, axis=1)
    return Neighbours(np.sort(rng.permutation(30)[:25]).astype(np.int64), rows, similarities)


def test_union_against_loops(neighbours):
    best: dict[int, list] = {}
    for i in range(25):
        for r in range(7):
            key = (-float(neighbours.similarities[i, r]), r + 1, i)
            best.setdefault(int(neighbours.pool_rows[i, r]), []).append(key)
    found = union.union_of(neighbours)
    assert found.pool_rows.tolist() == sorted(best)
    assert found.num_seeds.tolist() == [len(best[r]) for r in sorted(best)]
    picked = zip((-found.best_similarity).tolist(), found.best_rank.tolist(), found.best_seed.tolist(), strict=True)
    assert list(picked) == [min(best[r]) for r in sorted(best)]


def test_union_sizes_are_those_of_the_slices(neighbours):
    sizes = union.union_sizes(neighbours)
    assert sizes.tolist() == [len(union.union_of(neighbours.top(k))) for k in range(1, 8)]


def test_uniform_share_against_all_draws():
    draws = list(itertools.product(itertools.combinations(range(4), 2), repeat=3))
    expected = np.mean([len({x for d in draw for x in d}) / 4 for draw in draws])
    assert union.uniform_share(3, 4, 2) == pytest.approx(expected)
    assert union.uniform_share(3, 0, 2) is None

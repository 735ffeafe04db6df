"""The evidence against plain Python: loops over pairs, and all draws counted one by one for the baselines."""

import itertools
import math

import numpy as np
import pytest

from balance.records import Labels, Neighbours, common_names
from balance.stats import labels as evidence


def sets(rng, n, names, low=0, high=3):
    return [tuple(rng.permutation(names)[: rng.integers(low, high + 1)]) for _ in range(n)]


@pytest.fixture(params=[0, 1, 2])
def case(request):
    rng = np.random.default_rng(request.param)
    names = [f"/m/{i:02d}" for i in range(9)]
    seeds, pool = sets(rng, 30, names), sets(rng, 40, names)
    rows = np.stack([rng.permutation(40)[:7] for _ in range(25)]).astype(np.int32)
    similarities = -np.sort(-rng.integers(-3, 4, (25, 7)).astype(np.float32) / 4, axis=1)
    seed_rows = np.sort(rng.permutation(30)[:25]).astype(np.int64)
    a, b = Labels.of(seeds), Labels.of(pool)
    vocabulary = common_names(a, b)
    return seeds, pool, a.recode(vocabulary), b.recode(vocabulary), Neighbours(seed_rows, rows, similarities)


def test_agreement_and_recall_against_loops(case, monkeypatch):
    monkeypatch.setattr(evidence, "PAIRS_PER_CHUNK", 29)  # several chunks
    seeds, pool, a, b, neighbours = case
    agreement, recall = [], []
    for i, s in enumerate(neighbours.seed_rows):
        mine = set(seeds[s])
        if not mine:
            continue
        theirs = [set(pool[r]) for r in neighbours.pool_rows[i]]
        agreement += [len(mine & t) / len(mine) for t in theirs]
        recall.append(len(mine & set().union(*theirs)) / len(mine))
    assert evidence.label_agreement(a, b, neighbours) == pytest.approx(np.mean(agreement), abs=1e-14)
    assert evidence.label_recall(a, b, neighbours) == pytest.approx(np.mean(recall), abs=1e-14)


def test_hits_by_rank_against_loops(case, monkeypatch):
    monkeypatch.setattr(evidence, "PAIRS_PER_CHUNK", 29)
    seeds, pool, a, b, neighbours = case
    expected = np.zeros((7, len(a.names)), dtype=int)
    for i, s in enumerate(neighbours.seed_rows):
        for r, row in enumerate(neighbours.pool_rows[i]):
            for name in set(seeds[s]) & set(pool[row]):
                expected[r, a.names.index(name)] += 1
    np.testing.assert_array_equal(evidence.hits_by_rank(a, b, neighbours), expected)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_random_baselines_are_the_mean_of_all_draws(k):
    pool = [("a",), ("a", "b"), ("c",), (), ("a", "c"), ("b",)]
    seeds = [("a",), ("a", "b", "d"), (), ("c", "b")]
    a, b = Labels.of(seeds), Labels.of(pool)
    names = common_names(a, b)
    a, b = a.recode(names), b.recode(names)
    agreement, recall = [], []
    for mine in map(set, filter(None, seeds)):
        for draw in itertools.combinations(pool, k):
            agreement.append(np.mean([len(mine & set(t)) / len(mine) for t in draw]))
            recall.append(len(mine & {x for t in draw for x in t}) / len(mine))
    assert evidence.label_agreement_random(a, b) == pytest.approx(np.mean(agreement), abs=1e-13)
    assert evidence.label_recall_random(a, b, k) == pytest.approx(np.mean(recall), abs=1e-12)


def test_recall_random_at_audioset_size_against_exact_integers():
    total, count, k = 2_000_000, 59, 512
    labels = Labels(("x",), np.minimum(np.arange(total + 1), count), np.zeros(count, dtype=np.int32))
    exact = 1 - math.prod((total - count - i) / (total - i) for i in range(k))
    got = evidence.label_recall_random(Labels.of([("x",)]), labels, k)
    assert got == pytest.approx(exact, rel=1e-6)


def test_nothing_to_average_is_none():
    empty = Labels.of([(), ()])
    neighbours = Neighbours(np.array([0, 1]), np.array([[0], [1]], dtype=np.int32), np.ones((2, 1), dtype=np.float32))
    assert evidence.label_agreement(empty, empty, neighbours) is None
    assert evidence.label_recall(empty, empty, neighbours) is None
    assert evidence.label_agreement_random(empty, empty) is None
    assert evidence.label_recall_random(empty, empty, 1) is None
    assert evidence.label_entropy(empty, 5) is None
    assert evidence.label_entropy(Labels.of([("a",)]), 1) is None


def test_entropy():
    assert evidence.label_entropy(Labels.of([("a", "b"), ("b", "a"), ("c",), ("c",)]), 3) == pytest.approx(1.0)
    assert evidence.label_entropy(Labels.of([("a", "b"), ("b",), ("b",)]), 4) == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(4)
    )

"""The training sets against sets built clip by clip."""

from collections import Counter

import numpy as np
import pytest

from balance.probe import training_sets
from balance.records import Labels


def world(num_seeds=40, num_pool=200, k=6, seed=0):
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(num_pool // 2)[:k] for _ in range(num_seeds)]).astype(np.int32)
    return chosen, rng.integers(0, 5, num_seeds)


def random_labels(n, seed=0, num_labels=9):
    rng = np.random.default_rng(seed)
    names = [f"/m/{i}" for i in range(num_labels)]
    return Labels.of([list(rng.permutation(names)[: rng.integers(0, 4)]) for _ in range(n)])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_neighbours_leave_with_a_fold_unless_a_seed_of_another_fold_chose_them_too(k):
    chosen, folds = world()
    arm = training_sets.neighbours(chosen, folds, k)
    choosers = {}
    for seed in range(len(chosen)):
        for row in chosen[seed, :k]:
            choosers.setdefault(int(row), set()).add(int(folds[seed]))
    assert arm.rows.tolist() == sorted(choosers)
    want = [next(iter(choosers[r])) if len(choosers[r]) == 1 else -1 for r in arm.rows.tolist()]
    assert arm.excluded_fold.tolist() == want
    assert len(set(want)) > 2  # both kinds occur


def test_a_missing_neighbour_and_a_row_that_nobody_chose():
    chosen = np.array([[3, -1], [5, 3]], dtype=np.int32)
    folds = np.array([0, 1])
    assert training_sets.neighbours(chosen, folds, 2).rows.tolist() == [3, 5]
    assert training_sets.excluded_folds(chosen, folds, np.array([3, 5, 9])).tolist() == [-1, 1, -1]


def test_random_draws_match_in_size_also_in_every_fold_and_are_nested():
    chosen, folds = world()
    small, large = (training_sets.neighbours(chosen, folds, k) for k in (2, 6))
    draws_small, draws_large = (list(training_sets.random_draws(a, 200, 5, seed=7)) for a in (small, large))
    for like, draws in ((small, draws_small), (large, draws_large)):
        for draw in draws:
            assert len(np.unique(draw.rows)) == len(like.rows)
            assert (np.diff(draw.rows) > 0).all()
            assert np.bincount(draw.excluded_fold + 1).tolist() == np.bincount(like.excluded_fold + 1).tolist()
    assert len({tuple(d.rows.tolist()) for d in draws_small}) == 5
    for a, b in zip(draws_small, draws_large, strict=True):
        assert set(a.rows.tolist()) < set(b.rows.tolist())
    again = list(training_sets.random_draws(small, 200, 5, seed=7))
    assert all(
        (a.rows == b.rows).all() and (a.excluded_fold == b.excluded_fold).all()
        for a, b in zip(draws_small, again, strict=True)
    )


def test_random_draws_are_uniform_over_the_pool():
    chosen, folds = world()
    like = training_sets.neighbours(chosen, folds, 3)
    counts = np.zeros(200)
    for seed in range(200):
        for draw in training_sets.random_draws(like, 200, 1, seed=seed):
            counts[draw.rows] += 1
    share = len(like.rows) / 200
    z = (counts - 200 * share) / np.sqrt(200 * share * (1 - share))
    assert np.abs(z).max() < 4.5
    assert 0.7 < z.std() < 1.3


def test_stratified_draws_have_the_same_label_sets():
    chosen, folds = world()
    labels = random_labels(200)
    like = training_sets.neighbours(chosen, folds, 2)

    def sets(rows):
        return sorted(tuple(sorted(labels[int(r)])) for r in rows)

    draws = list(training_sets.stratified_draws(like, labels, 3, seed=1))
    assert all(sets(d.rows) == sets(like.rows) for d in draws)
    assert all(np.bincount(d.excluded_fold + 1).tolist() == np.bincount(like.excluded_fold + 1).tolist() for d in draws)
    assert len({tuple(d.rows.tolist()) for d in draws}) == 3


def test_stratified_draws_by_the_definition():
    """A set's clips in the order of one permutation, sets in the order in which the pool shows them."""
    chosen, folds = world()
    labels = random_labels(200)
    like = training_sets.neighbours(chosen, folds, 2)
    sets = [tuple(sorted(labels[row])) for row in range(200)]
    numbers = {one: number for number, one in enumerate(dict.fromkeys(sets))}
    wanted = Counter(sets[row] for row in like.rows.tolist())
    for draw, arm in enumerate(training_sets.stratified_draws(like, labels, 2, seed=1)):
        rng = np.random.default_rng([1, 3, draw, len(like.rows)])
        by_set = {one: [] for one in sorted(numbers, key=numbers.get)}
        for row in rng.permutation(200).tolist():
            by_set[sets[row]].append(row)
        drawn = [row for one, rows in by_set.items() for row in rows[: wanted[one]]]
        leaves = dict(zip(drawn, rng.permutation(like.excluded_fold).tolist(), strict=True))
        assert arm.rows.tolist() == sorted(drawn)
        assert arm.excluded_fold.tolist() == [leaves[row] for row in sorted(drawn)]


def test_folds_are_even_keep_videos_together_and_spread_rare_labels():
    labels = random_labels(100, num_labels=6)
    groups = np.arange(100)
    groups[50:60] = groups[40:50]
    groups = np.unique(groups, return_inverse=True)[1]
    folds = training_sets.fold_seeds(labels, groups, 5, np.random.default_rng(0))
    assert (folds[50:60] == folds[40:50]).all()
    per_group = np.bincount(folds[np.unique(groups, return_index=True)[1]], minlength=5)
    assert per_group.max() - per_group.min() <= 1
    rare = Labels.of([["/m/rare", "/m/z"]] * 5 + [["/m/z"]] * 45)
    spread = training_sets.fold_seeds(rare, np.arange(50), 5, np.random.default_rng(1))
    assert sorted(spread[:5].tolist()) == [0, 1, 2, 3, 4]


def test_whole_pool_and_seeds_alone_hold_nothing_out():
    weighted, plain = training_sets.whole_pool(30, weighted=True), training_sets.whole_pool(30, weighted=False)
    assert weighted.rows.tolist() == plain.rows.tolist() == list(range(30))
    assert (weighted.excluded_fold == -1).all()
    assert (weighted.weighted, plain.weighted) == (True, False)
    assert len(training_sets.seeds_alone().rows) == 0
    assert weighted.title == "pool, weighted"

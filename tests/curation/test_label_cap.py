"""The label cap: the figures on AudioSet's evaluation list, all subsets of small cases, and its invariants."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balance.curation import label_cap
from balance.records import Labels
from balance.stats.labels import entropy_of
from tests.paths import SHARED

EVAL_LIST = SHARED / "data" / "audioset" / "eval_segments.csv"
NAMES = tuple("abcdef")
label_sets = st.lists(st.lists(st.sampled_from(NAMES), max_size=4, unique=True), max_size=10)
bigger = st.lists(st.lists(st.sampled_from(NAMES), max_size=5, unique=True), min_size=20, max_size=80)
seed_counts = st.lists(st.integers(0, 4), min_size=6, max_size=6)
exempt_labels = st.sets(st.sampled_from(NAMES), max_size=2)


def run(sets, per_label, seeds=(0,) * 6, exempt=()):
    labels = Labels.of(sets).recode(NAMES)
    mask = np.array([name in exempt for name in NAMES])
    return labels, mask, label_cap.cap(labels, np.array(seeds, dtype=np.int64), per_label, mask)


@pytest.mark.skipif(not EVAL_LIST.exists(), reason="the AudioSet lists are not beside this repository")
@pytest.mark.parametrize(("n", "clips", "entropy"), [(100, 9_100, 0.945), (200, 10_585, 0.937)])
def test_audioset_eval_list(n, clips, entropy):
    lines = EVAL_LIST.read_text().splitlines()
    labels = Labels.of(x.split(", ", 3)[3].strip('"').split(",") for x in lines if not x.startswith("#"))
    result = label_cap.cap(labels, np.zeros(527, dtype=np.int64), n, np.zeros(527, dtype=bool))
    counts = labels.take(np.flatnonzero(result.kept)).counts()
    assert clips <= result.kept.sum() <= result.bound
    assert result.bound == {100: 9_110, 200: 10_594}[n]
    assert entropy_of(counts, 527) >= entropy
    assert counts.min() > 0
    assert result.num_empty == 0
    assert counts.max() <= n


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sets=label_sets, per_label=st.integers(1, 3), seeds=seed_counts, exempt=exempt_labels)
def test_all_subsets_of_small_cases(sets, per_label, seeds, exempt):
    labels, mask, result = run(sets, per_label, seeds, exempt)
    matrix = np.zeros((len(sets), 6), dtype=int)
    for i, names in enumerate(sets):
        matrix[i, [NAMES.index(x) for x in names]] = 1
    limit = np.where(mask, 99, np.maximum(per_label, seeds))
    best = (0, 0)
    bound = 0
    for chosen in itertools.product([0, 1], repeat=len(sets)):
        after = np.array(seeds) + np.array(chosen, dtype=int) @ matrix
        if (after <= np.maximum(limit, seeds)).all():
            best = max(best, (int((after > 0).sum()), sum(chosen)))
            bound = max(bound, sum(chosen))
    after = np.array(seeds) + labels.take(np.flatnonzero(result.kept)).counts()
    assert (after <= limit).all()
    assert (int((after > 0).sum()), int(result.kept.sum())) == best
    assert result.bound >= bound
    assert result.num_empty == int(((after == 0) & (matrix.sum(axis=0) > 0)).sum())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sets=bigger, per_label=st.integers(1, 12), seeds=seed_counts, exempt=exempt_labels, columns=st.integers(2, 60))
def test_invariants_when_columns_are_generated(sets, per_label, seeds, exempt, columns):
    whole = run(sets, per_label, seeds, exempt)[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_cap, "MAX_COLUMNS", columns)
        patch.setattr(label_cap, "MAX_ROUNDS", 200)
        labels, mask, result = run(sets, per_label, seeds, exempt)
    after = np.array(seeds) + labels.take(np.flatnonzero(result.kept)).counts()
    limit = np.where(mask, 999, np.maximum(per_label, seeds))
    assert (after <= limit).all()
    assert result.bound == whole.bound  # generated columns reach the same relaxation
    assert result.kept.sum() <= result.bound
    for i in np.flatnonzero(~result.kept):  # nothing that would fit is left out
        assert (after[labels.take(np.array([i])).codes] >= limit[labels.take(np.array([i])).codes]).any()
    for i, names in enumerate(sets):  # of equal label sets the first are taken
        if result.kept[i]:
            assert all(result.kept[j] for j in range(i) if set(sets[j]) == set(names))


def test_twice_the_same():
    rng = np.random.default_rng(0)
    sets = [rng.permutation(list(NAMES))[: rng.integers(1, 4)].tolist() for _ in range(500)]
    first, second = (run(sets, 40)[2] for _ in range(2))
    np.testing.assert_array_equal(first.kept, second.kept)


def test_clips_without_labels_and_nothing_at_all():
    assert run([[], ["a"], []], 1, seeds=(1, 0, 0, 0, 0, 0))[2].kept.tolist() == [True, False, True]
    assert run([], 1)[2].kept.tolist() == []


def test_label_sets_ignore_the_order_of_labels():
    labels = Labels.of([["/m/a", "/m/b"], ["/m/b", "/m/a"], [], ["/m/a"], []])
    found = label_cap.label_sets(labels)
    assert found.of.tolist() == [2, 2, 0, 1, 0]
    assert found.size.tolist() == [2, 1, 2]

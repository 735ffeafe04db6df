"""The rivals against brute force on small cases, and what each of them promises."""

import itertools

import numpy as np
import pytest
import torch

from balance.curation import rivals
from balance.records import Labels
from balance.search.top_k import ArrayVectors


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: threads that wait for each other on a busy machine cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pool(num=600, dim=8, seed=0):
    """Three dense clouds of very different size and a thin rest; Zipf labels, one clip in ten without any."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, dim)) * 3
    of = rng.choice(4, num, p=[0.7, 0.2, 0.07, 0.03])
    vectors = (centres[of] + rng.standard_normal((num, dim)) * 0.3).astype(np.float32)
    share = 1 / np.arange(1, 13)
    sets = [
        sorted({f"/m/{x:02d}" for x in rng.choice(12, 1 + rng.integers(3), p=share / share.sum())}) if i % 10 else []
        for i in range(num)
    ]
    return rivals.Pool(ArrayVectors(vectors), Labels.of(sets), 5)


@pytest.mark.parametrize("rule", list(rivals.RULES))
def test_every_rule_gives_exactly_so_many_clips_and_twice_the_same(rule):
    for size in (1, 37, 300, 600):
        first, again = (rivals.RULES[rule](pool(), size, np.random.default_rng(3)) for _ in range(2))
        assert first.tolist() == again.tolist()
        assert len(first) == len(np.unique(first)) == size
        assert (np.diff(first) > 0).all()
        assert first.min() >= 0
        assert first.max() < 600


def even_share(sizes, size):
    """By brute force: one more for the cluster that has least so far and has more, the first of those."""
    out = np.zeros(len(sizes), dtype=int)
    for _ in range(min(size, sum(sizes))):
        open_ones = [i for i in range(len(sizes)) if out[i] < sizes[i]]
        out[min(open_ones, key=lambda i: (out[i], i))] += 1
    return out


def test_shares_are_as_even_as_the_sizes_allow():
    for sizes in itertools.product((0, 1, 3, 7), repeat=4):
        for size in range(sum(sizes) + 2):
            got = rivals.share_out(np.array(sizes), size)
            assert got.tolist() == even_share(sizes, size).tolist(), (sizes, size)


def test_hierarchical_kmeans_shares_out_over_the_clusters_of_clusters():
    """Against the same recursion written down clip by clip, on the levels that were found."""
    data = pool()
    levels = data.levels
    assert len(levels) >= 2
    for size in (20, 150, 400):
        got = rivals.hierarchical_kmeans(data, size, np.random.default_rng(1))
        top_of = levels[0].of
        for level in levels[1:]:
            top_of = level.of[top_of]
        num_top = len(levels[-1].centres)
        want_top = even_share(np.bincount(top_of, minlength=num_top).tolist(), size)
        assert np.bincount(top_of[got], minlength=num_top).tolist() == want_top.tolist()
        if len(levels) == 2:
            for top in range(num_top):
                inside = np.flatnonzero(levels[1].of == top)
                sizes = [int((levels[0].of == c).sum()) for c in inside]
                have = [int((levels[0].of[got] == c).sum()) for c in inside]
                assert have == even_share(sizes, int(want_top[top])).tolist()


def test_clusters_are_the_nearest_centres():
    data = pool()
    for rows, level in ((data.unit, data.levels[0]), (data.levels[0].centres, data.levels[1])):
        cosine = (rows @ level.centres.T).numpy()
        assert (cosine.argmax(axis=1) == level.of).all()
        assert np.allclose(level.similarity, cosine.max(axis=1), atol=1e-6)
        assert sum(len(x) for x in level.members()) == len(rows)


def test_class_balance_is_what_taking_the_rarest_label_next_gives():
    """Against brute force: no clip that is left has a label with fewer clips than the rarest that could be served."""
    data = pool()
    chosen = rivals.class_balanced(data, 200, np.random.default_rng(0))
    counts, all_counts = data.labels.take(chosen).counts(), data.labels.counts()
    served = counts < all_counts
    uniform = data.labels.take(np.random.default_rng(1).permutation(600)[:200]).counts()
    assert counts[~served].max(initial=0) <= counts[served].max()
    assert counts[served].min() >= 2 * uniform[served].min()
    assert not (data.labels.take(chosen).sizes() == 0).any()
    many = rivals.class_balanced(data, 600, np.random.default_rng(0))
    assert len(many) == 600


def test_metaclip_keeps_rare_labels_and_thins_frequent_ones():
    data = pool()
    chosen = rivals.metaclip(data, 200, np.random.default_rng(0))
    kept = data.labels.take(chosen).counts() / data.labels.counts()
    order = np.argsort(data.labels.counts())
    assert kept[order[:3]].min() > 0.7
    assert kept[order[-1]] < 0.5


def test_k_center_is_the_greedy_cover(monkeypatch):
    data = pool(60)
    unit = data.unit.numpy().astype(np.float64)
    first = int(torch.from_numpy(np.random.default_rng(2).integers(0, 60, 1))[0])
    want = [first]
    while len(want) < 12:
        nearest = (unit @ unit[want].T).max(axis=1)
        nearest[want] = np.inf
        want.append(int(nearest.argmin()))
    assert rivals.k_center(data, 12, np.random.default_rng(2)).tolist() == sorted(want)
    monkeypatch.setattr(rivals, "ROUNDS", 4)
    assert len(np.unique(rivals.k_center(data, 30, np.random.default_rng(2)))) == 30


def test_easy_and_hard_prototypes_are_the_two_ends_of_one_order():
    data = pool()
    similarity = data.levels[0].similarity
    easy, hard = (
        rule(data, 100, np.random.default_rng(0)) for rule in (rivals.easy_prototypes, rivals.hard_prototypes)
    )
    assert similarity[easy].min() >= np.sort(similarity)[-100]
    assert similarity[hard].max() <= np.sort(similarity)[99]

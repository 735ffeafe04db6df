"""The curation steps against plain Python on small sets: what was planted is found, and nothing else is removed."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balance.curation import baselines, decontaminate
from balance.curation.balance import metaclip_chances
from balance.curation.config import AugmentConfig, Balance, Copies, Leaks
from balance.curation.curate import CopyFigures, curate
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Facts, Index, Labels, Neighbours, Split
from balance.results import curation_files
from balance.search.top_k import ArrayVectors
from balance.stats.union import union_of

NAMES = [f"/m/{i:02d}" for i in range(8)]


def split(ids, labels, sounds=None, embedded=None, silent=()):
    """sounds: a number per clip, equal where the samples are."""
    rows = np.arange(len(ids)) if embedded is None else np.array(embedded)
    sounds = np.arange(len(ids)) if sounds is None else np.array(sounds)
    sha1 = np.zeros((len(rows), 20), dtype=np.uint8)
    sha1[:, :8] = sounds[rows].astype("<i8")[:, None].view(np.uint8)
    db = np.where(np.isin(rows, silent), -np.inf, -20).astype(np.float32)
    facts = Facts(np.full(len(rows), 16000, np.int32), np.full(len(rows), 160000), db, sha1)
    lines = pa.array([json.dumps({"id": x}).encode() for x in ids], pa.large_binary())
    index = Index(file="x.csv", ids=pa.array(ids), paths=pa.array(ids), labels=Labels.of(labels), lines=lines)
    return Split(index, rows.astype(np.int64), ArrayVectors(np.ones((len(rows), 4), np.float32)), facts)


class Case:
    """20 seeds, 120 pool clips of which 5 have no embedding, K = 9, with hubs."""

    def __init__(self, number, sounds=None, k=9):
        rng = np.random.default_rng(number)
        label_sets = [rng.permutation(NAMES)[: rng.integers(0, 4)].tolist() for _ in range(140)]
        embedded = np.sort(rng.permutation(120)[:115])
        sounds = np.arange(140) if sounds is None else sounds
        self.seeds = split([f"s{i}" for i in range(20)], label_sets[:20], sounds[:20])
        self.pool = split([f"p{i}" for i in range(120)], label_sets[20:], sounds[20:], embedded)
        weights = rng.random(len(embedded)) ** 3
        rows = np.stack([rng.choice(embedded, k, replace=False, p=weights / weights.sum()) for _ in range(20)])
        similarities = -np.sort(-rng.random((20, k)), axis=1).astype(np.float32)
        self.neighbours = Neighbours(np.arange(20), rows.astype(np.int32), similarities)
        self.lowest = {}
        for row in self.neighbours.pool_rows.tolist():
            for rank, clip in enumerate(row, start=1):
                self.lowest[clip] = min(rank, self.lowest.get(clip, 99))
        self.order = sorted(self.lowest, key=lambda clip: (self.lowest[clip], clip))

    def curate(self, acoustic=None, **config):
        return curate(
            AugmentConfig(**config),
            rng_seed=1213,
            seeds=self.seeds,
            pool=self.pool,
            eligible=self.pool.embedded,
            neighbours=self.neighbours,
            acoustic=acoustic,
        )

    def labels(self, clip):
        return set(self.pool.index.labels[clip])


def accounts(case, curated):
    """Every clip of the union is kept or removed, once."""
    rows = curated.union.pool_rows.tolist() + curated.removals.rows.tolist()
    assert sorted(rows) == sorted(case.lowest)


def test_all_off_keeps_the_union():
    case = Case(0)
    curated = case.curate()
    assert curated.union.pool_rows.tolist() == sorted(case.lowest)
    assert len(curated.removals) == 0
    assert curated.notes == ()


class Planted:
    """Finds what it was told to find."""

    def __init__(self, *pairs):
        self._columns = tuple(
            np.array(column, dtype=kind)
            for column, kind in zip(zip(*pairs, strict=True), (int, int, float), strict=True)
        )

    def between(self, queries, base, base_rows):
        assert set(self._columns[1].tolist()) <= set(base_rows.tolist())
        return self._columns

    def within(self, seeds, pool, pool_rows):
        return self._columns


def test_leaks_by_id_sound_and_correlation():
    eval = split(["Yabcdefghijk", "e1", "e2", "e3"], [[]] * 4, [10, 11, 11, 12], silent=(3,))
    pool = split(
        ["p0", "abcdefghijk_1", "p2", "p3", "p4", "p5", "p6"], [[]] * 7, [11, 11, 0, 12, 10, 11, 7], [1, 2, 3, 4, 5, 6]
    )

    def leaks(level, acoustic=None):
        removed = decontaminate.decontaminate(level, pool, eval, Ids.youtube, acoustic)
        columns = removed.rule.to_pylist(), removed.because_of.to_pylist(), removed.value.to_pylist()
        return list(zip(removed.rows.tolist(), *columns, strict=True))

    by_id = [(1, "leak_id", "Yabcdefghijk", None)]
    # p0 has no embedding, p3 sounds like the silent e3
    exact = [(4, "leak_exact", "Yabcdefghijk", 1.0), (5, "leak_exact", "e1", 1.0)]
    acoustic = [(2, "leak_acoustic", "e2", 0.97), (6, "leak_acoustic", "e1", 0.91)]
    assert leaks(Leaks.id) == by_id
    assert leaks(Leaks.exact) == by_id + exact
    found = Planted((3, 2, 0.93), (1, 6, 0.91), (2, 2, 0.97))
    assert leaks(Leaks.acoustic, found) == by_id + exact + acoustic
    assert len(decontaminate.decontaminate(Leaks.id, pool, None, Ids.whole, None)) == 0


def test_seeds_that_copy_evaluation_clips():
    eval = split(["e0", "e1", "e2"], [[]] * 3, [10, 11, 12], silent=(2,))
    seeds = split(["s0", "s1", "s2", "s3"], [[]] * 4, [11, 12, 3, 10], [0, 1, 2])  # s3 has no embedding
    found = Planted((1, 2, 0.95))
    assert decontaminate.warn_of_copied_seeds(Leaks.id, seeds, eval, None) == ()
    assert decontaminate.warn_of_copied_seeds(Leaks.exact, seeds, None, None) == ()
    (exact,) = decontaminate.warn_of_copied_seeds(Leaks.exact, seeds, eval, None)
    assert exact.startswith("1 seeds copy evaluation clips and stay (s0 = e1): ")
    (acoustic,) = decontaminate.warn_of_copied_seeds(Leaks.acoustic, seeds, eval, found)
    assert acoustic.startswith("2 seeds copy evaluation clips and stay (s0 = e1, s2 = e1): ")


def test_sound_without_media_is_an_error():
    pool = split(["p"], [[]])
    bare = Split(pool.index, pool.embedded, pool.vectors, None)
    with pytest.raises(UserError, match=r"leaks=exact .* type augment.leaks=id"):
        decontaminate.decontaminate(Leaks.exact, bare, pool, Ids.youtube, None)


@pytest.mark.parametrize("number", range(5))
def test_copies_against_a_loop(number):
    rng = np.random.default_rng(number)
    sounds = np.where(rng.random(140) < 0.5, rng.integers(0, 25, 140), 1000 + np.arange(140))
    case = Case(number, sounds)
    union = union_of(case.neighbours).pool_rows.tolist()
    pairs = {tuple(sorted(rng.choice(20 + len(union), 2, replace=False).tolist())) for _ in range(30)}
    pairs = [(a, b, float(rng.choice([0.9, 0.95]))) for a, b in sorted(pairs)]
    sound = {i: sounds[i] for i in range(20)} | {20 + i: sounds[20 + clip] for i, clip in enumerate(union)}
    for acoustic in (None, Planted(*pairs)):
        copies = Copies.exact if acoustic is None else Copies.acoustic
        stay, gone = list(range(20)), {}
        for clip in case.order:
            node = 20 + union.index(clip)
            same = [x for x in stay if sound[x] == sound[node]]
            near = [(-v, a + b - node) for a, b, v in pairs if acoustic and node in (a, b) and a + b - node in stay]
            if same:
                gone[clip] = ("copy_exact", same[0], 1.0)
            elif near:
                gone[clip] = ("copy_acoustic", min(near)[1], -min(near)[0])
            else:
                stay.append(node)
        curated = case.curate(acoustic, copies=copies)
        accounts(case, curated)
        ids = [f"s{i}" for i in range(20)] + [f"p{clip}" for clip in union]
        removed = curated.removals
        found = zip(removed.rule.to_pylist(), removed.because_of.to_pylist(), removed.value.to_pylist(), strict=True)
        assert dict(zip(removed.rows.tolist(), found, strict=True)) == {
            c: (r, ids[n], v) for c, (r, n, v) in gone.items()
        }
        largest = max(Counter(n for _, n, _ in gone.values()).values()) + 1
        assert curated.figures.copies == CopyFigures(num_dropped=len(gone), largest_group=largest)


def test_silent_clips_are_no_copies():
    case = Case(3, np.zeros(140))
    mute = np.full(140, -np.inf, dtype=np.float32)
    seeds, pool = case.seeds, case.pool
    case.seeds = Split(
        seeds.index,
        seeds.embedded,
        seeds.vectors,
        Facts(seeds.facts.sample_rate, seeds.facts.num_samples, mute[:20], seeds.facts.pcm_sha1),
    )
    case.pool = Split(
        pool.index,
        pool.embedded,
        pool.vectors,
        Facts(pool.facts.sample_rate, pool.facts.num_samples, mute[:115], pool.facts.pcm_sha1),
    )
    assert len(case.curate(copies=Copies.exact).removals) == 0


def test_a_group_that_is_too_large_stops_the_run():
    num = 150
    seeds = split(["s"], [["a"]], [0])
    pool = split([f"p{i}" for i in range(num)], [["a"]] * num, [7] * num)
    neighbours = Neighbours(np.array([0]), np.arange(num, dtype=np.int32)[None], np.ones((1, num), np.float32))
    with pytest.raises(UserError, match=r"150 clips are copies of p0 \(more than 100\)"):
        curate(
            AugmentConfig(copies=Copies.exact),
            rng_seed=1,
            seeds=seeds,
            pool=pool,
            eligible=pool.embedded,
            neighbours=neighbours,
        )


def test_cap_through_the_steps():
    case = Case(1)
    before = Counter(x for labels in (case.seeds.index.labels[i] for i in range(20)) for x in labels)
    curated = case.curate(balance=Balance.cap, per_label=9, cap_exempt=[NAMES[0]])
    accounts(case, curated)
    after = before + Counter(x for clip in curated.union.pool_rows.tolist() for x in case.labels(clip))
    assert all(after[name] <= max(9, before[name]) for name in NAMES[1:])
    assert set(curated.removals.rule.to_pylist()) == {"cap"}
    for clip in curated.removals.rows.tolist():  # nothing that fits is left out
        assert any(after[name] >= max(9, before[name]) for name in case.labels(clip) - {NAMES[0]})
    with pytest.raises(UserError, match="cap_exempt=/m/none"):
        case.curate(balance=Balance.cap, per_label=9, cap_exempt=["/m/none"])


def test_metaclip_probabilities_and_draws():
    case = Case(2)
    counts = Counter(x for clip in case.lowest for x in case.labels(clip))
    expected = {}
    for clip in case.lowest:
        miss = 1.0
        for name in case.labels(clip):
            miss *= 1 - 10 / max(counts[name], 10)
        expected[clip] = 1 - miss if case.labels(clip) else 0.0
    curated = case.curate(balance=Balance.metaclip, per_label=10)
    accounts(case, curated)
    removed = dict(zip(curated.removals.rows.tolist(), curated.removals.value.to_pylist(), strict=True))
    assert removed == pytest.approx({clip: expected[clip] for clip in removed})
    assert not any(expected[clip] == 1 for clip in removed)
    assert all(clip in removed for clip in case.lowest if not case.labels(clip))
    again = case.curate(balance=Balance.metaclip, per_label=10)
    assert again.union.pool_rows.tolist() == curated.union.pool_rows.tolist()


def test_metaclip_without_labels_would_keep_nothing():
    case = Case(2)
    case.pool = split([f"p{i}" for i in range(120)], [[]] * 120, embedded=case.pool.embedded)
    with pytest.raises(UserError, match="=metaclip draws by labels, and no neighbour has any"):
        case.curate(balance=Balance.metaclip, per_label=10)


def test_metaclip_keeps_as_many_as_it_says():
    labels = Labels.of([["a"]] * 900 + [["a", "b"]] * 100)
    chances = metaclip_chances(labels, 100)
    assert chances[0] == pytest.approx(0.1)
    assert chances[-1] == 1.0


@pytest.mark.parametrize("budget", [20, 21, 40, 60, 95])
def test_budget_rank_by_rank(budget):
    case = Case(4)
    curated = case.curate(budget=budget)
    accounts(case, curated)
    kept = [case.lowest[clip] for clip in curated.union.pool_rows.tolist()]
    out = [case.lowest[clip] for clip in curated.removals.rows.tolist()]
    assert 20 + len(kept) == min(budget, 20 + len(case.lowest))
    assert max(kept, default=0) <= min(out, default=99)
    assert curated.removals.value.to_pylist() == out
    assert f"reached at rank {max(kept, default=0)}" in curated.notes[0] or budget == 20


def test_budget_errors_and_warnings():
    case = Case(4)
    with pytest.raises(UserError, match="budget=19 is below the 20 seeds"):
        case.curate(budget=19)
    curated = case.curate(budget=10_000)
    assert len(curated.removals) == 0
    assert "all kept" in curated.warnings[0]


def test_baselines_are_size_matched():
    case = Case(5)
    curated = case.curate(controls=3, balance=Balance.cap, per_label=9)
    chosen = curated.union.pool_rows.tolist()
    strata = Counter(frozenset(case.labels(clip)) for clip in chosen)
    eligible = set(case.pool.embedded.tolist())
    for rows in curated.baselines.random:
        assert len(set(rows.tolist())) == len(rows) == len(chosen)
        assert set(rows.tolist()) <= eligible
    for rows in curated.baselines.stratified:
        assert Counter(frozenset(case.labels(clip)) for clip in rows.tolist()) == strata
        assert set(rows.tolist()) <= eligible
    assert len({tuple(rows.tolist()) for rows in curated.baselines.random + curated.baselines.stratified}) == 6
    assert curated.figures.controls.stratified_residual == 0


def test_stratified_says_what_the_pool_lacks():
    labels = Labels.of([["a"], ["a"], ["b"], ["a"]])
    drawn = baselines.Stratified(labels, np.array([1, 2]), np.array([0, 1, 3]))
    assert drawn.residual == 2
    assert drawn.draw(np.arange(2)).tolist() == [1]


def test_steps_do_not_change_each_others_draws():
    case = Case(6)
    alone = case.curate(balance=Balance.metaclip, per_label=9).removals.rows.tolist()
    both = case.curate(balance=Balance.metaclip, per_label=9, controls=2, budget=40).removals
    assert both.rows.tolist()[: len(alone)] == alone


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"balance": Balance.cap}, "per_label"),
        ({"per_label": 3}, "without a balance"),
        ({"cap_exempt": ["x"]}, "without the cap"),
        ({"budget": 0}, "budget=0"),
        ({"controls": -1}, "controls=-1"),
        ({"copy_threshold": 0.0}, "copy_threshold"),
    ],
)
def test_configuration_errors(config, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**config)


def test_included_clips_stay_whatever_the_steps_say():
    sounds = np.arange(140)
    case = Case(3, sounds)
    union = sorted(case.lowest)
    absent = [row for row in case.pool.embedded.tolist() if row not in case.lowest]
    copy_of_seed, copied, its_copy = absent[0], absent[1], union[0]
    sounds[20 + copy_of_seed] = sounds[4]
    sounds[20 + its_copy] = sounds[20 + copied]
    case = Case(3, sounds)
    included = np.sort([copy_of_seed, copied, union[5]])
    curated = curate(
        AugmentConfig(copies=Copies.exact, balance=Balance.cap, per_label=12, budget=40),
        rng_seed=1213,
        seeds=case.seeds,
        pool=case.pool,
        eligible=case.pool.embedded,
        neighbours=case.neighbours,
        included=included,
    )
    kept, out = set(curated.union.pool_rows.tolist()), set(curated.removals.rows.tolist())
    assert set(included.tolist()) <= kept
    assert kept | out == set(union) | set(included.tolist())
    assert not kept & out
    assert len(kept) <= 20
    assert curated.num_found == len(union)
    at = curated.removals.rows.tolist().index(its_copy)
    assert (curated.removals.rule[at].as_py(), curated.removals.because_of[at].as_py()) == ("copy_exact", f"p{copied}")
    fixed = Counter(label for row in included.tolist() for label in case.labels(row))
    fixed += Counter(label for row in range(20) for label in case.seeds.index.labels[row])
    counts = fixed + Counter(label for row in kept - set(included.tolist()) for label in case.labels(row))
    assert all(counts[label] <= max(12, fixed[label]) for label in counts)


def test_files(tmp_path):
    case = Case(7)
    eval = split(["p3"], [[]])
    leaks = decontaminate.decontaminate(Leaks.id, case.pool, eval, Ids.youtube, None)
    curated = case.curate(balance=Balance.cap, per_label=9, budget=60, controls=1)
    written = curation_files.write_curation(
        tmp_path, 9, case.seeds.index, case.seeds.embedded, case.pool.index, leaks, curated
    )
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    rows = pq.read_table(tmp_path / "decisions.parquet").to_pylist()
    assert rows[0] == {"id": "p3", "rule": "leak_id", "by": "p3", "value": None}
    assert [row["id"] for row in rows[1:]] == [f"p{clip}" for clip in curated.removals.rows.tolist()]
    by_label = json.loads((tmp_path / "labels_k9_9.k").read_text())
    chosen = curated.union.pool_rows.tolist()
    assert by_label == {n: ids for n in NAMES if (ids := [f"p{c}" for c in chosen if n in case.labels(c)])}
    lines = (tmp_path / "src_random_k9_1.csv").read_text().splitlines()
    assert [json.loads(x)["id"] for x in lines] == [f"s{i}" for i in range(20)] + [
        f"p{c}" for c in curated.baselines.random[0].tolist()
    ]
    assert len((tmp_path / "src_stratified_k9_1_weight.csv").read_text().splitlines()) == len(lines)

"""The probe's table on known ground: what it reports, when it reads what, and that it goes on where it stopped."""

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from balance.errors import UserError
from balance.probe import conclusions, page, runner, sentences, training_sets
from balance.probe.config import Judge, ProbeConfig, Reading, Rival
from balance.probe.data import ProbeData, Side, implied_labels
from balance.probe.estimates import groups_of
from balance.probe.features import TrainingSet
from balance.probe.fitting import Fitter
from balance.probe.intervals import Verdict
from balance.probe.logistic import Columns, fit
from balance.probe.ranking_metrics import Ranking, mean
from balance.probe.results import Penalty
from balance.probe.runner import Probe
from balance.records import Labels
from balance.search.top_k import ArrayVectors
from tests.paths import REPOSITORY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: threads that wait for each other on a busy machine cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def calibration():
    path = REPOSITORY / "benchmarks" / "probe_calibration.py"
    spec = importlib.util.spec_from_file_location("probe_calibration", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


WORLDS = calibration()


def small_config(**changes):
    return ProbeConfig(
        **{"k": [20], "draws": 3, "network_steps": 20, "rivals": [], "penalties": [1.0, 0.1, 0.01, 0.001], **changes}
    )


def small_problem(world="a", repeat=0, **sizes):
    given = {"seeds": 120, "pool": 8000, "eval": 1500, "population": 10}
    return WORLDS.draw(world, repeat, {**given, **sizes})[0]


def fitted(fitter, *arms):
    """The first arm at the λ of all of them."""
    return fitter.fit(arms[0], Judge.all, fitter.choose_penalty(arms, Judge.all))


ZERO = Penalty(
    np.array([[0.01, 0.5]]), 0.01, np.zeros((WORLDS.DIM, 40), dtype=np.float32), np.zeros(40, dtype=np.float32)
)


def probe_of(problem, folder, **changes):
    return Probe(problem, small_config(**changes), seed=1, device=CPU, cache=folder)


@pytest.mark.parametrize(("world", "verdict"), [("a", "gain"), ("b", "not resolved"), ("c", "loss")])
def test_known_ground(world, verdict, tmp_path):
    probe = probe_of(small_problem(world), tmp_path, draws=5)
    table = probe.run([a for a in probe.arms() if a.rule in (training_sets.NEIGHBOURS, training_sets.RANDOM)])
    found = conclusions.find(probe, table)
    row = next(r for r in found.comparisons if (r.reading, r.figure) == ("logistic", "map"))
    assert row.verdict == verdict
    assert verdict in row.words
    if world != "a":
        assert found.recommended_k is None
        assert any(s.startswith("no K beats random here") for s in found.sentences)


def test_few_evaluation_clips_judge_nothing(tmp_path):
    """Also no warning of numpy's (which pytest makes an error)."""
    probe = probe_of(small_problem(seeds=60, pool=600, eval=24), tmp_path)
    found = conclusions.find(probe, probe.run())
    assert {row.verdict for row in found.comparisons} == {Verdict.too_few}
    assert "the evaluation clips are of 24 videos, and at least 30 are needed" in found.comparisons[0].words
    assert not any(word in " ".join(found.sentences) for word in ("equivalent", "excluded", " tested"))
    for arm in found.arms:
        for value in (arm.readings[name][figure] for name in arm.readings for figure in ("map", "map_prior")):
            assert value.low is None or 0 <= value.low <= value.high <= 1


def test_labels_with_few_evaluation_clips_judge_nothing():
    problem = small_problem(seeds=60, pool=600, eval=60)
    assert conclusions.too_few(problem) is None
    sets = [[problem.label_ids[i % 8]] if i < 32 else [] for i in range(60)]  # four of each of the eight
    side = Side(problem.evaluation.vectors, WORLDS.coded(sets), problem.evaluation.groups)
    words = conclusions.too_few(replace(problem, evaluation=side))
    assert words == "too few to judge: 0 of 8 labels have 5 evaluation clips, at least half must"


def test_few_seeds_choose_no_k(tmp_path):
    probe = probe_of(small_problem(seeds=24, pool=600, eval=200), tmp_path)
    found = conclusions.find(probe, probe.run())
    assert found.recommended_k is None
    assert any(s.startswith("no K can be recommended: too few to judge: the held-out clips") for s in found.sentences)


def test_arms_that_rank_all_clips_right_cannot_be_told_apart(tmp_path):
    rng = np.random.default_rng(0)

    def side(num):
        vectors = np.eye(4)[np.arange(num) % 4] + 0.01 * rng.random((num, 4))
        sets = [[f"/m/{i % 4}"] for i in range(num)]
        return Side(ArrayVectors(vectors.astype(np.float32)), Labels.of(sets), np.arange(num))

    problem = ProbeData(
        seeds=side(60), pool=side(400), evaluation=side(80),
        chosen=rng.integers(0, 400, (60, 20)).astype(np.int32), same_space=False, fingerprint="all right",
        names={}, missing={}, clips={}, choosing=ArrayVectors(np.eye(4, dtype=np.float32)[np.arange(400) % 4]),
    )  # fmt: skip
    probe = probe_of(problem, tmp_path)
    found = conclusions.find(probe, probe.run())
    of_map = {row.verdict for row in found.comparisons if row.figure == "map"}
    assert of_map == {Verdict.cannot_tell}
    assert found.recommended_k is None
    assert not any(label.resolved for label in found.labels)


def test_nothing_is_said_of_fits_that_are_not_finished(tmp_path):
    probe = probe_of(small_problem(seeds=60, pool=600, eval=200), tmp_path, steps=2)
    found = conclusions.find(probe, probe.run())
    assert {r.verdict for r in found.comparisons if r.reading == "logistic"} == {Verdict.not_finished}
    assert not {r.verdict for r in found.comparisons if r.reading != "logistic"} & {Verdict.not_finished}
    assert found.recommended_k is None
    words = "not finished: a fit ended at probe.steps=2 passes before its scores settled"
    assert f"no K can be recommended: {words}." in found.sentences
    assert f"mAP, neighbours k=20 against the whole pool: {words}." in found.sentences
    assert any(w.startswith("pool: after 2 passes the next step would still move") for w in found.warnings)
    assert all(label.p is None for label in found.labels)


@pytest.mark.parametrize("grid", [[10.0, 3.16], [0.01, 0.00316]])
def test_the_grid_widens_where_its_end_is_best(grid, tmp_path):
    problem = small_problem(seeds=60, pool=600, eval=50)
    arm = training_sets.neighbours(problem.chosen, probe_of(problem, tmp_path).fitter.folds, 20)
    wide = [float(f"{10 ** (-i / 2):.3g}") for i in range(-4, 10)]
    want, got = (fitted(probe_of(problem, tmp_path, penalties=x).fitter, arm) for x in (wide, grid))
    assert 1e-3 < want.penalty < 3
    assert got.penalty == pytest.approx(want.penalty, rel=0.02)
    assert not got.at_edge
    tried = got.path[:, 0].tolist()
    assert set(grid) < set(tried)
    assert tried == sorted(tried, reverse=True)


def test_a_probe_goes_on_at_its_next_fit_and_ends_the_same(tmp_path, monkeypatch):
    problem = small_problem(seeds=60, pool=600, eval=200)
    whole = conclusions.find(p := probe_of(problem, tmp_path / "whole"), p.run())

    class Stopped(Exception):
        pass

    made = []
    make = Fitter.training_set

    def limited(self, arm):
        made.append(arm.title)
        if len(made) == 4:
            raise Stopped
        return make(self, arm)

    monkeypatch.setattr(Fitter, "training_set", limited)
    with pytest.raises(Stopped):
        probe_of(problem, tmp_path / "parts").run()
    first = made[:3]
    made[:] = ["none"] * 10
    again = probe_of(problem, tmp_path / "parts")
    assert conclusions.find(again, again.run()) == whole
    fits = len(again.arms())
    # two arms (or the one) of each of the three sizes for its λ, every fit, every arm's other readings; two were kept
    assert len(made) - 10 == 2 * fits + 5 - 2
    assert made[10:13] != first


def test_a_damaged_fit_is_made_again(tmp_path):
    problem = small_problem(seeds=60, pool=600, eval=200)
    probe = probe_of(problem, tmp_path)
    arm = training_sets.seeds_alone()
    whole = probe.fit(arm, Judge.all, ZERO)
    (file,) = tmp_path.glob("*.npz")
    kept = file.read_bytes()
    headers = [i for i in range(len(kept)) if kept.startswith(b"NUMPY", i)]
    for damaged in (kept[:100], *(kept[: at + 20] + b"9" + kept[at + 21 :] for at in headers[:3])):
        file.write_bytes(damaged)
        assert (probe.fit(arm, Judge.all, ZERO).weight == whole.weight).all()
        assert file.read_bytes() == kept


def test_the_evaluation_is_read_once_after_all_choices(tmp_path, monkeypatch):
    problem = small_problem(seeds=60, pool=600, eval=200)
    events = []

    class Watched(ArrayVectors):
        def read(self, start, stop):
            events.append("evaluation")
            return super().read(start, stop)

    side = problem.evaluation
    watched = Side(Watched(side.vectors.read(0, 200)), side.labels, side.groups)
    values = {name: getattr(problem, name) for name in ProbeData.__dataclass_fields__}
    fit, choose = Probe.fit, Probe._choose_k
    monkeypatch.setattr(Probe, "fit", lambda self, *a: (events.append("fit"), fit(self, *a))[1])
    monkeypatch.setattr(Probe, "_choose_k", lambda self, c: (events.append("choice of K"), choose(self, c))[1])
    probe = probe_of(ProbeData(**{**values, "evaluation": watched}), tmp_path)
    probe.run()
    assert events == ["fit"] * len(probe.arms()) + ["choice of K", "evaluation"]


@pytest.mark.parametrize("judge", [Judge.all, Judge.one])
def test_held_out_figures_equal_fits_without_the_fold(judge, tmp_path):
    problem = small_problem(seeds=100, pool=600, eval=100)
    fitter = probe_of(problem, tmp_path, judge=judge).fitter
    arm = training_sets.neighbours(problem.chosen, fitter.folds, 20)
    weight = np.zeros((WORLDS.DIM, len(fitter.heldout_columns(judge))), dtype=np.float32)
    got = fitter.fit(arm, judge, Penalty(np.array([[0.01, 0.5]]), 0.01, weight, weight[0]))
    truth = problem.seeds.labels.matrix().toarray()
    columns = fitter.heldout_columns(judge)
    scores = np.full(truth.shape, -np.inf, dtype=np.float32)
    seeds = fitter.space.standardise(problem.seeds.vectors.read(0, 100))
    for fold in range(5):
        kept_seeds, kept_rows = fitter.folds != fold, arm.rows[arm.excluded_fold != fold]
        labels = np.concatenate([truth[kept_seeds], problem.pool.labels.matrix().toarray()[kept_rows]])
        examples = TrainingSet(
            seeds[kept_seeds], problem.pool.vectors, kept_rows, fitter.space,
            labels=WORLDS.coded([[]]).matrix().__class__(labels), weights=np.ones(len(labels), dtype=np.float32),
            held_out=np.zeros((len(labels), 0), dtype=bool), device=CPU, memory_bytes=1 << 30,
        )  # fmt: skip
        learnt = columns.labels[columns.folds == fold]
        everywhere = Columns(learnt, np.full(len(learnt), -1))
        model = fit(examples, everywhere, 0.01, torch.from_numpy(seeds), passes=600, device=CPU)
        mine = np.flatnonzero(~kept_seeds)
        scores[np.ix_(mine, learnt)] = model.scores(torch.from_numpy(seeds[mine])).numpy()
    judged = np.isfinite(scores)
    assert judged.sum() == (
        judged.size if judge is Judge.all else sum((fitter.folds == f).sum() for f in columns.folds)
    )
    want = Ranking(scores, WORLDS.coded([[]]).matrix().__class__(truth * judged)).figures().ap
    assert mean(got.heldout) == pytest.approx(mean(want), abs=2e-3)


def test_draws_and_arms_of_the_table(tmp_path):
    probe = probe_of(small_problem(seeds=60, pool=600, eval=100), tmp_path, k=[2, 5], stratified=True)
    titles = [arm.title for arm in probe.arms()]
    assert titles[0] == "seeds"
    assert titles[1:5] == ["neighbours k=2", "random k=2 draw 1", "random k=2 draw 2", "random k=2 draw 3"]
    assert titles[5] == "stratified k=2 draw 1"
    assert titles[-2:] == ["pool", "pool, weighted"]
    assert len(titles) == 1 + 2 * 7 + 2
    groups = groups_of([type("Fit", (), {"arm": a}) for a in probe.arms()])
    assert [g.title for g in groups[:4]] == ["seeds", "neighbours k=2", "random k=2", "stratified k=2"]


def test_rivals_are_as_many_clips_and_are_compared(tmp_path):
    probe = probe_of(small_problem(seeds=60, pool=600, eval=100), tmp_path, k=[2], rivals=list(Rival))
    table = probe.arms()
    own = next(arm for arm in table if arm.rule == "neighbours")
    rivals = [arm for arm in table if arm.rule in training_sets.RIVALS]
    assert [arm.rule for arm in rivals] == [rival.value for rival in Rival]
    assert rivals[0].title == "hierarchical kmeans k=2"
    for arm in rivals:
        assert len(arm.rows) == len(own.rows)
        assert np.bincount(arm.excluded_fold + 1).tolist() == np.bincount(own.excluded_fold + 1).tolist()
    found = conclusions.find(probe, probe.run(table))
    for arm in rivals:
        assert any(one.arm == "neighbours k=2" and one.against == arm.title for one in found.conclusions)
        assert any(one.arm == arm.title and one.against == "random k=2" for one in found.conclusions)
    by_arm = {arm.arm: arm for arm in found.arms}
    assert {by_arm[x].penalty for x in ("neighbours k=2", "random k=2", rivals[0].title)} == {own_penalty(found)}


def own_penalty(found):
    return next(arm.penalty for arm in found.arms if arm.rule == "neighbours")


def test_rivals_of_nearly_the_whole_pool_are_left_out(tmp_path):
    probe = probe_of(small_problem("b", seeds=60, pool=100, eval=100), tmp_path, k=[20], rivals=list(Rival))
    assert not [arm for arm in probe.arms() if arm.rule in training_sets.RIVALS]


def test_ancestors_are_fitted_and_judged_beside_the_labels_as_given(tmp_path):
    """Label 0 is implied by 1 and 2: its second column is on their clips too; the others' figures stay."""
    problem = small_problem(seeds=60, pool=600, eval=200)
    implied = implied_labels(problem.label_ids, dict.fromkeys(problem.label_ids[1:3], problem.label_ids[:1]))
    probe = probe_of(replace(problem, implies=implied, fingerprint="implied"), tmp_path)
    fit = fitted(probe.fitter, training_sets.seeds_alone())
    values = probe._evaluate([fit])[0]["logistic"]
    plain = probe_of(problem, tmp_path)
    as_given = plain._evaluate([fitted(plain.fitter, training_sets.seeds_alone())])[0]["logistic"]
    assert values.summary("map")[0] == pytest.approx(as_given.summary("map")[0], abs=1e-3)
    truth = problem.evaluation.labels.matrix().toarray() > 0
    scores = probe._linear(fit)
    want = [average_precision_score(truth[:, c], scores[:, c]) for c in range(1, 8)]
    want.append(average_precision_score(truth[:, :3].any(axis=1), scores[:, 8]))
    assert values.summary("map_ancestors")[0] == pytest.approx(np.mean(want), abs=1e-6)
    assert np.isnan(as_given.summary("map_ancestors")[0])


def test_pool_clips_of_a_held_out_seeds_source_do_not_train(tmp_path):
    problem = small_problem(seeds=60, pool=300, eval=50)
    sources = np.full(300, -1)
    sources[[3, 8]] = [5, 7]
    fitter = probe_of(replace(problem, sources=sources), tmp_path).fitter
    held_out = fitter.training_set(training_sets.whole_pool(300, weighted=False)).held_out[60:]
    assert held_out.sum() == 2
    assert held_out[3, fitter.folds[5]]
    assert held_out[8, fitter.folds[7]]


def test_seeds_of_one_source_are_held_out_one_by_one(tmp_path):
    """Held out together they would leave nothing to choose λ by, and the largest of all would be taken."""
    problem, small = small_problem(seeds=60, pool=300, eval=50), {"k": [3], "draws": 2, "readings": [Reading.logistic]}
    alone, together = (
        probe_of(replace(problem, seeds=replace(problem.seeds, groups=groups)), tmp_path / name, **small)
        for name, groups in (("alone", np.arange(60)), ("together", np.zeros(60, dtype=np.int64)))
    )
    arm = training_sets.neighbours(problem.chosen, alone.fitter.folds, 3)
    of_alone, of_together = (fitted(probe.fitter, arm) for probe in (alone, together))
    assert of_together.penalty == of_alone.penalty
    np.testing.assert_array_equal(of_together.heldout, of_alone.heldout)
    found = conclusions.find(together, together.run())
    assert any("all seeds are of one source" in warning for warning in found.warnings)


def test_a_penalty_at_the_edge_is_said_once_for_all_arms_that_share_it():
    edge = SimpleNamespace(at_edge=True, penalty=100.0, path=np.array([[100.0, 0.6], [10.0, 0.5]]), unfinished=0.0)
    inside = SimpleNamespace(at_edge=False, unfinished=0.5)
    groups = [SimpleNamespace(title=f"arm {i}", fits=(i,)) for i in range(7)]
    said = sentences._of_fits(SimpleNamespace(fits=[edge] * 6 + [inside]), groups, 600)
    assert len(said) == 2
    assert said[0].startswith("arm 0, arm 1, arm 2, arm 3 and 2 more: the best λ = 100 is the largest tried")
    assert said[1].startswith("arm 6: after 600 passes")


def test_weighted_pool_has_the_published_weights(tmp_path):
    problem = small_problem(seeds=60, pool=300, eval=100)
    probe = probe_of(problem, tmp_path)
    got = probe.fitter.training_set(training_sets.whole_pool(300, weighted=True)).weights
    sets = [problem.seeds.labels[i] for i in range(60)] + [problem.pool.labels[i] for i in range(300)]
    count = {name: sum(name in s for s in sets) for name in problem.label_ids}
    want = np.array([sum(1000 / (count[name] + 1) for name in s) for s in sets])
    assert np.allclose(got, want / want.mean(), rtol=1e-6)


def test_absent_labels_edges_and_the_same_space_are_said(tmp_path):
    problem = small_problem(seeds=60, pool=600, eval=200)
    last = problem.label_ids[-1]
    without = [[x for x in problem.evaluation.labels[i] if x != last] for i in range(200)]
    seeds = [[x for x in problem.seeds.labels[i] if x != problem.label_ids[-2]] for i in range(60)]
    values = {name: getattr(problem, name) for name in ProbeData.__dataclass_fields__}
    values["evaluation"] = Side(problem.evaluation.vectors, WORLDS.coded(without), problem.evaluation.groups)
    values["seeds"] = Side(problem.seeds.vectors, WORLDS.coded(seeds), problem.seeds.groups)
    values |= {"same_space": True, "names": {last: "Yodel"}}
    probe = probe_of(ProbeData(**values), tmp_path, penalties=[1e-12, 1e-13])
    found = conclusions.find(probe, probe.run())
    assert found.labels_not_in_evaluation == ("Yodel",)
    warnings = "\n".join(found.warnings)
    assert "1 of 8 labels have no evaluation clip and count in no figure: Yodel" in warnings
    assert "1 labels have no seed" in warnings
    assert "is the largest tried" in warnings
    assert "seeds: 1 labels are on none (or all) of its clips" in warnings
    assert found.sentences[0].startswith("same space: optimistic or pessimistic, not evidence")
    assert found.counts.labels_evaluated == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": []}, "probe.k"),
        ({"k": [0, 4]}, "at least 1"),
        ({"draws": 1}, "probe.draws=1: at least 2"),
        ({"penalties": [0.0]}, "numbers above 0"),
        ({"folds": 1}, "probe.folds=1"),
        ({"memory_bytes": -1}, "probe.memory_bytes"),
    ],
)
def test_refused_values(changes, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        small_config(**changes)


def test_more_neighbours_than_known_and_fewer_seeds_than_folds(tmp_path):
    problem = small_problem(seeds=60, pool=600, eval=100)
    with pytest.raises(UserError, match="only 20 neighbours per seed are known"):
        probe_of(problem, tmp_path, k=[5, 21]).arms()
    with pytest.raises(UserError, match="there are only 4 seeds"):
        probe_of(small_problem(seeds=4, pool=600, eval=100), tmp_path)


def test_a_large_table_is_judged_in_one_fold(tmp_path, monkeypatch):
    probe = probe_of(small_problem(seeds=60, pool=600, eval=100), tmp_path)
    assert probe.judge_for(probe.arms()) is Judge.all
    monkeypatch.setattr("balance.probe.runner.JUDGE_ALL", 1000)
    assert probe.judge_for(probe.arms()) is Judge.one
    columns = probe.fitter.heldout_columns(Judge.one)
    assert sorted(columns.labels.tolist()) == list(range(probe.fitter.num_labels))


def test_k_per_seed_is_an_arm_beside_the_best_single_k(tmp_path, monkeypatch):
    problem = small_problem(seeds=60, pool=600, eval=200)
    own = np.array([20, 10, 20, 5, *[20] * (problem.num_labels - 4)])
    monkeypatch.setattr(Probe, "_choose_k", lambda self, fits: (20, {}))
    monkeypatch.setattr(runner, "own_ks", lambda fits, single: own)
    probe = probe_of(problem, tmp_path, k=[5, 10, 20])
    chosen = (training_sets.SEEDS, training_sets.NEIGHBOURS, training_sets.RANDOM)
    table = probe.run([arm for arm in probe.arms() if arm.rule in chosen])
    ids = problem.label_ids
    wanted = set()
    for i in range(len(problem.seeds)):
        labels = problem.seeds.labels[i]
        k = max((10 if label == ids[1] else 5 for label in labels if label in (ids[1], ids[3])), default=20)
        wanted |= set(problem.chosen[i, :k].tolist())
    assert table.fits[-1].arm.rows.tolist() == sorted(wanted)
    single = next(fit for fit in table.fits if fit.arm.title == "neighbours k=20")
    assert table.fits[-1].penalty == single.penalty

    found = conclusions.find(probe, table)
    row = next(r for r in found.comparisons if (r.arm, r.reading, r.figure) == ("per-seed K", "logistic", "map"))
    at = table.fits.index(single)
    values = [table.evaluations[i]["logistic"].summary("map")[0] for i in (-1, at)]
    assert row.against == "neighbours k=20"
    assert row.value == pytest.approx(values[0] - values[1], abs=1e-6)
    assert row.low < row.value < row.high
    (said,) = [s for s in found.sentences if s.startswith("mAP, per-seed K against the best single K: ")]
    assert ("gain of" in said) != ("K per seed: no gain over K = 20 for all is shown." in found.sentences)
    assert "per-seed K" in page.render("x", found)


def test_another_space_takes_the_first_ones_k_per_seed_at_the_lambda_of_the_single_k(tmp_path, monkeypatch):
    """The same vectors in both spaces: nothing may differ. K = 10 has another λ than the set would choose itself."""
    problem = small_problem(seeds=60, pool=600, eval=200)
    own = np.array([10, *[5] * (problem.num_labels - 1)])
    monkeypatch.setattr(Probe, "_choose_k", lambda self, fits: (10, {}))
    monkeypatch.setattr(runner, "own_ks", lambda fits, single: own)
    probe = probe_of(problem, tmp_path / "first", k=[5, 10, 20])
    chosen = (training_sets.NEIGHBOURS, training_sets.RANDOM)
    arms = [arm for arm in probe.arms() if arm.rule in chosen]
    first = probe.run(arms)
    monkeypatch.setattr(Probe, "_choose_k", lambda self, fits: pytest.fail("K is the first space's"))
    second = probe_of(problem, tmp_path / "second", k=[5, 10, 20]).run(arms, first)
    assert [fit.arm.title for fit in second.fits] == [fit.arm.title for fit in first.fits]
    assert first.fits[-1].arm.rule == training_sets.PER_SEED
    assert second.fits[-1].penalty == first.fits[-1].penalty
    both = first.beside(second, "selecting space")
    for read in both.evaluations:
        for name in first.readings:
            assert np.array_equal(read[name].values, read[f"{name}, selecting space"].values, equal_nan=True)


def test_without_a_label_of_its_own_k_per_seed_is_no_gain(tmp_path, monkeypatch):
    problem = small_problem(seeds=60, pool=600, eval=200)
    monkeypatch.setattr(Probe, "_choose_k", lambda self, fits: (20, {}))
    probe = probe_of(problem, tmp_path)
    arms = [a for a in probe.arms() if a.rule in (training_sets.NEIGHBOURS, training_sets.RANDOM)]
    table = probe.run(arms)
    assert len(table.fits) == len(arms)
    found = conclusions.find(probe, table)
    assert found.recommended_k == 20
    said = "K per seed: no gain: no label is resolved to be served better by another K than 20."
    assert said in found.sentences

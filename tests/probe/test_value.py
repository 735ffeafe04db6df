"""The value of one more neighbour: steps from nested sets, and a label's own K only where it is resolved."""

import numpy as np
import pytest

from balance.probe import training_sets
from balance.probe.intervals import Verdict
from balance.probe.results import FIGURES, Evaluation, FitResult, Table
from balance.probe.value import value_of_neighbours

VIDEOS = 200


def table(ap, noise=0.02, seed=0):
    """Fits at K = 0, 4, 10 with these APs on held-out seeds (3, L); each value a mean over VIDEOS."""
    rng = np.random.default_rng(seed)
    fits, evaluations = [], []
    for k, own in zip((0, 4, 10), np.array(ap), strict=True):
        rows = np.arange(60 * k)
        arm = training_sets.Arm(
            training_sets.NEIGHBOURS if k else training_sets.SEEDS, "neighbours", k or None, rows,
            np.full(len(rows), -1, dtype=np.int8),
        )  # fmt: skip
        sample = own + noise * np.sqrt(VIDEOS) * rng.standard_normal((VIDEOS, len(own)))
        sample += own - sample.mean(axis=0)
        deviations = (own - sample) / (VIDEOS - 1)
        fits.append(
            FitResult(
                arm=arm, penalty=0.1, path=np.array([[0.1, 0.5]]), weight=np.zeros((1, 1), np.float32),
                bias=np.zeros(1, np.float32), trained=np.ones(1, bool), heldout=own,
                heldout_deviations=deviations.mean(axis=1), label_deviations=deviations.astype(np.float32),
                unfinished=0.0,
            )
        )  # fmt: skip
        values = np.full(len(FIGURES), own.mean())
        each = np.tile(deviations.mean(axis=1), (len(FIGURES), 1))
        evaluations.append({"logistic": Evaluation(own, values, each)})
    return Table(tuple(fits), tuple(evaluations), "all of 5 folds", None, {})


def names(num):
    return [f"/m/{i}" for i in range(num)]


def test_steps_are_the_differences_between_nested_sets():
    curve = table([[0.3] * 40, [0.4] * 40, [0.401] * 40])
    got = value_of_neighbours(curve, names(40), None)
    assert got.ks == (0, 4, 10)
    first, second = got.steps
    assert (first.from_k, first.to_k, first.added_clips) == (0, 4, 240)
    assert (second.from_k, second.to_k, second.added_clips) == (4, 10, 360)
    assert first.gain == pytest.approx(0.1)
    assert first.per_1000_clips == pytest.approx(0.1 / 0.24, abs=1e-5)
    assert first.low < 0.1 < first.high
    assert first.verdict is Verdict.gain
    assert second.verdict is Verdict.not_resolved
    assert got.k == 4


def test_a_label_has_its_own_k_only_where_that_is_resolved():
    ap = np.full((3, 40), 0.4)
    ap[0] = 0.3
    ap[2, 7] = 0.6  # by ten standard errors better at 10
    ap[2, 9] = 0.41  # by half a one
    got = value_of_neighbours(table(ap), names(40), 4)
    assert {x.id: x.k for x in got.labels if x.k != 4} == {"/m/7": 10}
    assert got.labels[7].gain == pytest.approx((0.1, 0.2), abs=1e-6)


def test_without_truth_few_labels_get_a_k_of_their_own():
    found = 0
    for seed in range(40):
        got = value_of_neighbours(table(np.full((3, 40), 0.4), seed=seed), names(40), 4)
        found += any(x.k != 4 for x in got.labels)
    assert found <= 0.3 * 40


def test_the_seeds_alone_are_no_curve():
    whole = table(np.full((3, 4), 0.4))
    alone = Table(whole.fits[:1], whole.evaluations[:1], "", None, {})
    assert value_of_neighbours(alone, names(4), None) is None

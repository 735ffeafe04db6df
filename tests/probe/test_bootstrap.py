"""Bootstrap intervals, verdicts and multiple tests against closed forms and textbook procedures."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from balance.probe import bootstrap
from balance.probe.ranking_metrics import Ranking


def test_bootstrap_weights_draw_whole_videos():
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = bootstrap.resample(groups, 4000, np.random.default_rng(0))
    assert (weights[0] == weights[1]).all()
    assert (weights[3] == weights[5]).all()
    drawn = weights[[0, 2, 3, 6]]
    assert (drawn.sum(axis=0) == 4).all()
    assert np.allclose(drawn.mean(axis=1), 1.0, atol=0.05)


def test_basic_interval_of_a_mean_is_the_textbook_one():
    rng = np.random.default_rng(0)
    sample = rng.exponential(size=400)
    weights = bootstrap.resample(np.arange(400), 4000, rng)
    replicates = (weights * sample[:, None]).sum(axis=0) / 400
    got = bootstrap.estimate(float(sample.mean()), replicates)
    error = sample.std(ddof=1) / 20
    assert got.error == pytest.approx(error, rel=0.05)
    assert got.low == pytest.approx(2 * sample.mean() - np.quantile(replicates, 0.975))
    assert got.high == pytest.approx(sample.mean() + 1.96 * error, abs=0.15 * error)


def test_the_basic_interval_takes_out_the_upward_bias_of_bootstrapped_ap():
    rng = np.random.default_rng(3)
    truth = np.zeros((600, 1), dtype=np.int32)
    truth[:10] = 1
    scores = (rng.standard_normal((600, 1)) + 2 * truth).astype(np.float32)
    ranking = Ranking(scores, scipy.sparse.csr_matrix(truth))
    value = ranking.figures().ap[0, 0]
    replicates = ranking.figures(bootstrap.resample(np.arange(600), 2000, rng)).ap[:, 0]
    kept = replicates[~np.isnan(replicates)]
    assert kept.mean() > value + 0.005
    got = bootstrap.estimate(value, replicates)
    assert (got.low + got.high) / 2 < value


@pytest.mark.parametrize(
    ("low", "high", "narrow", "verdict"),
    [
        (0.001, 0.02, (0.002, 0.019), "gain"),
        (-0.02, -0.001, (-0.019, -0.002), "loss"),
        (-0.004, 0.0055, (-0.003, 0.0045), "equivalent"),
        (-0.004, 0.02, (-0.003, 0.019), "not resolved"),
    ],
)
def test_verdicts(low, high, narrow, verdict):
    got = bootstrap.Estimate((low + high) / 2, low, high, *narrow, 0.01)
    assert got.verdict() == verdict
    assert verdict in got.words()
    if verdict == "not resolved":
        assert got.words() == "not resolved: effects beyond [-0.0040, +0.0200] excluded"


def test_two_level_difference_covers_the_truth_when_the_rule_is_one_more_random_draw():
    rng = np.random.default_rng(5)
    covered, repeats = 0, 400
    for _ in range(repeats):
        clip = rng.standard_normal(80) * 0.02  # what the evaluation clips add to every arm alike, and to each alone
        noise = rng.standard_normal((6, 80)) * 0.03
        level = rng.standard_normal(6) * 0.003  # the luck of each training set
        values = level[:, None] + noise + clip
        weights = bootstrap.resample(np.arange(80), 300, rng)
        replicates = values @ weights / 80
        points = values.mean(axis=1)
        value, spread = bootstrap.against_draws(
            points[:1], replicates[0][:, None], points[1:, None], replicates[1:, :, None], rng
        )
        got = bootstrap.estimate(float(value[0]), spread[:, 0])
        covered += got.low <= 0 <= got.high
    assert 0.91 <= covered / repeats <= 0.99


def test_benjamini_hochberg_equals_the_procedure_of_scipy():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(0, 0.002, 15), rng.uniform(size=85)])
    rng.shuffle(p)
    want = scipy.stats.false_discovery_control(p, method="bh") <= 0.1
    got = bootstrap.benjamini_hochberg(np.concatenate([[np.nan], p]), 0.1)
    assert not got[0]
    assert (got[1:] == want).all()
    assert want.sum() >= 15
    assert not bootstrap.benjamini_hochberg(np.full(3, np.nan), 0.1).any()


def test_p_values_follow_the_bootstraps_standard_error():
    rng = np.random.default_rng(0)
    replicates = rng.normal([0.1, 0.0, 0.0], [0.05, 0.01, 0.0], (5000, 3))
    got = bootstrap.p_values(np.array([0.1, 0.02, 0.0]), replicates)
    assert got[0] == pytest.approx(2 * scipy.stats.norm.sf(2.0), rel=0.1)
    assert got[1] == pytest.approx(2 * scipy.stats.norm.sf(2.0), rel=0.1)
    assert got[2] == 1.0


def test_the_smallest_k_within_one_error_of_the_best_that_beats_random():
    rng = np.random.default_rng(0)
    values = np.array([0.30, 0.349, 0.35, 0.34])
    replicates = values + rng.standard_normal((500, 4)) * 0.01
    every = np.ones(4, dtype=bool)
    assert bootstrap.smallest_good([4, 10, 32, 100], values, replicates, every) == 10
    assert bootstrap.smallest_good([4, 10, 32, 100], values, replicates, ~every) is None
    only_first = np.array([True, False, False, False])
    assert bootstrap.smallest_good([4, 10, 32, 100], values, replicates, only_first) == 4
    paired = values + rng.standard_normal((500, 1)) * 0.01 + rng.standard_normal((500, 4)) * 1e-5
    assert bootstrap.smallest_good([4, 10, 32, 100], values, paired, every) == 32


@pytest.mark.parametrize("value", [0.0, 0.1, -0.2, float("nan"), float("inf")])
def test_replicates_that_are_alike_cannot_tell(value):
    got = bootstrap.estimate(value, np.full(1000, value))
    assert not got.can_tell
    assert got.verdict() == "cannot tell"
    assert got.words().startswith("cannot tell")
    assert "excluded" not in got.words()
    assert "equivalent" not in got.words()


def test_undefined_and_infinite_replicates_are_left_out():
    rng = np.random.default_rng(0)
    replicates = rng.normal(0.5, 0.1, 1000)
    got = bootstrap.estimate(0.5, np.concatenate([replicates, [np.nan, np.inf, -np.inf]]))
    assert got == bootstrap.estimate(0.5, replicates)


def test_an_interval_ends_where_the_figure_does():
    rng = np.random.default_rng(0)
    replicates = np.minimum(rng.normal(0.95, 0.05, 1000), 1.0)
    free, cut = bootstrap.estimate(0.98, replicates), bootstrap.estimate(0.98, replicates, (0.0, 1.0))
    assert free.high > 1.0 == cut.high
    assert (cut.low, cut.narrow_low, cut.error) == (free.low, free.narrow_low, free.error)
    assert bootstrap.estimate(0.02, 1 - replicates, (0.0, 1.0)).low == 0.0


def test_a_label_whose_replicates_are_alike_is_not_resolved():
    p = bootstrap.p_values(np.array([0.3, 0.0]), np.tile([0.3, 0.0], (500, 1)))
    assert np.isnan(p[0])
    assert p[1] == 1.0
    assert not bootstrap.benjamini_hochberg(p, 0.1).any()

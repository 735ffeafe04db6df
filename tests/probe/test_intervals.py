"""Jackknife intervals, verdicts and multiple tests against closed forms and textbook procedures."""

import math

import numpy as np
import pytest
import scipy.stats

from balance.probe import intervals
from balance.probe.intervals import Estimate, estimate


def left_out(sample):
    """How the mean of a sample changes with each value left out; (G,) or (G, L)."""
    total = sample.sum(axis=0)
    return (total - sample) / (len(sample) - 1) - total / len(sample)


def test_the_interval_of_a_mean_is_the_textbook_one():
    sample = np.random.default_rng(0).normal(3.0, 2.0, 400)
    got = estimate(float(sample.mean()), left_out(sample))
    assert got.error == pytest.approx(sample.std(ddof=1) / 20)
    kurtosis = scipy.stats.kurtosis(sample, fisher=False)
    assert got.freedom == pytest.approx(min(2 * 400 / (kurtosis - 1), 399))
    reach = scipy.stats.t.ppf(0.975, got.freedom) * sample.std(ddof=1) / 20
    assert got.interval() == pytest.approx((sample.mean() - reach, sample.mean() + reach))


def test_few_values_that_carry_the_figure_give_few_degrees_of_freedom():
    sample = np.zeros(500)
    sample[:3] = (5.0, 4.0, 6.0)
    assert estimate(float(sample.mean()), left_out(sample)).freedom < 8


def test_clips_of_one_video_are_left_out_together():
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    got = intervals.by_group(np.arange(7.0), groups)
    assert got.tolist() == [1, 2, 12, 6]
    assert intervals.by_group(np.ones((7, 2)), groups).tolist() == [[2, 2], [1, 1], [3, 3], [1, 1]]


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.01, 0.004, "gain"),
        (-0.01, 0.004, "loss"),
        (0.001, 0.002, "equivalent"),
        (0.008, 0.005, "not resolved"),
    ],
)
def test_verdicts(value, error, verdict):
    got = Estimate(value, error, 1e6)
    assert got.verdict() == verdict
    assert verdict in got.words()
    if verdict == "not resolved":
        assert got.words() == "not resolved: effects beyond [-0.0018, +0.0178] excluded"


def test_equivalence_is_two_one_sided_t_tests():
    got = Estimate(0.001, 0.002, 9.0)
    p = max(scipy.stats.t.sf((0.001 + 0.005) / 0.002, 9), scipy.stats.t.cdf((0.001 - 0.005) / 0.002, 9))
    assert (got.verdict() == "equivalent") == (p < 0.05)
    low, high = got.interval(0.9)
    assert (low > -0.005 and high < 0.005) == (p < 0.05)


@pytest.mark.parametrize("freedom", [5.0, 40.0, 1e6])
def test_a_detectable_effect_is_resolved_in_eighty_of_a_hundred(freedom):
    got = Estimate(0.0, 0.01, freedom)
    effect = got.detectable()
    rng = np.random.default_rng(0)
    errors = 0.01 * np.sqrt(rng.chisquare(freedom, 20_000) / freedom)
    values = effect + 0.01 * rng.standard_normal(20_000)
    power = np.mean(values / errors > scipy.stats.t.ppf(0.975, freedom))
    assert power == pytest.approx(0.8, abs=0.05 if freedom < 40 else 0.01)


def test_videos_needed_lower_the_clips_part_alone():
    got = Estimate(0.0, math.sqrt(4e-5 + 1e-5), 1e6, of_draws=1e-5)
    num = got.videos_for(0.02, 1000)
    then = Estimate(0.0, math.sqrt(4e-5 * 1000 / num + 1e-5), 1e6)
    assert then.detectable() == pytest.approx(0.02, rel=1e-3)
    assert got.videos_for(0.001, 1000) == math.inf


@pytest.mark.parametrize("spread", [0.0, 0.003, 0.02])
def test_a_rule_that_is_one_more_random_draw_is_covered(spread):
    """Whatever the luck of a training set is beside the clips' noise."""
    rng = np.random.default_rng(5)
    covered, repeats = 0, 2000
    for _ in range(repeats):
        clip = rng.standard_normal(80) * 0.02  # what the evaluation clips add to every arm alike, and to each alone
        values = rng.standard_normal((6, 80)) * 0.03 + clip + rng.standard_normal((6, 1)) * spread
        deviations = left_out(values.T).T
        points = values.mean(axis=1)
        got = intervals.difference(points[0], deviations[0], points[1:], deviations[1:])
        covered += got.interval()[0] <= 0 <= got.interval()[1]
    assert 0.935 <= covered / repeats <= 0.98


def test_the_mean_of_draws_has_their_luck_in_its_error():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        values = 0.5 + rng.standard_normal((5, 1)) * 0.01 + rng.standard_normal((5, 60)) * 0.01
        got = intervals.mean_of_draws(values.mean(axis=1), left_out(values.T).T)
        covered += got.interval()[0] <= 0.5 <= got.interval()[1]
    assert 0.93 <= covered / 1000 <= 0.98


def test_benjamini_hochberg_equals_the_procedure_of_scipy():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(0, 0.002, 15), rng.uniform(size=85)])
    rng.shuffle(p)
    want = scipy.stats.false_discovery_control(p, method="bh") <= 0.1
    got = intervals.benjamini_hochberg(np.concatenate([[np.nan], p]), 0.1)
    assert not got[0]
    assert (got[1:] == want).all()
    assert want.sum() >= 15
    assert not intervals.benjamini_hochberg(np.full(3, np.nan), 0.1).any()


def test_p_values_are_students():
    got = intervals.p_values(np.array([0.1, 0.02, 0.0]), np.array([0.05, 0.01, 0.0]) ** 2, np.array([4.0, 1e6, 9.0]))
    assert got[0] == pytest.approx(2 * scipy.stats.t.sf(2.0, 4))
    assert got[1] == pytest.approx(2 * scipy.stats.norm.sf(2.0), rel=1e-3)
    assert got[2] == 1.0


def test_the_smallest_k_within_one_error_of_the_best_that_beats_random():
    rng = np.random.default_rng(0)
    values = np.array([0.30, 0.349, 0.35, 0.34])
    clips = rng.standard_normal((500, 4))
    of_clips = left_out(0.01 * np.sqrt(500) * clips)
    every = np.ones(4, dtype=bool)
    assert intervals.smallest_good([4, 10, 32, 100], values, of_clips, every) == 10
    assert intervals.smallest_good([4, 10, 32, 100], values, of_clips, ~every) is None
    only_first = np.array([True, False, False, False])
    assert intervals.smallest_good([4, 10, 32, 100], values, of_clips, only_first) == 4
    paired = left_out(0.01 * np.sqrt(500) * clips[:, :1] + 1e-4 * clips)
    assert intervals.smallest_good([4, 10, 32, 100], values, paired, every) == 32


@pytest.mark.parametrize("value", [0.0, 0.1, -0.2, float("nan"), float("inf")])
def test_deviations_that_are_alike_cannot_tell(value):
    got = estimate(value, np.zeros(100))
    assert not got.can_tell
    assert got.verdict() == "cannot tell"
    assert got.words().startswith("cannot tell")
    assert "excluded" not in got.words()
    assert "equivalent" not in got.words()


def test_one_video_tells_nothing():
    assert not estimate(0.3, np.array([0.1])).can_tell


def test_an_interval_ends_where_the_figure_does():
    free, cut = Estimate(0.98, 0.05, 99.0), Estimate(0.98, 0.05, 99.0, 0.0, (0.0, 1.0))
    assert free.interval()[1] > 1.0 == cut.interval()[1]
    assert cut.interval()[0] == free.interval()[0]


def test_a_label_whose_deviations_are_alike_is_not_resolved():
    p = intervals.p_values(np.array([0.3, 0.0]), np.zeros(2), np.ones(2))
    assert np.isnan(p[0])
    assert p[1] == 1.0
    assert not intervals.benjamini_hochberg(p, 0.1).any()

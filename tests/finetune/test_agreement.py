"""Figures of trainings: intervals against Welch's test, ranks against scipy, sentences for what they support."""

import numpy as np
import pytest
import scipy.stats

from balance.finetune import agreement
from balance.finetune.agreement import ArmScores
from balance.probe.intervals import Verdict

NUM_VIDEOS = 50


def arm(title, values, probe=0.5, *, clips=None, rule="neighbours", k=10):
    values = np.array(values)
    deviations = np.zeros(NUM_VIDEOS) if clips is None else clips
    return ArmScores(title, rule, k, 100, values, np.tile(deviations, (len(values), 1)), probe, np.zeros(NUM_VIDEOS))


def test_without_noise_of_clips_a_difference_is_welchs_test():
    one, other = [0.51, 0.55, 0.50], [0.42, 0.40, 0.47]
    found = agreement.difference(arm("a", one), arm("b", other))
    expected = scipy.stats.ttest_ind(one, other, equal_var=False)
    assert found.value == pytest.approx(np.mean(one) - np.mean(other))
    assert found.freedom == pytest.approx(expected.df)
    low, high = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((low, high))


def test_alike_trainings_leave_the_noise_of_clips_alone():
    rng = np.random.default_rng(1)
    of_clips = rng.standard_normal(NUM_VIDEOS) * 0.001
    found = agreement.difference(arm("a", [0.5, 0.5, 0.5], clips=of_clips), arm("b", [0.4, 0.4, 0.4]))
    jackknife = np.sqrt((NUM_VIDEOS - 1) / NUM_VIDEOS * np.square(of_clips - of_clips.mean()).sum())
    assert found.error == pytest.approx(jackknife)
    assert found.verdict() is Verdict.gain


def test_ranks_and_their_p_value_are_scipys():
    rng = np.random.default_rng(2)
    probe = rng.random(6)
    trained = probe + rng.normal(0, 0.2, 6)
    arms = [arm(str(i), [x, x + 1e-4], p) for i, (p, x) in enumerate(zip(probe, trained, strict=True))]
    found = agreement.agreement(arms, np.random.default_rng(0))
    expected = scipy.stats.spearmanr(probe, trained + 5e-5)
    assert found.spearman == pytest.approx(expected.statistic, abs=1e-6)
    assert found.kendall == pytest.approx(scipy.stats.kendalltau(probe, trained).statistic, abs=1e-6)
    test = scipy.stats.permutation_test(
        (probe,), lambda x: scipy.stats.spearmanr(x, trained).statistic, permutation_type="pairings"
    )
    assert found.p == pytest.approx(test.pvalue, abs=1e-6)


def test_an_order_is_claimed_only_where_errors_leave_one():
    values = np.linspace(0.3, 0.6, 6)
    clear = [arm(str(i), [x - 1e-3, x + 1e-3], x) for i, x in enumerate(values)]
    found = agreement.agreement(clear, np.random.default_rng(0))
    assert (found.spearman, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.words == (
        "the probe's order foretells training's: Spearman's ρ over 6 training sets is 1.00 [1.00, 1.00]"
    )
    noisy = [arm(str(i), [x - 0.5, x + 0.5], x) for i, x in enumerate(values)]
    assert "not resolved" in agreement.agreement(noisy, np.random.default_rng(0)).words
    reverse = [arm(str(i), [x - 1e-3, x + 1e-3], -x) for i, x in enumerate(values)]
    assert "the reverse" in agreement.agreement(reverse, np.random.default_rng(0)).words
    assert "too few" in agreement.agreement(clear[:3], np.random.default_rng(0)).words
    alike = [arm(str(i), [x, x], 0.5) for i, x in enumerate(values)]
    assert agreement.agreement(alike, np.random.default_rng(0)).words.startswith("cannot tell")

"""Ranking figures against scikit-learn, d′ against its definition, leaving out a clip against doing so."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from balance.probe.ranking_metrics import Ranking, d_prime, mean


def case(n=300, num_labels=40, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, num_labels)) < rng.uniform(0.01, 0.3, num_labels)
    scores = (rng.standard_normal((n, num_labels)) + truth).astype(np.float32)
    if decimals is not None:
        scores = scores.round(decimals)
    return scores, truth


def shifted(truth, prior):
    """Weights of clips with which a label is as frequent as its prior."""
    return np.where(truth, prior / truth.sum(), (1 - prior) / (~truth).sum())


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_figures_equal_scikit_learn_with_ties(decimals):
    scores, truth = case(decimals=decimals)
    prior = np.random.default_rng(1).uniform(0.01, 0.5, scores.shape[1])
    got = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32)), prior).figures()
    for label in range(scores.shape[1]):
        y, s = truth[:, label], scores[:, label]
        weights = shifted(y, prior[label])
        assert got.ap[label] == pytest.approx(average_precision_score(y, s), abs=1e-9)
        assert got.auc[label] == pytest.approx(roc_auc_score(y, s), abs=1e-9)
        assert got.ap_prior[label] == pytest.approx(average_precision_score(y, s, sample_weight=weights), abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_deviations_equal_the_figures_without_each_clip(decimals):
    """Also of a label with one positive clip: without it the mean is over the other labels."""
    scores, truth = case(n=40, num_labels=5, seed=3, decimals=decimals)
    truth[:, 4] = False
    truth[7, 4] = True
    truth[:, :4] |= np.arange(40)[:, None] % 11 == np.arange(4)
    prior = np.array([0.1, 0.3, 0.02, 0.2, 0.1])

    def means(kept):
        ap, ap_prior, auc = [], [], []
        for label in range(5):
            y, s = truth[kept, label], scores[kept, label]
            if y.any():
                ap.append(average_precision_score(y, s))
                ap_prior.append(average_precision_score(y, s, sample_weight=shifted(y, prior[label])))
                auc.append(roc_auc_score(y, s))
        d = np.sqrt(2) * scipy.stats.norm.ppf(np.mean(auc))
        return {"map": np.mean(ap), "map_prior": np.mean(ap_prior), "d_prime": d}

    ranking = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32)), prior)
    _, values, deviations = ranking.evaluate({"": np.arange(5)})
    every = np.arange(40)
    whole = means(every)
    of_label = ranking.without_each_clip(np.array([2]))
    for name, value in whole.items():
        assert values[name] == pytest.approx(value, abs=1e-9)
    for clip in every:
        without = means(every != clip)
        for name, value in without.items():
            assert deviations[name][clip] == pytest.approx(value - whole[name], abs=1e-9), (name, clip)
        kept = every != clip
        before, after = (average_precision_score(truth[x, 2], scores[x, 2]) for x in (every, kept))
        assert of_label[clip, 0] == pytest.approx(after - before, abs=1e-9)


def test_a_second_set_of_labels_has_its_own_mean():
    scores, truth = case(n=60, num_labels=6)
    truth |= np.arange(60)[:, None] % 7 == np.arange(6)
    sets = {"": np.array([0, 1, 2]), "_ancestors": np.array([3, 1, 5])}
    figures, values, deviations = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32))).evaluate(sets)
    assert values["map"] == pytest.approx(figures.ap[[0, 1, 2]].mean())
    assert values["map_ancestors"] == pytest.approx(figures.ap[[3, 1, 5]].mean())
    alone = Ranking(scores[:, [3, 1, 5]], scipy.sparse.csr_matrix(truth[:, [3, 1, 5]].astype(np.int32)))
    assert np.allclose(deviations["map_ancestors"], alone.evaluate({"": np.arange(3)})[2]["map"])


def test_labels_without_positives_or_negatives_are_undefined_and_left_out_of_the_mean():
    scores, truth = case(num_labels=4)
    truth[:, 1] = False
    truth[:, 2] = True
    got = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32))).figures()
    assert np.isnan(got.ap).tolist() == [False, True, True, False]
    assert mean(got.ap) == pytest.approx((got.ap[0] + got.ap[3]) / 2)
    assert np.isnan(mean(np.full(3, np.nan)))


def test_a_constant_score_has_the_labels_share_as_its_ap():
    truth = np.zeros((50, 1), dtype=np.int32)
    truth[:7] = 1
    got = Ranking(np.zeros((50, 1), dtype=np.float32), scipy.sparse.csr_matrix(truth)).figures()
    assert got.ap[0] == pytest.approx(7 / 50)
    assert got.auc[0] == pytest.approx(0.5)


def test_d_prime_is_the_distance_between_two_unit_normals():
    # by definition: AUC of N(d, 1) against N(0, 1) is Φ(d / √2)
    for d in (0.5, 1.7, 3.0):
        assert d_prime(np.array(scipy.stats.norm.cdf(d / np.sqrt(2)))) == pytest.approx(d)
    assert np.isnan(d_prime(np.array([0.0, 1.0]))).all()

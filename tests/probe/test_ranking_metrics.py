"""Ranking figures against scikit-learn, d′ against its definition."""

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from balance.probe.ranking_metrics import Ranking, d_prime, macro


def case(n=300, num_labels=40, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, num_labels)) < rng.uniform(0.01, 0.3, num_labels)
    scores = (rng.standard_normal((n, num_labels)) + truth).astype(np.float32)
    if decimals is not None:
        scores = scores.round(decimals)
    return scores, truth


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_figures_equal_scikit_learn_with_weights_and_ties(decimals):
    scores, truth = case(decimals=decimals)
    rng = np.random.default_rng(1)
    weights = rng.poisson(1.0, (len(scores), 5)).astype(np.float32)
    prior = rng.uniform(0.01, 0.5, scores.shape[1])
    got = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32))).figures(weights, prior)
    for b in range(weights.shape[1]):
        w = weights[:, b].astype(float)
        for label in range(scores.shape[1]):
            y, s = truth[:, label], scores[:, label]
            up, down = w[y].sum(), w[~y].sum()
            if up == 0:
                assert np.isnan(got.ap[b, label])
                assert np.isnan(got.auc[b, label])
                continue
            shifted = np.where(y, w * prior[label] / up, w * (1 - prior[label]) / down)
            assert got.ap[b, label] == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-9)
            assert got.auc[b, label] == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-9)
            assert got.ap_prior[b, label] == pytest.approx(
                average_precision_score(y, s, sample_weight=shifted), abs=1e-9
            )


def test_labels_without_positives_or_negatives_are_undefined_and_left_out_of_the_mean():
    scores, truth = case(num_labels=4)
    truth[:, 1] = False
    truth[:, 2] = True
    got = Ranking(scores, scipy.sparse.csr_matrix(truth.astype(np.int32))).figures()
    assert np.isnan(got.ap[0]).tolist() == [False, True, True, False]
    assert macro(got.ap)[0] == pytest.approx((got.ap[0, 0] + got.ap[0, 3]) / 2)
    assert np.isnan(macro(np.full((1, 3), np.nan)))[0]


def test_a_constant_score_has_the_labels_share_as_its_ap():
    truth = np.zeros((50, 1), dtype=np.int32)
    truth[:7] = 1
    got = Ranking(np.zeros((50, 1), dtype=np.float32), scipy.sparse.csr_matrix(truth)).figures()
    assert got.ap[0, 0] == pytest.approx(7 / 50)
    assert got.auc[0, 0] == pytest.approx(0.5)


def test_d_prime_is_the_distance_between_two_unit_normals():
    # by definition: AUC of N(d, 1) against N(0, 1) is Φ(d / √2)
    for d in (0.5, 1.7, 3.0):
        auc = scipy.stats.norm.cdf(d / np.sqrt(2))
        assert d_prime(np.array([[auc, auc]]))[0] == pytest.approx(d)
    # the mean of the AUCs comes first, not the mean of the d′
    mixed = d_prime(np.array([[0.6, 0.9]]))[0]
    assert mixed == pytest.approx(np.sqrt(2) * scipy.stats.norm.ppf(0.75))

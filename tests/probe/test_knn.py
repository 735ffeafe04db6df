"""The vote of the nearest clips against scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from balance.probe import knn
from tests.probe.test_logistic import data, training_set


@pytest.mark.parametrize("num_votes", [1, 7, 5000])
def test_votes_equal_a_brute_force_count(num_votes, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_ROWS", 50)
    vectors, truth = data()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(vectors)).astype(np.float32)
    examples = training_set(vectors, truth, weights=weights)
    features = examples.sample(np.arange(len(vectors))).numpy()
    queries = np.random.default_rng(2).standard_normal((120, features.shape[1])).astype(np.float32)
    got = knn.vote(examples, torch.from_numpy(queries), num_votes)
    found = NearestNeighbors(n_neighbors=min(num_votes, len(features)), metric="cosine", algorithm="brute")
    distance, rows = found.fit(features.astype(np.float64)).kneighbors(queries.astype(np.float64))
    votes = (np.maximum(1 - distance, 0) + 1e-6) * weights[rows]
    want = np.einsum("qv,qvl->ql", votes, truth[rows]) / votes.sum(axis=1, keepdims=True)
    assert np.abs(got - want).max() < 1e-4

"""Prototypes against their definition, and the network on what a linear probe cannot learn."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from balance.probe import heads
from tests.probe.test_logistic import data, everywhere, fit, training_set


def test_prototypes_are_the_mean_clip_of_each_label():
    vectors, truth = data()
    weights = np.random.default_rng(1).uniform(0.2, 3.0, len(vectors)).astype(np.float32)
    examples = training_set(vectors, truth, weights=weights)
    rows = examples.sample(np.arange(len(vectors))).numpy().astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    everyone = np.average(unit, axis=0, weights=weights)
    got = heads.prototypes(examples, torch.from_numpy(rows[:50].astype(np.float32)))
    for label in range(8):
        on = truth[:, label]
        centre = np.average(unit[on], axis=0, weights=weights[on]) - everyone
        assert np.allclose(got[:, label], unit[:50] @ centre / np.linalg.norm(centre), atol=1e-5)


def test_a_label_without_clips_has_a_constant_score():
    vectors, truth = data()
    truth[:, 3] = False
    examples = training_set(vectors, truth)
    assert not heads.prototypes(examples, examples.sample(np.arange(20)))[:, 3].any()


def test_the_network_learns_what_a_linear_probe_cannot_and_twice_the_same():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1500, 6)).astype(np.float32)
    truth = (vectors[:, :1] * vectors[:, 1:2] > 0) & np.ones((1500, 1), dtype=bool)
    truth = np.concatenate([truth, ~truth], axis=1)
    examples = training_set(vectors, truth)
    rows = examples.sample(np.arange(1500))
    first, again = (heads.network(examples, rows, 200, np.random.default_rng(7)) for _ in range(2))
    assert (first == again).all()
    linear = fit(examples, everywhere(2), 1e-3).scores(rows)
    assert average_precision_score(truth[:, 0], first[:, 0]) > 0.95
    assert average_precision_score(truth[:, 0], linear[:, 0]) < 0.7

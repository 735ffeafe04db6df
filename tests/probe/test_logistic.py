"""The fits against scikit-learn, column by column, and their freedom from how the rows are read."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from balance.probe.config import ProbeConfig
from balance.probe.features import BLOCK_ROWS, Space, TrainingSet
from balance.probe.logistic import Columns, Solver, fit
from balance.search.top_k import ArrayVectors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: threads that wait for each other on a busy machine cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(num_seeds=200, num_pool=1300, dim=24, num_labels=8, seed=0):
    """Crowded embeddings in which labels of 0.5 to 40 % are partly linear."""
    rng = np.random.default_rng(seed)
    num = num_seeds + num_pool
    rare = np.geomspace(0.01, 0.4, num_labels)
    truth = rng.random((num, num_labels)) < rare
    truth[:num_labels] |= np.eye(num_labels, dtype=bool)
    centres = rng.standard_normal((num_labels, dim))
    vectors = truth @ centres * 0.6 + rng.standard_normal((num, dim)) * rng.uniform(0.3, 1.5, dim) + 4.0
    return vectors.astype(np.float32), truth


def training_set(vectors, truth, num_seeds=200, weights=None, held_out=None, memory_bytes=1 << 30):
    pool = ArrayVectors(vectors[num_seeds:])
    space = Space.of(pool)
    return TrainingSet(
        space.standardise(vectors[:num_seeds]),
        pool,
        np.arange(len(vectors) - num_seeds),
        space,
        labels=scipy.sparse.csr_matrix(truth.astype(np.int32)),
        weights=np.ones(len(vectors), dtype=np.float32) if weights is None else weights,
        held_out=np.zeros((len(vectors), 0), dtype=bool) if held_out is None else held_out,
        device=CPU,
        memory_bytes=memory_bytes,
    )


def everywhere(num_labels):
    return Columns(np.arange(num_labels), np.full(num_labels, -1))


def reference(features, truth, penalty, weights=None):
    total = len(features) if weights is None else weights.sum()
    model = LogisticRegression(C=1.0 / (penalty * total), tol=1e-10, max_iter=20000)
    return model.fit(features, truth, sample_weight=weights)


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3, 1e-4])
def test_weights_and_map_equal_scikit_learn(penalty):
    vectors, truth = data()
    examples = training_set(vectors, truth)
    features = examples.sample(np.arange(len(vectors))).numpy()
    got = fit(examples, everywhere(8), penalty, steps=40, device=CPU)
    new, new_truth = data(seed=1)
    new = Space.of(ArrayVectors(vectors[200:])).standardise(new)
    scores = got.scores(torch.from_numpy(new)).numpy()
    ours, theirs = [], []
    for c in range(8):
        want = reference(features, truth[:, c], penalty)
        size = np.abs(want.coef_).max()
        assert np.abs(got.weight[:, c].numpy() - want.coef_[0]).max() < 2e-3 * size
        assert float(got.bias[c]) == pytest.approx(float(want.intercept_[0]), abs=5e-3)
        ours.append(average_precision_score(new_truth[:, c], scores[:, c]))
        theirs.append(average_precision_score(new_truth[:, c], want.decision_function(new)))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.001)
    assert got.slope.max() < 1e-4


def test_the_default_number_of_steps_is_enough_for_the_map():
    vectors, truth = data()
    examples = training_set(vectors, truth)
    features = examples.sample(np.arange(len(vectors))).numpy()
    new, new_truth = data(seed=1)
    new = Space.of(ArrayVectors(vectors[200:])).standardise(new)
    got = (
        fit(examples, everywhere(8), 1e-4, steps=ProbeConfig().steps, device=CPU).scores(torch.from_numpy(new)).numpy()
    )
    want = [reference(features, truth[:, c], 1e-4).decision_function(new) for c in range(8)]
    ours = np.mean([average_precision_score(new_truth[:, c], got[:, c]) for c in range(8)])
    theirs = np.mean([average_precision_score(new_truth[:, c], want[c]) for c in range(8)])
    assert ours == pytest.approx(theirs, abs=0.005)


def test_row_weights_and_folds_equal_scikit_learn_on_the_rows_that_remain():
    vectors, truth = data()
    rng = np.random.default_rng(2)
    weights = rng.uniform(0.2, 3.0, len(vectors)).astype(np.float32)
    held_out = np.arange(len(vectors))[:, None] % 7 == np.arange(3)
    examples = training_set(vectors, truth, weights=weights, held_out=held_out)
    features = examples.sample(np.arange(len(vectors))).numpy()
    columns = Columns(np.array([3, 5, 6, 3, 7]), np.array([-1, -1, 0, 2, 2]))
    got = fit(examples, columns, 1e-2, steps=40, device=CPU)
    for c, (label, fold) in enumerate(zip(columns.labels, columns.folds, strict=True)):
        kept = np.ones(len(vectors), dtype=bool) if fold < 0 else ~held_out[:, fold]
        want = reference(features[kept], truth[kept, label], 1e-2, weights[kept].astype(float))
        assert np.abs(got.weight[:, c].numpy() - want.coef_[0]).max() < 2e-3 * np.abs(want.coef_).max()


def test_a_path_of_penalties_ends_where_a_fresh_fit_does():
    vectors, truth = data()
    examples = training_set(vectors, truth)
    solver = Solver(examples, everywhere(8), 1.0, device=CPU)
    for penalty in (1.0, 0.1, 0.01, 0.001):
        solver.penalise(penalty)
        for _ in range(12):
            solver.step()
    fresh = fit(examples, everywhere(8), 0.001, steps=40, device=CPU)
    assert torch.allclose(solver.result().weight, fresh.weight, atol=2e-3 * float(fresh.weight.abs().max()))
    assert solver.num_passes == 49


def test_labels_without_positive_or_negative_rows_get_a_constant_score():
    vectors, truth = data()
    truth[:, 2], truth[:, 4] = False, True
    got = fit(training_set(vectors, truth), everywhere(8), 1e-2, steps=10, device=CPU)
    assert got.trained.tolist() == [True, True, False, True, False, True, True, True]
    assert not got.weight[:, [2, 4]].any()
    assert torch.isfinite(got.bias).all()
    assert float(got.bias[2]) < -5 < 5 < float(got.bias[4])


def test_rows_read_anew_in_every_pass_give_the_same_bytes_as_rows_kept():
    vectors, truth = data(num_pool=2 * BLOCK_ROWS)
    kept = fit(training_set(vectors, truth), everywhere(8), 1e-3, steps=6, device=CPU)
    read = fit(training_set(vectors, truth, memory_bytes=0), everywhere(8), 1e-3, steps=6, device=CPU)
    assert torch.equal(kept.weight, read.weight)
    assert torch.equal(kept.bias, read.bias)


def test_the_history_only_speeds_up_a_strictly_convex_descent():
    vectors, truth = data()
    examples = training_set(vectors, truth)
    features = examples.sample(np.arange(len(vectors)))
    target = torch.from_numpy(truth.astype(np.float32))

    def loss(model):
        bce = torch.nn.functional.binary_cross_entropy_with_logits(model.scores(features), target, reduction="none")
        return bce.mean(0) + 1e-3 / 2 * (model.weight**2).sum(0)

    solver = Solver(examples, everywhere(8), 1e-3, device=CPU)
    losses = [loss(solver.result())]
    for _ in range(15):
        solver.step()
        losses.append(loss(solver.result()))
    for before, after in itertools.pairwise(losses):
        assert (after <= before + 1e-5).all()
    assert (losses[-1] < 0.95 * losses[0]).all()

"""The fits against scikit-learn, column by column, and their freedom from how the rows are read."""

import numpy as np
import pytest
import scipy.sparse
import scipy.special
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from balance.probe import logistic
from balance.probe.features import BLOCK_ROWS, Space, TrainingSet
from balance.probe.logistic import SETTLED, Columns, Solver
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


def fit(examples, columns, penalty):
    """Settled on the seeds and two hundred pool clips."""
    watched = examples.sample(np.arange(min(400, examples.shape[0])))
    return logistic.fit(examples, columns, penalty, watched, passes=600, device=CPU)


def reference(features, truth, penalty, weights=None):
    total = len(features) if weights is None else weights.sum()
    model = LogisticRegression(C=1.0 / (penalty * total), tol=1e-10, max_iter=20000)
    return model.fit(features, truth, sample_weight=weights)


def newton(features, truth, penalty):
    """The exact answer in float64, in the span of the rows: Newton's steps, halved while the loss rises."""
    features = features.astype(np.float64)
    _, sizes, directions = np.linalg.svd(features, full_matrices=False)
    directions = directions[sizes > 1e-9 * sizes[0]]
    rows = np.hstack([features @ directions.T, np.ones((len(features), 1))])
    ridge = np.append(np.full(len(directions), penalty), 0.0)
    model = np.append(np.zeros(len(directions)), np.log(truth.mean() / (1 - truth.mean())))

    def loss(model):
        margins = rows @ model
        return (np.logaddexp(0, margins) - truth * margins).mean() + (ridge * model**2).sum() / 2

    for _ in range(100):
        p = scipy.special.expit(rows @ model)
        gradient = rows.T @ (p - truth) / len(rows) + ridge * model
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows / len(rows) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < 1e-13:
            return directions.T @ model[:-1], model[-1]
        while loss(model - step) > loss(model) - 0.1 * gradient @ step and np.abs(step).max() > 1e-9:
            step = step / 2
        model = model - step
    raise AssertionError("not converged")


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3, 1e-4])
def test_weights_and_map_equal_scikit_learn(penalty, few, monkeypatch):
    monkeypatch.setattr(logistic, "FEW_VALUES", logistic.FEW_VALUES if few else 0)
    vectors, truth = data()
    examples = training_set(vectors, truth)
    features = examples.sample(np.arange(len(vectors))).numpy()
    got = fit(examples, everywhere(8), penalty)
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
    assert got.left.max() <= SETTLED


GRID = [10 ** (-i / 2) for i in range(13)]
# rows, dims, places of the λ's in the grid; benchmarks/probe_fits.py goes through all
SELECTION = [
    (60, 60, (0, 4, 12)),
    (60, 2048, (2, 7, 12)),
    (200, 512, (5, 12)),
    (700, 96, (6, 9, 12)),
    (800, 300, (3, 8)),
    (2500, 60, (8, 12)),
]


@pytest.mark.parametrize("path", [True, False])
@pytest.mark.parametrize(("rows", "dim", "places"), SELECTION)
def test_every_size_and_penalty_ends_at_the_exact_answer(rows, dim, places, path):
    """Also where there are more dimensions than rows, and where the classes can be parted (small λ): from a path of
    fits, and from zero."""
    vectors, truth = data(rows // 3, rows - rows // 3, dim, num_labels=4, seed=rows + dim)
    examples = training_set(vectors, truth, rows // 3)
    features = examples.sample(np.arange(rows)).numpy()
    new, new_truth = data(100, 900, dim, num_labels=4, seed=7)
    new = Space.of(ArrayVectors(vectors[rows // 3 :])).standardise(new)
    watched = examples.sample(np.arange(rows // 3))
    solver = Solver(examples, everywhere(4), watched, device=CPU)
    for i in range(max(places) + 1) if path else places:
        solver = solver.fork() if path else Solver(examples, everywhere(4), watched, device=CPU)
        solver.settle(GRID[i], 600)
        assert solver.finished
        if i in places:
            scores = solver.result().scores(torch.from_numpy(new)).numpy()
            for c in range(4):
                weight, bias = newton(features, truth[:, c], GRID[i])
                want = average_precision_score(new_truth[:, c], new.astype(np.float64) @ weight + bias)
                assert average_precision_score(new_truth[:, c], scores[:, c]) == pytest.approx(want, abs=0.005)


def test_few_rows_finish_whatever_the_fit_of_other_rows_said():
    """Where there are more dimensions than rows, Newton's steps from there did not end within 600 passes."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, 400)
    vectors = np.maximum(0.1 * rng.standard_normal((10, 400))[classes] + rng.standard_normal((400, 400)), 0)
    vectors, truth = vectors.astype(np.float32), np.eye(10, dtype=bool)[classes]
    watched = torch.from_numpy(Space.of(ArrayVectors(vectors)).standardise(vectors))
    solvers = []
    for rows in (np.arange(200), np.r_[0:20, 200:380]):
        solver = Solver(training_set(vectors[rows], truth[rows], 20), everywhere(10), watched, device=CPU)
        if solvers:
            before = solvers[0].result()
            solver.begin(np.arange(10), before.weight.numpy(), before.bias.numpy(), 0.001)
        solver.settle(0.001, 600)
        solvers.append(solver)
    assert all(solver.finished and solver.num_passes < 150 for solver in solvers)


def test_a_fit_that_may_not_finish_says_so():
    vectors, truth = data(60, 120, 256)
    examples = training_set(vectors, truth, 60)
    solver = Solver(examples, everywhere(8), examples.sample(np.arange(60)), device=CPU)
    solver.settle(1e-6, 12)
    assert not solver.finished
    assert solver.result().left.max() > SETTLED
    assert solver.num_passes < 100


def test_row_weights_and_folds_equal_scikit_learn_on_the_rows_that_remain():
    vectors, truth = data()
    rng = np.random.default_rng(2)
    weights = rng.uniform(0.2, 3.0, len(vectors)).astype(np.float32)
    held_out = np.arange(len(vectors))[:, None] % 7 == np.arange(3)
    examples = training_set(vectors, truth, weights=weights, held_out=held_out)
    features = examples.sample(np.arange(len(vectors))).numpy()
    columns = Columns(np.array([3, 5, 6, 3, 7]), np.array([-1, -1, 0, 2, 2]))
    got = fit(examples, columns, 1e-2)
    for c, (label, fold) in enumerate(zip(columns.labels, columns.folds, strict=True)):
        kept = np.ones(len(vectors), dtype=bool) if fold < 0 else ~held_out[:, fold]
        want = reference(features[kept], truth[kept, label], 1e-2, weights[kept].astype(float))
        assert np.abs(got.weight[:, c].numpy() - want.coef_[0]).max() < 2e-3 * np.abs(want.coef_).max()


def test_a_fork_goes_its_own_way():
    vectors, truth = data()
    examples = training_set(vectors, truth)
    solver = Solver(examples, everywhere(8), examples.sample(np.arange(400)), device=CPU)
    solver.settle(0.1, 600)
    before = solver.result().weight.clone()
    other = solver.fork()
    other.settle(0.001, 600)
    assert torch.equal(solver.result().weight, before)
    fresh = fit(examples, everywhere(8), 0.001)
    assert torch.allclose(other.result().weight, fresh.weight, atol=2e-3 * float(fresh.weight.abs().max()))


def test_labels_without_positive_or_negative_rows_get_a_constant_score():
    vectors, truth = data()
    truth[:, 2], truth[:, 4] = False, True
    got = fit(training_set(vectors, truth), everywhere(8), 1e-2)
    assert got.trained.tolist() == [True, True, False, True, False, True, True, True]
    assert not got.weight[:, [2, 4]].any()
    assert torch.isfinite(got.bias).all()
    assert float(got.bias[2]) < -5 < 5 < float(got.bias[4])


def test_rows_read_anew_in_every_pass_give_the_same_bytes_as_rows_kept(monkeypatch):
    vectors, truth = data(num_pool=2 * BLOCK_ROWS)
    monkeypatch.setattr(logistic, "FEW_VALUES", 0)
    kept = fit(training_set(vectors, truth), everywhere(8), 1e-3)
    read = fit(training_set(vectors, truth, memory_bytes=0), everywhere(8), 1e-3)
    assert torch.equal(kept.weight, read.weight)
    assert torch.equal(kept.bias, read.bias)


def test_curvature_computed_anew_ends_where_curvature_kept_does(monkeypatch):
    vectors, truth = data()
    weights = np.random.default_rng(2).uniform(0.2, 3.0, len(vectors)).astype(np.float32)
    held_out = np.arange(len(vectors))[:, None] % 7 == np.arange(3)
    examples = training_set(vectors, truth, weights=weights, held_out=held_out)
    columns = Columns(np.arange(8), np.repeat([-1, 0, 1, 2], 2))
    kept = fit(examples, columns, 1e-3)
    monkeypatch.setattr(logistic, "CURVATURE_VALUES", 0)
    anew = fit(examples, columns, 1e-3)
    assert torch.allclose(kept.weight, anew.weight, atol=2e-3 * float(kept.weight.abs().max()))

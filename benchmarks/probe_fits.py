"""The probe's fits beside scikit-learn's, over rows x dims x the whole grid of λ: mAP must agree within 0.005.

    python benchmarks/probe_fits.py [--rows 60 200 700 2000 6000 20000] [--dims 60 256 1024 2048] [--labels 3]

Generated crowded embeddings with labels of 1 to 40 %, partly linear; mAP of 2,000 new clips. Ours: a path from the
largest λ down, as the probe goes, and (`--fresh`) each λ from zero. scikit-learn: LogisticRegression by Newton's method
with Cholesky factors, in float64, in the span of the rows where there are more dims than rows (the same optimum). Last
line: JSON with `worst_map_difference`, `unfinished_fits` and the number of fits.
"""

from __future__ import annotations

import argparse
import json
import warnings

import numpy as np
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from balance.probe.config import ProbeConfig
from balance.probe.features import Space, TrainingSet
from balance.probe.logistic import Columns, Solver
from balance.search.top_k import ArrayVectors

CPU = torch.device("cpu")


def clips(num: int, dim: int, num_labels: int, rng_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (num, dim) float32 and labels (num, num_labels) bool; every label is on some clip and off another."""
    rng = np.random.default_rng(rng_seed)
    truth = rng.random((num, num_labels)) < np.geomspace(0.01, 0.4, num_labels)
    truth[:num_labels] |= np.eye(num_labels, dtype=bool)
    truth[num_labels : 2 * num_labels] &= ~np.eye(num_labels, dtype=bool)
    centres = np.random.default_rng(dim).standard_normal((num_labels, dim))
    noise = rng.standard_normal((num, dim)) * np.random.default_rng(dim + 1).uniform(0.3, 1.5, dim)
    return (truth @ centres * 0.6 + noise + 4.0).astype(np.float32), truth


def theirs(features: np.ndarray, truth: np.ndarray, penalty: float, new: np.ndarray) -> np.ndarray:
    """scikit-learn's scores of new clips, (m, labels)."""
    if features.shape[1] > len(features):
        _, sizes, directions = np.linalg.svd(features, full_matrices=False)
        directions = directions[sizes > 1e-10 * sizes[0]]
        features, new = features @ directions.T, new @ directions.T
    scores = []
    for column in truth.T:
        model = LogisticRegression(
            C=1 / (penalty * len(features)), solver="newton-cholesky", tol=1e-8, max_iter=1000
        ).fit(features, column)
        scores.append(model.decision_function(new))
    return np.stack(scores, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 200, 700, 2000, 6000, 20000])
    parser.add_argument("--dims", type=int, nargs="+", default=[60, 256, 1024, 2048])
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="fit each λ from zero, not along a path")
    given = parser.parse_args()
    config = ProbeConfig()
    worst, unfinished, num_fits = 0.0, 0, 0
    columns = Columns(np.arange(given.labels), np.full(given.labels, -1))
    for rows in given.rows:
        for dim in given.dims:
            vectors, truth = clips(rows, dim, given.labels, rows + dim)
            new_vectors, new_truth = clips(2000, dim, given.labels, 7)
            num_seeds = rows // 3
            pool = ArrayVectors(vectors[num_seeds:])
            space = Space.of(pool)
            examples = TrainingSet(
                space.standardise(vectors[:num_seeds]),
                pool,
                np.arange(rows - num_seeds),
                space,
                labels=scipy.sparse.csr_matrix(truth.astype(np.int32)),
                weights=np.ones(rows, dtype=np.float32),
                held_out=np.zeros((rows, 0), dtype=bool),
                device=CPU,
                memory_bytes=config.memory_bytes,
            )
            features, new = (space.standardise(x) for x in (vectors, new_vectors))
            watched = torch.from_numpy(features[:num_seeds])
            solver = Solver(examples, columns, watched, device=CPU)
            differences = []
            for penalty in config.penalties:
                solver = Solver(examples, columns, watched, device=CPU) if given.fresh else solver.fork()
                solver.settle(penalty, config.steps)
                ours = solver.result().scores(torch.from_numpy(new)).numpy()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    want = theirs(features.astype(np.float64), truth, penalty, new.astype(np.float64))
                maps = [np.mean([average_precision_score(t, s) for t, s in zip(new_truth.T, x.T, strict=True)])
                        for x in (ours, want)]  # fmt: skip
                differences.append(abs(float(maps[0] - maps[1])))
                unfinished += not solver.finished
                num_fits += 1
            worst = max(worst, *differences)
            shown = " ".join(f"{x:.4f}" for x in differences)
            print(f"{rows:6,} x {dim:5,}: {shown}  ({solver.num_passes} passes)", flush=True)
    print(json.dumps({"worst_map_difference": worst, "unfinished_fits": unfinished, "num_fits": num_fits}))


if __name__ == "__main__":
    main()

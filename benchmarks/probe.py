"""The probe's speed and correctness: one large training set, choice of λ included, and small ones beside scikit-learn.

    python benchmarks/probe.py [--seeds 22160] [--pool 200000] [--dim 512] [--labels 527] [--threads 2]

Large: generated embeddings (decaying spectrum, Zipf labels, 2.2 labels per clip) in a file, read in batches; one fit
of the probe's table: the path over λ on held-out seeds, then the fit and the held-out figures. Small: macro mAP at the
same λ of this fit and of scikit-learn's LogisticRegression. Last line: JSON with `seconds`, `cpu_seconds`,
`seconds_per_pass`, `peak_rss_bytes` and `map_difference` (the largest over the λ's).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from balance.data.flat_vectors import FlatVectors
from balance.probe import training_sets
from balance.probe.config import Judge, ProbeConfig
from balance.probe.data import ProbeData, Side
from balance.probe.features import BLOCK_ROWS
from balance.probe.logistic import Columns, fit
from balance.probe.ranking_metrics import Ranking, mean
from balance.probe.runner import Probe
from balance.records import Labels
from balance.search.top_k import ArrayVectors


class World:
    """Clips of one generator: label centres in families, on top of noise with a decaying spectrum."""

    def __init__(self, dim: int, num_labels: int) -> None:
        rng = np.random.default_rng(0)
        self.dim, self.num_labels = dim, num_labels
        self.spectrum = np.arange(1, dim + 1) ** -0.35
        families = rng.standard_normal((max(1, num_labels // 13), dim))
        centres = (
            0.7 * rng.standard_normal((num_labels, dim)) + 0.7 * families[rng.integers(0, len(families), num_labels)]
        )
        self.centres = (centres * self.spectrum**0.5).astype(np.float32)
        self.prior = np.arange(1, num_labels + 1) ** -0.9
        self.names = tuple(sorted(f"/m/{i:04d}" for i in range(num_labels)))

    def labels(self, num: int, rng: np.random.Generator, *, balanced: bool) -> Labels:
        share = self.prior ** (0.35 if balanced else 1.0)
        sizes = 1 + rng.poisson(1.2, num)
        codes = rng.choice(self.num_labels, sizes.sum(), p=share / share.sum())
        pairs = np.unique(np.repeat(np.arange(num), sizes) * self.num_labels + codes)
        offsets = np.searchsorted(pairs // self.num_labels, np.arange(num + 1))
        return Labels(self.names, offsets.astype(np.int64), (pairs % self.num_labels).astype(np.int32))

    def vectors(self, labels: Labels, rng: np.random.Generator) -> np.ndarray:
        sound = labels.matrix().astype(np.float32)
        sound.data = (rng.gamma(2, 0.5, sound.nnz) * 0.55).astype(np.float32)
        noise = rng.standard_normal((len(labels), self.dim), dtype=np.float32) * self.spectrum.astype(np.float32)
        return np.asarray(sound @ self.centres + 3.0 * noise + 0.5, dtype=np.float32)

    def side(self, num: int, rng: np.random.Generator, file: Path, *, balanced: bool) -> Side:
        labels = self.labels(num, rng, balanced=balanced)
        with open(file, "wb") as stream:
            for start in range(0, num, 20_000):
                rows = np.arange(start, min(start + 20_000, num))
                self.vectors(labels.take(rows), rng).tofile(stream)
        vectors = FlatVectors(os.open(file, os.O_RDONLY), 0, (num, self.dim), file.name, None)
        return Side(vectors, labels, np.arange(num))


def large(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    world = World(given.dim, given.labels)
    rng = np.random.default_rng(1)
    problem = ProbeData(
        seeds=world.side(given.seeds, rng, folder / "seeds", balanced=True),
        pool=world.side(given.pool, rng, folder / "pool", balanced=False),
        evaluation=world.side(max(10, given.seeds // 10), rng, folder / "eval", balanced=False),
        chosen=np.full((given.seeds, 1), -1, dtype=np.int32),
        same_space=False,
        fingerprint="benchmark",
        names={},
        missing={},
        clips={},
        choosing=ArrayVectors(np.zeros((given.pool, 1), dtype=np.float32)),
    )
    config = ProbeConfig(judge=Judge[given.judge])
    started, cpu = time.monotonic(), time.process_time()
    steps: list[str] = []
    probe = Probe(
        problem,
        config,
        seed=0,
        device=torch.device("cpu"),
        cache=folder / "cells",
        progress=lambda w, _: steps.append(w),
    )
    rows = np.arange(given.pool)
    chooser = rng.integers(0, given.seeds, given.pool)  # each clip came with one seed and leaves with it
    arm = training_sets.Arm(
        training_sets.NEIGHBOURS, training_sets.NEIGHBOURS, 9, rows, probe.fitter.folds[chooser].astype(np.int8)
    )
    judge = probe.judge_for([arm])
    fit_result = probe.fit(arm, judge, probe.penalty([arm], judge, None))
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    size = f"{given.seeds:,} + {given.pool:,} clips x {given.dim} x {given.labels} labels"
    print(f"{size}: {seconds:.1f} s ({cpu_seconds:.0f} s of cores)")
    print(f"  λ = {fit_result.penalty:g} of " + ", ".join(f"{a:g}: {b:.4f}" for a, b in fit_result.path))
    print(f"  {len(steps)} passes; the next step would move a label's scores by at most {fit_result.unfinished:.1%}")
    again = time.monotonic()
    for _, block in probe.fitter.training_set(arm).blocks():
        block.sum()
    print(f"  reading and standardising the rows once: {time.monotonic() - again:.1f} s")
    return {
        "seconds": seconds,
        "seconds_per_pass": seconds / len(steps),
        "num_passes": len(steps),
        "penalty": fit_result.penalty,
    }


def small() -> float:
    """The largest difference in macro mAP to scikit-learn over three λ's."""
    world = World(64, 20)
    rng = np.random.default_rng(2)
    labels, new = (world.labels(n, rng, balanced=True) for n in (3000, 2000))
    vectors, new_vectors = world.vectors(labels, rng), world.vectors(new, rng)
    none = ProbeData(
        seeds=Side(ArrayVectors(vectors[:500]), labels.take(np.arange(500)), np.arange(500)),
        pool=Side(ArrayVectors(vectors[500:]), labels.take(np.arange(500, 3000)), np.arange(2500)),
        evaluation=Side(ArrayVectors(new_vectors), new, np.arange(2000)),
        chosen=np.full((500, 1), -1, dtype=np.int32),
        same_space=False,
        fingerprint="small",
        names={},
        missing={},
        clips={},
        choosing=ArrayVectors(vectors[500:]),
    )
    config = ProbeConfig()
    probe = Probe(none, config, seed=0, device=torch.device("cpu"), cache=Path("/nonexistent"))
    examples = probe.fitter.training_set(training_sets.whole_pool(2500, weighted=False))
    features = np.concatenate([b.numpy() for _, b in examples.blocks()])
    queries = probe.fitter.space.standardise(new_vectors)
    truth, new_truth = examples.labels.toarray(), new.matrix()
    worst = 0.0
    for penalty in (1e-2, 1e-3, 1e-4):
        columns = Columns(np.arange(20), np.full(20, -1))
        watched = torch.from_numpy(features[:500])
        ours = fit(examples, columns, penalty, watched, passes=config.steps, device=torch.device("cpu"))
        theirs = np.stack(
            [
                LogisticRegression(C=1 / (penalty * len(features)), max_iter=5000, tol=1e-8)
                .fit(features, truth[:, c])
                .decision_function(queries)
                for c in range(20)
            ],
            axis=1,
        )
        maps = [
            mean(Ranking(np.asarray(s, dtype=np.float32), new_truth).figures().ap)
            for s in (ours.scores(torch.from_numpy(queries)).numpy(), theirs)
        ]
        print(f"  λ = {penalty:g}: mAP {maps[0]:.5f}, scikit-learn {maps[1]:.5f}")
        worst = max(worst, abs(maps[0] - maps[1]))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=22_160)
    parser.add_argument("--pool", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--labels", type=int, default=527)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judge", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = large(given, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {**figures, "peak_rss_bytes": peak, "map_difference": small()}
    print(f"  peak memory {peak / 2**30:.2f} GiB; blocks of {BLOCK_ROWS:,} rows")
    print(json.dumps({k: round(v, 6) for k, v in figures.items()}))


if __name__ == "__main__":
    main()

"""The probe's cells: for every training set a choice of λ, a fit, held-out figures, and at the very end figures.

In: a `Problem` and its arms; out: `Table`. Order is the point: all choices (λ, K) are made on held-out seeds, 5-fold,
the same folds for all arms; `dataset.eval` is read once, after them. Every cell is one file in the cache, so a stopped
probe goes on at its next cell. Price of speed: above JUDGE_ALL rows x labels each label is judged in one fold only
(`judge`), which makes a path over λ as dear as one fit of all labels instead of five.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from balance.data.vipant_index import index_weights
from balance.errors import UserError
from balance.probe import knn, results, training_sets
from balance.probe.bootstrap import Estimate, against_draws, estimate, resample, smallest_good
from balance.probe.config import Judge, ProbeConfig
from balance.probe.data import Problem, read_runs
from balance.probe.features import BLOCK_ROWS, Space, TrainingSet
from balance.probe.logistic import Columns, Fit, Solver
from balance.probe.ranking_metrics import Ranking, macro
from balance.probe.results import READINGS, Cell, Reading, Table
from balance.probe.training_sets import Arm
from balance.records import Float32, Float64, Labels
from balance.runtime import files

log = logging.getLogger(__name__)

FORMAT = 2  # of the cached cells
JUDGE_ALL = 20_000_000  # training rows x labels up to which every label is judged in every fold
PATH_TOLERANCE = 1e-4  # loss still to be gained, as a share of a constant score's: enough to rank λ
PATH_STEPS = 6  # at most, for each λ
PATIENCE = 2  # decades in a row that are worse than the best end the path,
CLEARLY_WORSE = 0.005  # … or one that is worse by so much mAP


class Probe:
    """Runs the cells of one problem. cache: folder of finished cells; progress: called with (what, cells done)."""

    def __init__(
        self,
        problem: Problem,
        config: ProbeConfig,
        *,
        seed: int,
        device: torch.device,
        cache: Path,
        progress: Callable[[str, int], None] | None = None,
    ) -> None:
        self.problem, self.config, self.seed, self.device, self.cache = problem, config, seed, device, cache
        self._progress = progress or (lambda what, done: None)
        self.space = Space.of(problem.pool.vectors)
        self._seeds = self.space.standardise(problem.seeds.vectors.read(0, len(problem.seeds)))
        self._seed_truth = problem.seeds.labels.matrix()
        self._pool_truth = problem.pool.labels.matrix()
        self.num_labels = len(problem.label_ids)
        if len(problem.seeds) < config.folds:
            raise UserError(
                f"probe.folds={config.folds}: there are only {len(problem.seeds)} seeds; type probe.folds=2"
            )
        rng = np.random.default_rng([seed, 0])
        self.folds = training_sets.fold_seeds(problem.seeds.labels, problem.seeds.groups, config.folds, rng)
        self._heldout_weights = resample(problem.seeds.groups, config.bootstrap, np.random.default_rng([seed, 11]))
        self._pool_weights: Float32 | None = None

    # -- the arms ------------------------------------------------------------------------------------------------

    def arms(self) -> list[Arm]:
        """Every training set of the table, each selection rule followed by its draws."""
        config, num_pool = self.config, len(self.problem.pool)
        out = [training_sets.seeds_alone()]
        if config.k[-1] > self.problem.chosen.shape[1]:
            raise UserError(
                f"probe.k={config.k}: only {self.problem.chosen.shape[1]} neighbours a seed are known; leave out larger"
            )
        chosen = [training_sets.neighbours(self.problem.chosen, self.folds, k) for k in config.k]
        chosen += read_runs(self.problem, config.runs, self.folds)
        for arm in chosen:
            out.append(arm)
            out += training_sets.random_draws(arm, num_pool, config.draws, self.seed)
            if config.stratified:
                out += training_sets.stratified_draws(arm, self.problem.pool.labels, config.draws, self.seed)
        out += [training_sets.whole_pool(num_pool, weighted=False), training_sets.whole_pool(num_pool, weighted=True)]
        return out

    def judge_for(self, table: Sequence[Arm]) -> Judge:
        """`probe.judge` with `auto` resolved by the largest training set: one answer for all arms of a table."""
        if self.config.judge is not Judge.auto:
            return self.config.judge
        rows = len(self.problem.seeds) + max(len(arm.rows) for arm in table)
        return Judge.all if rows * self.num_labels <= JUDGE_ALL else Judge.one

    def training_set(self, arm: Arm) -> TrainingSet:
        """The rows of an arm: seeds, then its pool clips."""
        num_seeds = len(self.problem.seeds)
        folds = np.arange(self.config.folds)
        held_out = np.concatenate([self.folds[:, None] == folds, arm.leaves[:, None] == folds])
        weights = np.ones(num_seeds + len(arm.rows), dtype=np.float32)
        if arm.weighted:
            if self._pool_weights is None:
                self._pool_weights = _sampling_weights(self.problem.seeds.labels, self.problem.pool.labels)
            at = np.concatenate([np.arange(num_seeds), num_seeds + arm.rows])
            weights = self._pool_weights[at] / self._pool_weights[at].mean()
        return TrainingSet(
            self._seeds,
            self.problem.pool.vectors,
            arm.rows,
            self.space,
            labels=_stack(self._seed_truth, self._pool_truth[arm.rows]),
            weights=weights.astype(np.float32),
            held_out=held_out,
            device=self.device,
            memory_bytes=self.config.memory_bytes,
        )

    # -- held-out seeds ------------------------------------------------------------------------------------------

    def heldout_columns(self, judge: Judge) -> Columns:
        """The (label, fold) pairs in which labels are judged: all, or for each label the fold with most positives."""
        positives = np.stack(
            [np.asarray(self._seed_truth[self.folds == f].sum(axis=0)).ravel() for f in range(self.config.folds)]
        )  # (F, L)
        known = positives.sum(axis=0) > 0
        pairs = np.full(positives.shape, judge is Judge.all)
        if judge is Judge.one:
            pairs[positives.argmax(axis=0), np.arange(self.num_labels)] = True
        folds, labels = np.nonzero(pairs & known)
        return Columns(labels.astype(np.int64), folds.astype(np.int64))

    def _heldout(self, fit: Fit, columns: Columns) -> Ranking:
        """The ranking of the held-out seeds by their folds' fits."""
        scores = np.full((len(self._seeds), self.num_labels), -np.inf, dtype=np.float32)
        judged = np.zeros(scores.shape, dtype=bool)
        for fold, at in columns.slices():
            mine = np.flatnonzero(self.folds == fold)
            features = torch.from_numpy(self._seeds[mine]).to(self.device)
            values = torch.addmm(fit.bias[at], features, fit.weight[:, at]).cpu().numpy()
            scores[np.ix_(mine, columns.labels[at])] = values
            judged[np.ix_(mine, columns.labels[at])] = True
        # A label judged in one fold: the other folds' seeds come last (−inf) as negatives, where AP does not see them.
        truth = self._seed_truth.multiply(judged).tocsr()
        truth.eliminate_zeros()
        return Ranking(scores, truth)

    def choose_penalty(self, examples: TrainingSet, columns: Columns, what: str, done: int) -> tuple[Float64, Solver]:
        """λ's with their held-out macro mAP, (p, 2), λ descending, and the fit at the best of them.

        Every second λ of the grid from the largest down, until PATIENCE in a row are worse than the best or one clearly
        is; then the two beside the best. Each starts from the next larger one: a fit that starts from a smaller λ has
        unlearnt noise to forget and needs several times the steps.
        """
        grid = self.config.penalties
        tried: dict[int, tuple[float, Solver]] = {}

        def judge(i: int, after: int | None) -> None:
            if after is None:
                solver = Solver(examples, columns, grid[i], device=self.device)
            else:
                solver = tried[after][1].fork()
                solver.penalise(grid[i])
            for step in range(PATH_STEPS):
                self._progress(f"{what}: λ = {grid[i]:g}, step {step + 1}", done)
                solver.step()
                if np.quantile(solver.result().slope, 0.9) <= PATH_TOLERANCE:
                    break
            score = float(macro(self._heldout(solver.result(), columns).figures().ap)[0])
            tried[i] = (-np.inf if np.isnan(score) else score, solver)

        def best() -> int:
            return max(tried, key=lambda i: (tried[i][0], -i))

        before = None
        for i in sorted({*range(0, len(grid), 2), len(grid) - 1}):
            judge(i, before)
            before = i
            top = best()
            if sum(j > top for j in tried) >= PATIENCE or tried[i][0] < tried[top][0] - CLEARLY_WORSE:
                break
        middle = best()
        for i, after in ((middle - 1, middle - 2), (middle + 1, middle)):
            if i in range(len(grid)) and i not in tried:
                judge(i, after)
        path = np.array([(grid[i], tried[i][0]) for i in sorted(tried)])
        return np.where(np.isinf(path), np.nan, path), tried[best()][1]

    # -- cells ---------------------------------------------------------------------------------------------------

    def cell(self, arm: Arm, judge: Judge, path: Float64 | None, done: int) -> Cell:
        """One cell, from the cache or made; path: of the arm whose λ it shares (None: chosen here)."""
        key = self._key("cell", judge.value, arm, None if path is None else path.tolist())
        file = self.cache / f"{key}.npz"
        if (kept := results.read(file)) is not None:
            return Cell(arm=arm, **kept)
        examples = self.training_set(arm)
        columns = self.heldout_columns(judge)
        warm: Solver | None = None
        if path is None:
            path, warm = self.choose_penalty(examples, columns, arm.title, done)
        penalty = best_penalty(path)
        everywhere = Columns(np.arange(self.num_labels), np.full(self.num_labels, -1))
        fit = self._fit(Solver(examples, everywhere, penalty, device=self.device), self.config.steps, arm, done)
        # a fit that the path left at its tolerance is at rest after a quarter of the steps that a fresh one needs
        steps = self.config.steps // 4 + 1 if warm is not None else self.config.steps
        heldout = warm or Solver(examples, columns, penalty, device=self.device)
        ranking = self._heldout(self._fit(heldout, steps, arm, done), columns)
        values: dict[str, Any] = {
            "penalty": penalty,
            "path": path,
            "weight": fit.weight.cpu().numpy(),
            "bias": fit.bias.cpu().numpy(),
            "trained": fit.trained,
            "heldout": ranking.figures().ap[0],
            "heldout_replicates": ranking.figures(self._heldout_weights).ap.astype(np.float32),
            "unfinished": float(fit.slope.max(initial=0.0)),
        }
        files.write_npz(file, values)
        return Cell(arm=arm, **values)

    def _fit(self, solver: Solver, passes: int, arm: Arm, done: int) -> Fit:
        for step in range(passes - 1):  # the solver's start was the first pass
            self._progress(f"{arm.title}: fit, step {step + 2} of {passes}", done)
            solver.step()
        return solver.result()

    def run(self, table: Sequence[Arm] | None = None) -> Table:
        """All cells, the choice of K, and at the end the evaluation; table: instead of `arms()`, in its order."""
        table = self.arms() if table is None else table
        judge = self.judge_for(table)
        done_cells: list[Cell] = []
        path: Float64 | None = None
        for done, arm in enumerate(table):
            # The luck of choosing λ is part of a draw. Where labels are judged in one fold there are seeds enough
            # for it to be small, and draws after the first take the λ of the first: a path costs as much as a fit.
            shared = path if arm.draw not in (None, 0) and judge is Judge.one else None
            done_cells.append(self.cell(arm, judge, shared, done))
            path = done_cells[-1].path
        recommended, gains = self._choose_k(done_cells)
        readings = self._evaluate(done_cells)
        return Table(tuple(done_cells), readings, f"{judge.value} of {self.config.folds} folds", recommended, gains)

    def _choose_k(self, done_cells: Sequence[Cell]) -> tuple[int | None, dict[int, Estimate]]:
        """The smallest K within one standard error of the best whose held-out gain over random picks is resolved.

        With several K's each must pass at 5 % / number of K's (two-sided), or one of many would pass by luck.
        """
        gains: dict[int, Estimate] = {}
        beats, values, replicates = [], [], []
        for k in self.config.k:
            arm, draws = results.matched(done_cells, k)
            rng = np.random.default_rng([self.seed, 12, k])
            own, own_replicates = macro(arm.heldout[None]), macro(arm.heldout_replicates.astype(np.float64))
            others = np.stack([macro(c.heldout[None]) for c in draws])
            spread = np.stack([macro(c.heldout_replicates.astype(np.float64))[:, None] for c in draws])
            value, differences = against_draws(own, own_replicates[:, None], others, spread, rng)
            gains[k] = estimate(float(value[0]), differences[:, 0])
            strict = 1.0 - 0.025 / len(self.config.k)
            beats.append(2 * value[0] - np.nanquantile(differences[:, 0], strict) > 0)
            values.append(own[0])
            replicates.append(own_replicates)
        best = smallest_good(self.config.k, np.array(values), np.stack(replicates, axis=1), np.array(beats))
        return best, gains

    # -- the evaluation clips ------------------------------------------------------------------------------------

    def _evaluate(self, done_cells: Sequence[Cell]) -> tuple[tuple[Reading, ...], ...]:
        """Figures of all cells; the only place that reads the evaluation clips."""
        side = self.problem.evaluation
        features = torch.from_numpy(self.space.standardise(side.vectors.read(0, len(side)))).to(self.device)
        truth = side.labels.matrix()
        prior = self.problem.pool.labels.counts() / max(1, len(self.problem.pool))
        weights = resample(side.groups, self.config.bootstrap, np.random.default_rng([self.seed, 10]))
        out = []
        for done, cell in enumerate(done_cells):
            self._progress(f"{cell.arm.title}: evaluation", done)
            key = self._key("reading", cell.penalty, cell.arm, hashlib.sha256(cell.weight.tobytes()).hexdigest())
            file = self.cache / f"{key}.npz"
            kept = results.read(file)
            if kept is None:
                scores = torch.addmm(
                    torch.from_numpy(cell.bias).to(self.device),
                    features,
                    torch.from_numpy(cell.weight).to(self.device),
                )
                votes = knn.vote(self.training_set(cell.arm), features, self.config.votes)
                kept = {}
                for name, values in zip(READINGS, (scores.cpu().numpy(), votes), strict=True):
                    ranking = Ranking(values, truth)
                    for kind, figures in (
                        ("point", ranking.figures(None, prior)),
                        ("replicates", ranking.figures(weights, prior)),
                    ):
                        for figure in ("ap", "ap_prior", "auc"):
                            kept[f"{name}_{kind}_{figure}"] = getattr(figures, figure).astype(
                                np.float64 if kind == "point" else np.float32
                            )
                files.write_npz(file, kept)
            out.append(tuple(results.reading(kept, name) for name in READINGS))
        return tuple(out)

    def _key(self, kind: str, what: Any, arm: Arm, more: Any) -> str:
        config = self.config
        settings = [FORMAT, kind, what, more, config.penalties, config.steps, config.folds, config.bootstrap]
        settings += [config.votes, self.seed, self.device.type, arm.rule, arm.weighted, BLOCK_ROWS, torch.__version__]
        digest = hashlib.sha256(json.dumps([self.problem.fingerprint, *settings]).encode())
        digest.update(arm.rows.tobytes() + arm.leaves.tobytes())
        return digest.hexdigest()[:32]


def best_penalty(path: Float64) -> float:
    """The λ of the highest held-out mAP, the larger of two alike; the largest where no label could be judged."""
    return float(path[0 if np.isnan(path[:, 1]).all() else int(np.nanargmax(path[:, 1])), 0])


def _sampling_weights(seeds: Labels, pool: Labels) -> Float32:
    """VIP-ANT's weight of every seed and pool clip, counted over both, scaled to mean 1: (S + P,) float32."""
    offsets = np.concatenate([seeds.offsets, pool.offsets[1:] + seeds.offsets[-1]])
    weights = index_weights(Labels(seeds.names, offsets, np.concatenate([seeds.codes, pool.codes])))
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _stack(first: Any, second: Any) -> Any:
    return scipy.sparse.vstack([first, second], format="csr")

"""One λ per size of training set, chosen on held-out seeds, and the fits at it.

In: `ProbeData` and arms; out: `Penalty`, `FitResult`. λ is judged over folds of the seeds, the same folds for all arms;
a fold excludes what only its seeds chose. Arms of one size share their λ: chosen for each alone it is noise where seeds
are few, and that noise would be in every difference. The path over λ starts at the largest and goes beyond the grid by
itself where the best λ lies at an end of it. The evaluation clips are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import torch

from balance.data.vipant_index import index_weights
from balance.errors import UserError
from balance.probe import training_sets
from balance.probe.config import Judge, ProbeConfig
from balance.probe.data import ProbeData
from balance.probe.features import Space, TrainingSet
from balance.probe.intervals import by_group
from balance.probe.logistic import SETTLED, Columns, Fit, Solver
from balance.probe.ranking_metrics import Ranking, mean
from balance.probe.results import FitResult, Penalty
from balance.probe.training_sets import Arm
from balance.records import Float32, Float64, Int64, Labels

WATCHED = 1024  # seeds, and as many pool clips, evenly spaced, whose scores must settle
RANKED = 0.1  # how far scores settle before λ's are ranked by them; the best is then settled as all fits are
PATIENCE = 2  # λ's in a row that are worse than the best end the path,
CLEARLY_WORSE = 0.005  # … or one that is worse by so much mAP
BEYOND_THE_GRID = 4  # λ's at most that are added at either end of the grid


class Fitter:
    """Fits the arms of one set of data. progress: called with what is being done."""

    def __init__(
        self,
        data: ProbeData,
        config: ProbeConfig,
        *,
        seed: int,
        device: torch.device,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        if len(data.seeds) < config.folds:
            raise UserError(f"probe.folds={config.folds}: there are only {len(data.seeds)} seeds; type probe.folds=2")
        self.data, self.config, self.device, self._progress = data, config, device, progress
        self.num_labels = data.num_labels
        self.space = Space.of(data.pool.vectors)
        self._seeds = self.space.standardise(data.seeds.vectors.read(0, len(data.seeds)))
        self._seed_truth, self._pool_truth = data.targets(data.seeds), data.targets(data.pool)
        of_pool = self.space.standardise(data.pool.vectors.take(_evenly(len(data.pool))))
        self._watched = torch.from_numpy(np.concatenate([self._seeds[_evenly(len(data.seeds))], of_pool])).to(device)
        rng = np.random.default_rng([seed, 0])
        one_source = not data.seeds.groups.any()  # held out together they would leave nothing to train on
        groups = np.arange(len(data.seeds)) if one_source else data.seeds.groups
        self.folds = training_sets.fold_seeds(data.seeds.labels, groups, config.folds, rng)
        self._group_folds = np.full(int(data.seeds.groups.max(initial=0)) + 1, -1, dtype=np.int64)
        if not one_source:
            self._group_folds[data.seeds.groups] = self.folds
        self._pool_weights: Float32 | None = None

    def training_set(self, arm: Arm) -> TrainingSet:
        """The rows of an arm: seeds, then its pool clips."""
        num_seeds = len(self.data.seeds)
        folds = np.arange(self.config.folds)
        excluded = arm.excluded_fold[:, None] == folds
        if self.data.sources is not None:
            sources = self.data.sources[arm.rows]
            excluded |= np.where(sources >= 0, self._group_folds[sources], -1)[:, None] == folds
        held_out = np.concatenate([self.folds[:, None] == folds, excluded])
        weights = np.ones(num_seeds + len(arm.rows), dtype=np.float32)
        if arm.weighted:
            if self._pool_weights is None:
                self._pool_weights = _sampling_weights(self.data.seeds.labels, self.data.pool.labels)
            at = np.concatenate([np.arange(num_seeds), num_seeds + arm.rows])
            weights = self._pool_weights[at] / self._pool_weights[at].mean()
        return TrainingSet(
            self._seeds,
            self.data.pool.vectors,
            arm.rows,
            self.space,
            labels=scipy.sparse.vstack([self._seed_truth, self._pool_truth[arm.rows]], format="csr"),
            weights=weights.astype(np.float32),
            held_out=held_out,
            device=self.device,
            memory_bytes=self.config.memory_bytes,
        )

    def heldout_columns(self, judge: Judge) -> Columns:
        """The (label, fold) pairs in which labels are judged: all, or for each label the fold with most positives."""
        positives = np.stack(
            [self.data.seeds.labels.take(np.flatnonzero(self.folds == f)).counts() for f in range(self.config.folds)]
        )  # (F, L)
        known = positives.sum(axis=0) > 0
        pairs = np.full(positives.shape, judge is Judge.all)
        if judge is Judge.one:
            pairs[positives.argmax(axis=0), np.arange(self.num_labels)] = True
        folds, labels = np.nonzero(pairs & known)
        return Columns(labels.astype(np.int64), folds.astype(np.int64))

    def fit(self, arm: Arm, judge: Judge, penalty: Penalty) -> FitResult:
        """The fit at a λ that is chosen, and how it does on the held-out seeds."""
        examples, heldout_columns = self.training_set(arm), self.heldout_columns(judge)
        heldout = Solver(examples, heldout_columns, self._watched, device=self.device)
        heldout.begin(heldout_columns.labels, penalty.weight, penalty.bias, penalty.best)
        self._settle(heldout, penalty.best, arm.title)
        every = np.arange(self._seed_truth.shape[1])
        columns = Columns(every, np.full(len(every), -1, dtype=np.int64))
        everywhere = Solver(examples, columns, self._watched, device=self.device, start=heldout)
        self._settle(everywhere, penalty.best, arm.title)
        fit, judged = everywhere.result(), heldout.result()
        ranking, given = self._heldout_ranking(judged, heldout.columns), np.arange(self.num_labels)
        _, _, deviations = ranking.evaluate({"": given})
        groups = self.data.seeds.groups
        nested = arm.rule in (training_sets.SEEDS, training_sets.NEIGHBOURS)
        each = by_group(ranking.without_each_clip(given if nested else given[:0]), groups)
        left = max(float(one.left.max(initial=0.0)) for one in (fit, judged))
        return FitResult(
            arm=arm,
            penalty=penalty.best,
            path=penalty.path,
            weight=fit.weight.cpu().numpy(),
            bias=fit.bias.cpu().numpy(),
            trained=fit.trained,
            heldout=ranking.figures().ap,
            heldout_deviations=by_group(deviations["map"], groups),
            label_deviations=each.astype(np.float32),
            unfinished=min(left, 1.0),
        )

    def _settle(self, solver: Solver, penalty: float, title: str, enough: float = SETTLED) -> None:
        def progress(done: int) -> None:
            self._progress(f"{title}: λ = {penalty:g}, pass {done}")

        solver.settle(penalty, self.config.steps, progress, enough)

    def _heldout_ranking(self, fit: Fit, columns: Columns) -> Ranking:
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
        truth = self._seed_truth[:, : self.num_labels].multiply(judged).tocsr()
        truth.eliminate_zeros()
        return Ranking(scores, truth)

    def choose_penalty(self, arms: Sequence[Arm], judge: Judge, near: Penalty | None = None) -> Penalty:
        """The λ of these arms' size: the best mean of their held-out mAPs, so that none has a λ to its own luck.

        Every second λ of the grid from the largest down, until PATIENCE in a row are worse than the best or one clearly
        is; then the two beside the best; then beyond the grid, while the best is its last on either side. Each λ starts
        from the fit of the nearest one before it. near: of a size beside this one; the search then starts there and
        climbs.
        """
        columns = self.heldout_columns(judge)
        solvers = [Solver(self.training_set(arm), columns, self._watched, device=self.device) for arm in arms]
        if near is not None:
            for solver in solvers:
                solver.begin(columns.labels, near.weight, near.bias, near.best)
        grid, title = self.config.penalties, arms[0].title
        tried: dict[int, tuple[float, list[Solver]]] = {}

        def judge_at(i: int) -> None:
            before = [j for j in tried if j < i] or list(tried)
            start = tried[min(before, key=lambda j: abs(j - i))][1] if before else solvers
            here = [solver.fork() for solver in start]
            scores = []
            for solver in here:
                self._settle(solver, _grid_value(grid, i), title, RANKED)
                scores.append(mean(self._heldout_ranking(solver.result(), columns).figures().ap))
            tried[i] = (-np.inf if np.isnan(scores).any() else float(np.mean(scores)), here)

        def best() -> int:
            return max(tried, key=lambda i: (tried[i][0], -i))

        if near is None:
            for i in sorted({*range(0, len(grid), 2), len(grid) - 1}):
                judge_at(i)
                top = best()
                if sum(j > top for j in tried) >= PATIENCE or tried[i][0] < tried[top][0] - CLEARLY_WORSE:
                    break
        else:
            judge_at(int(np.argmin(np.abs(np.log(np.array(grid) / near.best)))))
        while np.isfinite(tried[top := best()][0]):
            beside = [i for i in (top - 1, top + 1) if i not in tried]
            beside = [i for i in beside if -BEYOND_THE_GRID <= i < len(grid) + BEYOND_THE_GRID]
            if not beside:
                break
            judge_at(beside[0])
        path = np.array([(_grid_value(grid, i), tried[i][0]) for i in sorted(tried)])
        path = np.where(np.isinf(path), np.nan, path)
        fit = tried[best()][1][0].result()
        return Penalty(path, best_penalty(path), fit.weight.cpu().numpy(), fit.bias.cpu().numpy())


def _evenly(num: int) -> Int64:
    """At most WATCHED of `num` rows, evenly spaced."""
    return np.unique(np.linspace(0, num - 1, min(num, WATCHED)).astype(np.int64))


def best_penalty(path: Float64) -> float:
    """The λ of the highest held-out mAP, the larger of two alike; the largest where no label could be judged."""
    return float(path[0 if np.isnan(path[:, 1]).all() else int(np.nanargmax(path[:, 1])), 0])


def _grid_value(grid: list[float], i: int) -> float:
    """The i-th λ of a descending grid, which goes on beyond its ends by its own last factors."""
    if i in range(len(grid)):
        return grid[i]
    end, beside = (0, 1) if i < 0 else (-1, -2)
    factor = grid[end] / grid[beside] if len(grid) > 1 else 10.0 ** (0.5 if i < 0 else -0.5)
    return float(f"{grid[end] * factor ** (-i if i < 0 else i - len(grid) + 1):.3g}")


def _sampling_weights(seeds: Labels, pool: Labels) -> Float32:
    """VIP-ANT's weight of every seed and pool clip, counted over both, scaled to mean 1: (S + P,) float32."""
    offsets = np.concatenate([seeds.offsets, pool.offsets[1:] + seeds.offsets[-1]])
    weights = index_weights(Labels(seeds.names, offsets, np.concatenate([seeds.codes, pool.codes])))
    return np.asarray(weights / weights.mean(), dtype=np.float32)

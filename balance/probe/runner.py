"""The probe's table: which training sets there are, their fits, the choice of K, and at the very end the evaluation.

In: `ProbeData`; out: `Table`. Order is the point: all choices (λ, K) are made on held-out seeds; `dataset.eval` is read
once, after them. Every fit is one file in the cache, so a stopped probe goes on at its next fit. Price of speed: above
JUDGE_ALL rows x labels each label is judged in one fold only (`judge`), which makes a path over λ as dear as one fit of
all labels instead of five.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance.errors import UserError
from balance.probe import knn, logistic, results, training_sets
from balance.probe.bootstrap import Estimate, against_draws, estimate, resample, smallest_good
from balance.probe.config import Judge, ProbeConfig
from balance.probe.data import ProbeData, read_runs
from balance.probe.features import BLOCK_ROWS
from balance.probe.fitting import Fitter
from balance.probe.ranking_metrics import Figures, Ranking, macro
from balance.probe.results import CLASSIFIERS, Evaluation, FitResult, Table
from balance.probe.training_sets import Arm
from balance.records import Float64
from balance.runtime import files

FORMAT = 4  # of the cached fits
JUDGE_ALL = 20_000_000  # training rows x labels up to which every label is judged in every fold


class Probe:
    """Runs the table of one set of data. cache: folder of finished fits; progress: called with (what, fits done)."""

    def __init__(
        self,
        data: ProbeData,
        config: ProbeConfig,
        *,
        seed: int,
        device: torch.device,
        cache: Path,
        progress: Callable[[str, int], None] = lambda what, done: None,
    ) -> None:
        self.data, self.config, self.seed, self.cache = data, config, seed, cache
        self._device, self._progress, self._done = device, progress, 0
        self.fitter = Fitter(data, config, seed=seed, device=device, progress=lambda what: progress(what, self._done))

    def arms(self) -> list[Arm]:
        """Every training set of the table, each selection rule followed by its draws."""
        config, num_pool, known = self.config, len(self.data.pool), self.data.chosen.shape[1]
        out = [training_sets.seeds_alone()]
        if config.k[-1] > known:
            raise UserError(f"probe.k={config.k}: only {known} neighbours per seed are known; leave out larger")
        chosen = [training_sets.neighbours(self.data.chosen, self.fitter.folds, k) for k in config.k]
        chosen += read_runs(self.data, config.runs, self.fitter.folds)
        for arm in chosen:
            out.append(arm)
            out += training_sets.random_draws(arm, num_pool, config.draws, self.seed)
            if config.stratified:
                out += training_sets.stratified_draws(arm, self.data.pool.labels, config.draws, self.seed)
        out += [training_sets.whole_pool(num_pool, weighted=False), training_sets.whole_pool(num_pool, weighted=True)]
        return out

    def run(self, table: Sequence[Arm] | None = None) -> Table:
        """All fits, the choice of K, and at the end the evaluation; table: instead of `arms()`, in its order."""
        table = self.arms() if table is None else table
        judge = self.judge_for(table)
        fits: list[FitResult] = []
        path: Float64 | None = None
        for self._done, arm in enumerate(table):
            # The luck of choosing λ is part of a draw. Where labels are judged in one fold there are seeds enough
            # for it to be small, and draws after the first take the λ of the first: a path costs as much as a fit.
            shared = path if arm.draw not in (None, 0) and judge is Judge.one else None
            fits.append(self.fit(arm, judge, shared))
            path = fits[-1].path
        recommended, gains = self._choose_k(fits)
        judged_in = f"{judge.value} of {self.config.folds} folds"
        return Table(tuple(fits), self._evaluate(fits), judged_in, recommended, gains)

    def judge_for(self, table: Sequence[Arm]) -> Judge:
        """`probe.judge` with `auto` resolved by the largest training set: one answer for all arms of a table."""
        if self.config.judge is not Judge.auto:
            return self.config.judge
        rows = len(self.data.seeds) + max(len(arm.rows) for arm in table)
        return Judge.all if rows * len(self.data.label_ids) <= JUDGE_ALL else Judge.one

    def fit(self, arm: Arm, judge: Judge, path: Float64 | None) -> FitResult:
        """One fit, from the cache or made; path: of the arm whose λ it shares (None: chosen here)."""
        file = self.cache / f"{self._key('fit', judge.value, arm, None if path is None else path.tolist())}.npz"
        if (kept := results.read(file)) is not None:
            return FitResult(arm=arm, **kept)
        made = self.fitter.fit(arm, judge, path)
        values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.name != "arm"}
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_npz(file, values)
        return made

    def _choose_k(self, fits: Sequence[FitResult]) -> tuple[int | None, dict[int, Estimate]]:
        """The smallest K within one standard error of the best whose held-out gain over random picks is resolved.

        With several K's each must pass at 5 % / number of K's (two-sided), or one of many would pass by luck. A fit
        that is not finished, or a bootstrap that cannot tell, resolves nothing.
        """
        gains: dict[int, Estimate] = {}
        beats, values, replicates = [], [], []
        for k in self.config.k:
            arm, draws = results.matched(fits, k)
            rng = np.random.default_rng([self.seed, 12, k])
            own, own_replicates = macro(arm.heldout[None]), macro(arm.heldout_replicates.astype(np.float64))
            others = np.stack([macro(one.heldout[None]) for one in draws])
            spread = np.stack([macro(one.heldout_replicates.astype(np.float64))[:, None] for one in draws])
            value, differences = against_draws(own, own_replicates[:, None], others, spread, rng)
            gains[k] = estimate(float(value[0]), differences[:, 0], bounds=(-1.0, 1.0))
            finished = all(one.unfinished <= logistic.SETTLED for one in (arm, *draws))
            strict = 1.0 - 0.025 / len(self.config.k)
            beats.append(
                finished and gains[k].can_tell and 2 * value[0] - np.nanquantile(differences[:, 0], strict) > 0
            )
            values.append(own[0])
            replicates.append(own_replicates)
        best = smallest_good(self.config.k, np.array(values), np.stack(replicates, axis=1), np.array(beats))
        return best, gains

    def _evaluate(self, fits: Sequence[FitResult]) -> tuple[dict[str, Evaluation], ...]:
        """Figures of all fits; the only place that reads the evaluation clips."""
        side = self.data.evaluation
        features = torch.from_numpy(self.fitter.space.standardise(side.vectors.read(0, len(side)))).to(self._device)
        truth = side.labels.matrix()
        prior = self.data.pool.labels.counts() / max(1, len(self.data.pool))
        weights = resample(side.groups, self.config.bootstrap, np.random.default_rng([self.seed, 10]))
        out = []
        for self._done, fit in enumerate(fits):
            self._progress(f"{fit.arm.title}: evaluation", self._done)
            key = self._key("evaluation", fit.penalty, fit.arm, hashlib.sha256(fit.weight.tobytes()).hexdigest())
            file = self.cache / f"{key}.npz"
            kept = results.read(file)
            if kept is None:
                scores = {"logistic": self._scores(fit, features), "knn": self._votes(fit, features)}
                kept = {}
                for name in CLASSIFIERS:
                    ranking = Ranking(scores[name], truth)
                    kept |= _arrays(f"{name}_point", ranking.figures(None, prior), np.float64)
                    kept |= _arrays(f"{name}_replicates", ranking.figures(weights, prior), np.float32)
                files.write_npz(file, kept)
            out.append(results.evaluations(kept))
        return tuple(out)

    def _scores(self, fit: FitResult, features: torch.Tensor) -> Any:
        bias, weight = (torch.from_numpy(values).to(self._device) for values in (fit.bias, fit.weight))
        return torch.addmm(bias, features, weight).cpu().numpy()

    def _votes(self, fit: FitResult, features: torch.Tensor) -> Any:
        return knn.vote(self.fitter.training_set(fit.arm), features, self.config.votes)

    def _key(self, kind: str, what: Any, arm: Arm, more: Any) -> str:
        config = self.config
        settings = [FORMAT, kind, what, more, config.penalties, config.steps, config.folds, config.bootstrap]
        settings += [config.votes, self.seed, self._device.type, arm.rule, arm.weighted, BLOCK_ROWS, torch.__version__]
        settings += [logistic.SETTLED]
        digest = hashlib.sha256(json.dumps([self.data.fingerprint, *settings]).encode())
        digest.update(arm.rows.tobytes() + arm.excluded_fold.tobytes())
        return digest.hexdigest()[:32]


def _arrays(name: str, figures: Figures, dtype: Any) -> dict[str, Any]:
    return {f"{name}_{figure}": getattr(figures, figure).astype(dtype) for figure in ("ap", "ap_prior", "auc")}

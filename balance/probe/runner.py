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
from typing import Any

import numpy as np
import torch

from balance.curation import rivals
from balance.curation.per_seed import SupportedK
from balance.errors import UserError
from balance.probe import heads, intervals, knn, logistic, results, training_sets
from balance.probe.config import Judge, ProbeConfig, Reading
from balance.probe.data import ProbeData, read_runs
from balance.probe.features import BLOCK_ROWS
from balance.probe.fitting import Fitter
from balance.probe.intervals import Estimate, smallest_good
from balance.probe.ranking_metrics import Ranking, mean
from balance.probe.results import FIGURES, Evaluation, FitResult, Penalty, Table
from balance.probe.training_sets import Arm
from balance.probe.value import own_ks
from balance.records import Float32, Float64
from balance.runtime import files
from balance.runtime.remote import AnyPath

FORMAT = 6  # of the cached fits
NEARLY_ALL = 0.9  # of the pool: above it any rule takes nearly the same clips, and rivals say nothing
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
        cache: AnyPath,
        progress: Callable[[str, int], None] = lambda what, done: None,
    ) -> None:
        self.data, self.config, self.seed, self.cache = data, config, seed, cache
        self._device, self._progress, self._done = device, progress, 0
        self._read: torch.Tensor | None = None
        self.fitter = Fitter(data, config, seed=seed, device=device, progress=lambda what: progress(what, self._done))

    def arms(self) -> list[Arm]:
        """Every training set of the table, each selection rule followed by its draws."""
        config, num_pool, known = self.config, len(self.data.pool), self.data.chosen.shape[1]
        out = [training_sets.seeds_alone()]
        pool = rivals.Pool(self.data.choosing, self.data.pool.labels, self.seed)
        if config.k[-1] > known:
            raise UserError(f"probe.k={config.k}: only {known} neighbours per seed are known; leave out larger")
        chosen = [training_sets.neighbours(self.data.chosen, self.fitter.folds, k) for k in config.k]
        chosen += read_runs(self.data, config.runs, self.fitter.folds)
        for arm in chosen:
            out.append(arm)
            out += training_sets.random_draws(arm, num_pool, config.draws, self.seed)
            if config.stratified:
                out += training_sets.stratified_draws(arm, self.data.pool.labels, config.draws, self.seed)
            if len(arm.rows) < NEARLY_ALL * num_pool:
                self._progress(f"{arm.title}: rivals", 0)
                out += [training_sets.rival(rule.value, arm, pool, self.seed) for rule in config.rivals]
        out += [training_sets.whole_pool(num_pool, weighted=False), training_sets.whole_pool(num_pool, weighted=True)]
        return out

    def run(self, table: Sequence[Arm] | None = None, chosen: Table | None = None) -> Table:
        """All fits, the choice of K, the set of K's per seed where it is another, and at the end the evaluation;
        table: instead of `arms()`, in its order; chosen: of another space, whose K's are taken instead of own ones."""
        table = self.arms() if table is None else table
        judge = self.judge_for(table)
        fits: list[FitResult] = []
        near: Penalty | None = None
        of_k: dict[int | None, Penalty] = {}
        for arms in _sizes(table):
            near = self.penalty(arms[:2], judge, near)  # a rule and its first draw: neither has a λ of its own
            if arms[0].rule == training_sets.NEIGHBOURS:
                of_k[arms[0].k] = near
            for arm in arms:
                self._done = len(fits)
                fits.append(self.fit(arm, judge, near))
        order = {id(arm): i for i, arm in enumerate(table)}
        fits.sort(key=lambda fit: order[id(fit.arm)])
        if chosen is None:
            recommended, gains = self._choose_k(fits)
            per_seed = None if recommended is None else self._per_seed(fits, recommended)
        else:
            recommended, gains = chosen.recommended, chosen.heldout_gains
            per_seed = next((fit.arm for fit in chosen.fits if fit.arm.rule == training_sets.PER_SEED), None)
        if recommended is not None and per_seed is not None:
            self._done = len(fits)
            fits.append(self.fit(per_seed, judge, of_k[recommended]))
        judged_in = f"{judge.value} of {self.config.folds} folds"
        return Table(tuple(fits), self._evaluate(fits), judged_in, recommended, gains)

    def judge_for(self, table: Sequence[Arm]) -> Judge:
        """`probe.judge` with `auto` resolved by the largest training set: one answer for all arms of a table."""
        if self.config.judge is not Judge.auto:
            return self.config.judge
        rows = len(self.data.seeds) + max(len(arm.rows) for arm in table)
        return Judge.all if rows * len(self.data.label_ids) <= JUDGE_ALL else Judge.one

    def penalty(self, arms: Sequence[Arm], judge: Judge, near: Penalty | None) -> Penalty:
        """The λ of a size, from the cache or chosen on these arms; near: of the size before."""
        file = self.cache / f"{self._key('penalty', judge.value, arms, _mark(near))}.npz"
        if (kept := results.read(file)) is not None:
            return Penalty(**kept)
        made = self.fitter.choose_penalty(arms, judge, near)
        self._write(file, made)
        return made

    def fit(self, arm: Arm, judge: Judge, penalty: Penalty) -> FitResult:
        """One fit, from the cache or made."""
        file = self.cache / f"{self._key('fit', judge.value, [arm], _mark(penalty))}.npz"
        if (kept := results.read(file)) is not None:
            return FitResult(arm=arm, **kept)
        made = self.fitter.fit(arm, judge, penalty)
        self._write(file, made)
        return made

    def _write(self, file: AnyPath, made: Penalty | FitResult) -> None:
        values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.name != "arm"}
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_npz(file, values)

    def _choose_k(self, fits: Sequence[FitResult]) -> tuple[int | None, dict[int, Estimate]]:
        """The smallest K within one standard error of the best whose held-out gain over random picks is resolved.

        With several K's each must pass at 5 % / number of K's (two-sided), or one of many would pass by luck. A fit
        that is not finished, or deviations that cannot tell, resolve nothing.
        """
        gains: dict[int, Estimate] = {}
        beats, values, deviations = [], [], []
        for k in self.config.k:
            arm, draws = results.matched(fits, k)
            own = mean(arm.heldout)
            others = np.array([mean(one.heldout) for one in draws])
            theirs = np.stack([one.heldout_deviations for one in draws])
            gains[k] = intervals.difference(own, arm.heldout_deviations, others, theirs, (-1.0, 1.0))
            finished = all(one.unfinished <= logistic.SETTLED for one in (arm, *draws))
            strict = 1.0 - 0.05 / len(self.config.k)
            beats.append(finished and gains[k].can_tell and gains[k].interval(strict)[0] > 0)
            values.append(own)
            deviations.append(arm.heldout_deviations)
        best = smallest_good(self.config.k, np.array(values), np.stack(deviations, axis=1), np.array(beats))
        return best, gains

    def _per_seed(self, fits: Sequence[FitResult], recommended: int) -> Arm | None:
        """The set of `augment.per_seed_k`; None where no label has a K of its own, or a fit is not finished."""
        nested = [fit for fit in fits if fit.arm.rule in (training_sets.SEEDS, training_sets.NEIGHBOURS)]
        if any(fit.unfinished > logistic.SETTLED for fit in nested):
            return None
        by_label = zip(self.data.label_ids, own_ks(nested, recommended).tolist(), strict=True)
        own = {label: k for label, k in by_label if k != recommended}
        if not own:
            return None
        ks = SupportedK(recommended, own).of_seeds(self.data.seeds.labels)
        return training_sets.per_seed(self.data.chosen, self.fitter.folds, ks)

    def _evaluate(self, fits: Sequence[FitResult]) -> tuple[dict[str, Evaluation], ...]:
        """Figures of all fits; beside `ranking` the only place that reads the evaluation clips."""
        truth, prior = self._truth()
        sets, groups = self.data.label_sets, self.data.evaluation.groups
        out = []
        for self._done, fit in enumerate(fits):
            self._progress(f"{fit.arm.title}: evaluation", self._done)
            key = self._key("evaluation", fit.penalty, [fit.arm], hashlib.sha256(fit.weight.tobytes()).hexdigest())
            file = self.cache / f"{key}.npz"
            kept = results.read(file)
            if kept is None:
                kept = {}
                for name, scores in self._scores(fit).items():
                    figures, values, deviations = Ranking(scores, truth, prior).evaluate(sets)
                    kept[f"{name}_ap"] = figures.ap[: self.data.num_labels]
                    kept[f"{name}_values"] = np.array([values.get(one, np.nan) for one in FIGURES])
                    none = np.zeros(len(truth.indptr) - 1)
                    each = np.stack([deviations.get(one, none) for one in FIGURES], axis=1)
                    kept[f"{name}_deviations"] = intervals.by_group(each, groups).T
                files.write_npz(file, kept)
            out.append(
                {
                    name: Evaluation(
                        kept[f"{name}_ap"], kept[f"{name}_values"], kept[f"{name}_deviations"],
                        fit.unfinished if name == Reading.logistic.value else 0.0,
                    )
                    for name in (reading.value for reading in self.config.readings)
                }
            )  # fmt: skip
        return tuple(out)

    def ranking(self, fit: FitResult) -> Ranking:
        """The linear reading's ranking of the evaluation clips, labels as given."""
        truth, prior = self._truth()
        scores = self._linear(fit)[:, : self.data.num_labels]
        return Ranking(scores, truth[:, : self.data.num_labels], prior[: self.data.num_labels])

    def _truth(self) -> tuple[Any, Float64]:
        """The evaluation clips' labels, CSR (n, C), and each label's share of the pool (C,)."""
        pool = self.data.targets(self.data.pool)
        prior = np.asarray(pool.sum(axis=0)).ravel() / max(1, len(self.data.pool))
        return self.data.targets(self.data.evaluation), prior

    def _features(self) -> torch.Tensor:
        """The evaluation clips, standardised; read once."""
        if self._read is None:
            side = self.data.evaluation
            rows = self.fitter.space.standardise(side.vectors.read(0, len(side)))
            self._read = torch.from_numpy(rows).to(self._device)
        return self._read

    def _scores(self, fit: FitResult) -> dict[str, Float32]:
        """Reading -> scores of the evaluation clips (n, C)."""
        queries, config = self._features(), self.config
        examples = self.fitter.training_set(fit.arm)
        rng = np.random.default_rng([self.seed, 14])
        read: dict[Reading, Callable[[], Float32]] = {
            Reading.logistic: lambda: self._linear(fit),
            Reading.knn: lambda: knn.vote(examples, queries, config.votes),
            Reading.prototype: lambda: heads.prototypes(examples, queries),
            Reading.mlp: lambda: heads.network(examples, queries, config.network_steps, rng),
        }
        return {reading.value: read[reading]() for reading in config.readings}

    def _linear(self, fit: FitResult) -> Float32:
        bias, weight = (torch.from_numpy(values).to(self._device) for values in (fit.bias, fit.weight))
        return np.asarray(torch.addmm(bias, self._features(), weight).cpu().numpy())

    def _key(self, kind: str, what: Any, arms: Sequence[Arm], more: Any) -> str:
        config = self.config
        settings = [FORMAT, kind, what, more, config.penalties, config.steps, config.folds, config.network_steps]
        settings += [
            [reading.value for reading in config.readings],
            config.votes,
            self.seed,
            self._device.type,
            BLOCK_ROWS,
            torch.__version__,
            logistic.SETTLED,
        ]
        digest = hashlib.sha256(json.dumps([self.data.fingerprint, *settings]).encode())
        for arm in arms:
            digest.update(f"{arm.rule} {arm.weighted}\n".encode())
            digest.update(arm.rows.tobytes() + arm.excluded_fold.tobytes())
        return digest.hexdigest()[:32]


def _sizes(table: Sequence[Arm]) -> list[list[Arm]]:
    """The arms by size, in the order of the table: a K's or a run's with what is matched to it, the two whole pools."""
    out: dict[tuple[str, int | None], list[Arm]] = {}
    for arm in table:
        name = training_sets.POOL if arm.rule == training_sets.POOL_WEIGHTED else arm.name
        out.setdefault((name, arm.k), []).append(arm)
    return list(out.values())


def _mark(penalty: Penalty | None) -> str | None:
    """What tells a λ and the fit at it from others."""
    if penalty is None:
        return None
    return hashlib.sha256(penalty.path.tobytes() + penalty.weight.tobytes() + penalty.bias.tobytes()).hexdigest()

"""From the probe's table to what it supports, in numbers: `Findings`, which the sentences are then written from.

In: the probe's data and table; out: `Findings`. Draws of one rule are one arm. A difference whose interval holds 0 is
"not resolved", never "no difference"; where there are too few clips, or a fit is not finished, nothing is said of it.
Labels are tested together (Benjamini-Hochberg). No number here is computed twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from balance.probe import intervals, logistic, sentences, training_sets
from balance.probe.data import ProbeData
from balance.probe.estimates import Estimates, Group, groups_of
from balance.probe.findings import (
    ArmFindings,
    Comparison,
    Counts,
    Findings,
    HeldoutGain,
    Interval,
    LabelFindings,
    ValueOfNeighbours,
    rounded,
)
from balance.probe.intervals import EQUIVALENCE, RESOLVE, Estimate, Verdict
from balance.probe.ranking_metrics import mean
from balance.probe.results import FIGURES, Table
from balance.probe.runner import Probe
from balance.probe.sentences import FALSE_DISCOVERIES, MIN_POSITIVES
from balance.probe.value import value_of_neighbours
from balance.records import Bool, Float64

LABELS_AT_ONCE = 32  # deviations of 20,000 videos x 32 labels x 6 arms: 31 MB
MIN_VIDEOS = 30  # of evaluation clips, and of held-out seeds, below which nothing is judged


def find(probe: Probe, table: Table) -> Findings:
    """Everything that the probe found."""
    return _Finder(probe, table).find()


class _Finder:
    def __init__(self, probe: Probe, table: Table) -> None:
        self.probe, self.data, self.table = probe, probe.data, table
        self.groups = groups_of(table.fits)
        self.estimates = Estimates(table)
        self.figures = [name for name in FIGURES if "_ancestors" in self.data.label_sets or "ancestors" not in name]
        self.too_few = too_few(self.data)
        too_few_seeds = _too_few_videos(int(self.data.seeds.groups.max(initial=-1)) + 1, "held-out")
        self.no_k = too_few_seeds or self._unfinished_words(self._selection_groups())
        self.recommended = None if self.no_k else table.recommended
        self.headline = self._headline()
        self.comparisons = self._comparisons()
        self.conclusions = sentences.conclusions_of(self.comparisons)
        if self.recommended is not None and (veto := sentences.veto(self.conclusions, self.recommended)):
            self.recommended, self.no_k = None, veto

    def find(self) -> Findings:
        evaluated = ~np.isnan(self.table.evaluations[0][self.table.readings[0]].ap)
        config, data = self.probe.config, self.data
        found = Findings(
            same_space=data.same_space,
            counts=Counts(
                seeds=len(data.seeds),
                pool=len(data.pool),
                evaluation=len(data.evaluation),
                labels=len(data.label_ids),
                labels_evaluated=int(evaluated.sum()),
                seed_sources=int(data.seeds.groups.max(initial=-1)) + 1,
                pool_of_seed_sources=0 if data.sources is None else int((data.sources >= 0).sum()),
                without_vector=data.missing,
            ),
            judged_in=self.table.judged_in,
            steps=config.steps,
            draws=config.draws,
            votes=config.votes,
            network_steps=config.network_steps,
            readings=self.table.readings,
            recommended_k=self.recommended,
            headline=None if self.headline is None else self.headline.title,
            heldout_gains=tuple(
                HeldoutGain(k=k, **dataclasses.asdict(Interval.of(gain)), words=self.no_k or gain.words())
                for k, gain in self.table.heldout_gains.items()
            ),
            arms=tuple(self._arm(group) for group in self.groups),
            comparisons=tuple(self.comparisons),
            conclusions=self.conclusions,
            labels=tuple(self._labels()),
            value_of_neighbours=self._value(),
            labels_not_in_evaluation=tuple(
                data.names.get(label, label)
                for label, judged in zip(data.label_ids, evaluated, strict=True)
                if not judged
            ),
        )
        return dataclasses.replace(
            found,
            warnings=tuple(sentences.warnings_of(found, data, self.table, self.groups)),
            sentences=tuple(sentences.sentences_of(found, self.no_k)),
            limits=sentences.LIMITS,
        )

    def _value(self) -> ValueOfNeighbours | None:
        """None too where a fit of the curve is not finished: then nothing is said of it."""
        rules = (training_sets.SEEDS, training_sets.NEIGHBOURS)
        if self._unfinished_words([group for group in self.groups if group.rule in rules]):
            return None
        return value_of_neighbours(self.table, self.data.label_ids, self.recommended)

    def _selection_groups(self) -> list[Group]:
        """The arms that the choice of K rests on."""
        rules = (training_sets.NEIGHBOURS, training_sets.RANDOM)
        return [g for g in self.groups if g.rule in rules and g.name == training_sets.NEIGHBOURS]

    def _headline(self) -> Group | None:
        """The arm that is compared with the whole pool: the recommended K, else the K best on held-out seeds."""
        of_k = {g.k: g for g in self.groups if g.rule == training_sets.NEIGHBOURS}
        if self.recommended is not None:
            return of_k.get(self.recommended)
        values = {k: mean(self.table.fits[g.fits[0]].heldout) for k, g in of_k.items()}
        known = {k: v for k, v in values.items() if not np.isnan(v)}
        return of_k[max(known, key=lambda k: known[k])] if known else None

    def _arm(self, group: Group) -> ArmFindings:
        fits = [self.table.fits[i] for i in group.fits]
        first = fits[0]
        num_pool_clips = len(first.arm.rows)
        return ArmFindings(
            arm=group.title,
            rule=group.rule,
            k=group.k,
            draws=len(fits) if first.arm.draw is not None else None,
            num_pool_clips=num_pool_clips,
            num_clips=len(self.data.seeds) + num_pool_clips,
            pool_share=num_pool_clips / len(self.data.pool),
            penalty=first.penalty,
            penalty_at_edge=first.at_edge,
            penalty_path=tuple((float(penalty), rounded(float(value))) for penalty, value in first.path),
            penalty_by_draw=tuple(fit.penalty for fit in fits) if len(fits) > 1 else (),
            labels_not_trained=int((~first.trained).sum()),
            unfinished=float(f"{max(fit.unfinished for fit in fits):.3g}"),
            heldout_map=rounded(float(np.mean([mean(fit.heldout) for fit in fits]))),
            readings={
                name: {figure: Interval.of(self.estimates.level(group, name, figure)) for figure in self.figures}
                for name in self.table.readings
            },
            map_by_draw=tuple(
                rounded(float(value)) for value in self.estimates.by_draw(group, self.table.readings[0], "map")
            )
            if len(fits) > 1
            else (),
        )

    def _comparisons(self) -> list[Comparison]:
        """Neighbours and runs against draws and rivals, rivals against random; the headline against seeds and
        pool; the set of K's per seed against the best single K."""
        out = []
        chosen = (training_sets.NEIGHBOURS, training_sets.RUN)
        rivals = training_sets.RIVALS
        for group in self.groups:
            random = next((g for g in self.groups if g.rule == training_sets.RANDOM and g.matches(group)), None)
            if group.rule in rivals and random is not None:
                out += self._compare(group, random)
            if group.rule == training_sets.PER_SEED:
                of_all = next(g for g in self.groups if (g.rule, g.k) == (chosen[0], self.table.recommended))
                out += self._compare(group, of_all)
            if group.rule in chosen:
                for reference in self.groups:
                    known = reference.rule in (training_sets.RANDOM, training_sets.STRATIFIED, *rivals)
                    if known and reference.matches(group):
                        out += self._compare(group, reference, random)
        if self.headline is not None:
            for rule in (training_sets.SEEDS, training_sets.POOL, training_sets.POOL_WEIGHTED):
                for reference in self.groups:
                    if reference.rule == rule:
                        out += self._compare(self.headline, reference)
        return out

    def _compare(self, group: Group, reference: Group, luck: Group | None = None) -> list[Comparison]:
        own = self.table.fits[group.fits[0]].arm.rows
        same = len(reference.fits) > 1 and all(np.array_equal(self.table.fits[i].arm.rows, own) for i in reference.fits)
        num_videos = int(self.data.evaluation.groups.max(initial=-1)) + 1
        out = []
        for reading in self.table.readings:
            unfinished = self._unfinished_words([group, reference], reading)
            for figure in self.figures:
                estimate = self.estimates.difference(group, reference, reading, figure, luck)
                verdict, words = self._judge(estimate, figure, same, unfinished)
                wanted = estimate.videos_for(RESOLVE, num_videos)
                out.append(
                    Comparison(
                        arm=group.title,
                        against=reference.title,
                        against_rule=reference.rule,
                        k=group.k,
                        reading=reading,
                        figure=figure,
                        **dataclasses.asdict(Interval.of(estimate)),
                        detectable=rounded(estimate.detectable()),
                        videos_to_resolve=int(wanted) if np.isfinite(wanted) else None,
                        verdict=verdict,
                        words=words,
                    )
                )
        return out

    def _judge(self, estimate: Estimate, figure: str, same: bool, unfinished: str | None) -> tuple[Verdict, str]:
        if same:
            return Verdict.same_set, "the same clips: K takes the whole pool, so there is nothing to compare"
        if self.too_few:
            return Verdict.too_few, self.too_few
        if unfinished:
            return Verdict.not_finished, unfinished
        margin = None if figure == "d_prime" else EQUIVALENCE  # ±0.005 is stated for mAP
        return estimate.verdict(margin), estimate.words(margin)

    def _unfinished_words(self, groups: Sequence[Group], reading: str | None = None) -> str | None:
        """Why nothing is said of these arms, by a reading of the table (None: by their held-out seeds)."""
        table = self.table
        each = [
            table.fits[i].unfinished if reading is None else table.evaluations[i][reading].unfinished
            for group in groups
            for i in group.fits
        ]
        if max(each) <= logistic.SETTLED:
            return None
        return f"not finished: a fit ended at probe.steps={self.probe.config.steps} passes before its scores settled"

    def _labels(self) -> list[LabelFindings]:
        """Every label: clips, AP in each arm, and its gain over random picks where there are enough clips to test."""
        if self.headline is None:
            return []
        data, table = self.data, self.table
        counts = data.evaluation.labels.counts()
        in_seeds, in_pool = data.seeds.labels.counts(), data.pool.labels.counts()
        ap = {
            g.title: np.mean([table.evaluations[i][table.readings[0]].ap for i in g.fits], axis=0) for g in self.groups
        }
        gain, low, high, p, resolved = self._label_gains(self.headline)
        return [
            LabelFindings(
                id=label,
                name=data.names.get(label, label),
                num_evaluation=int(counts[i]),
                num_seeds=int(in_seeds[i]),
                num_pool=int(in_pool[i]),
                gain=rounded(float(gain[i])),
                low=rounded(float(low[i])),
                high=rounded(float(high[i])),
                p=rounded(float(p[i])),
                resolved=bool(resolved[i]),
                ap={title: rounded(float(values[i])) for title, values in ap.items()},
            )
            for i, label in enumerate(data.label_ids)
        ]

    def _label_gains(self, headline: Group) -> tuple[Float64, Float64, Float64, Float64, Bool]:
        """Gain over random picks, its interval, p and whether it is resolved, of each label: (L,) each."""
        counts = self.data.evaluation.labels.counts()
        random = f"{training_sets.RANDOM} k={headline.k}"
        reference = next((g for g in self.groups if g.title == random), None)
        if reference is None:
            nothing = np.full(len(counts), np.nan)
            return nothing, nothing, nothing, nothing, np.zeros(len(counts), dtype=bool)
        gain, spread, freedom = self._label_differences(headline, reference)
        each = [Estimate(*values, 0.0, (-1.0, 1.0)) for values in zip(gain, np.sqrt(spread), freedom, strict=True)]
        low, high = np.array([one.interval() for one in each]).T
        p = intervals.p_values(gain, spread, freedom)
        p[counts < MIN_POSITIVES] = np.nan
        if self.too_few or self._unfinished_words([headline, reference]):
            p[:] = np.nan
        resolved = intervals.benjamini_hochberg(p, FALSE_DISCOVERIES)
        return gain, low, high, p, resolved

    def _label_differences(self, group: Group, reference: Group) -> tuple[Float64, Float64, Float64]:
        """AP differences of each label by the linear reading, their variance and degrees of freedom: (L,) each."""
        videos = self.data.evaluation.groups
        rankings = [self.probe.ranking(self.table.fits[i]) for i in (*group.fits, *reference.fits)]
        ap = np.stack([ranking.figures().ap for ranking in rankings])
        parts = []
        for labels in np.array_split(np.arange(ap.shape[1]), max(1, ap.shape[1] // LABELS_AT_ONCE)):
            each = np.stack([intervals.by_group(ranking.without_each_clip(labels), videos) for ranking in rankings])
            parts.append(intervals.against_draws(ap[0, labels], each[0], ap[1:, labels], each[1:])[:3])
        gain, spread, freedom = (np.concatenate(values) for values in zip(*parts, strict=True))
        return gain, spread, freedom


def too_few(data: ProbeData) -> str | None:
    """Why the evaluation clips cannot judge a difference, in words; None where they can."""
    if words := _too_few_videos(int(data.evaluation.groups.max(initial=-1)) + 1, "evaluation"):
        return words
    counts = data.evaluation.labels.counts()
    judged, enough = int((counts > 0).sum()), int((counts >= MIN_POSITIVES).sum())
    if 2 * enough >= judged:
        return None
    return f"too few to judge: {enough} of {judged} labels have {MIN_POSITIVES} evaluation clips, at least half must"


def _too_few_videos(num: int, whose: str) -> str | None:
    if num >= MIN_VIDEOS:
        return None
    return f"too few to judge: the {whose} clips are of {num} videos, and at least {MIN_VIDEOS} are needed"

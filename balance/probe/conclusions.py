"""From the probe's cells to what they support, in numbers and in sentences that a reader cannot misread.

In: `Problem`, `Table`; out: one JSON-able dictionary, the source of probe.json, probe.csv and the page alike. Draws of
one rule are reported as one arm (their mean, a two-level interval). A difference whose interval holds 0 is "not
resolved", never "no difference"; labels are tested together (Benjamini-Hochberg). No number here is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balance.probe import bootstrap, training_sets
from balance.probe.bootstrap import Estimate
from balance.probe.ranking_metrics import macro
from balance.probe.results import READINGS, Cell, Reading, Table
from balance.probe.runner import Probe
from balance.records import Float64
from balance.runtime.wording import listed

FIGURES = ("map", "map_prior", "d_prime")
FALSE_DISCOVERIES = 0.1
MIN_POSITIVES = 5  # evaluation clips of a label below which its own gain is not tested: the normal law fails
SAME_SPACE = (
    "same space: optimistic or pessimistic, not evidence: these embeddings also chose the neighbours, which are "
    "redundant there by construction; probe.embeddings= names another encoder's, which would make the headline"
)
LIMITS = (
    "It is a linear probe on fixed embeddings: whether a network trained on the set gains is not measured here.",
    "Intervals hold for new evaluation clips and new draws of this size from this pool, not for other seeds or pools; "
    "differences to the seeds alone and to the whole pool are between these very training sets.",
    "Each interval holds by itself: of twenty, one is expected to miss.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Cells reported as one arm: one training set, or the draws of one rule."""

    title: str
    cells: tuple[int, ...]  # positions in the table
    rule: str
    name: str
    k: int | None


def groups_of(table: Table) -> list[Group]:
    """The table's arms in order, draws joined."""
    out: list[Group] = []
    for i, cell in enumerate(table.cells):
        arm = cell.arm
        if arm.draw is None:
            out.append(Group(arm.title, (i,), arm.rule, arm.name, arm.k))
        elif arm.draw == 0:
            out.append(Group(arm.title.rsplit(" draw ", 1)[0], (i,), arm.rule, arm.name, arm.k))
        else:
            at = next(j for j, g in enumerate(out) if (g.rule, g.name, g.k) == (arm.rule, arm.name, arm.k))
            g = out[at]
            out[at] = Group(g.title, (*g.cells, i), g.rule, g.name, g.k)
    return out


class _Reader:
    """Estimates of groups and of their differences, each figure once."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table, self._seed = table, seed
        self._summaries: dict[tuple[int, str, str], tuple[float, Float64]] = {}

    def _summary(self, cell: int, reading: str, figure: str) -> tuple[float, Float64]:
        key = (cell, reading, figure)
        if key not in self._summaries:
            self._summaries[key] = self._reading(cell, reading).summary(figure)
        return self._summaries[key]

    def _reading(self, cell: int, reading: str) -> Reading:
        return self._table.readings[cell][READINGS.index(reading)]

    def _rng(self, group: Group) -> np.random.Generator:
        return np.random.default_rng([self._seed, 13, *group.cells])

    def level(self, group: Group, reading: str, figure: str) -> Estimate:
        """A group's own figure; for draws their mean, resampled over draws too."""
        both = [self._summary(i, reading, figure) for i in group.cells]
        value = float(np.mean([b[0] for b in both]))
        replicates = np.mean([b[1] for b in both], axis=0)
        if (num := len(both)) > 1:
            deviation = np.array([b[0] for b in both]) - value
            picked = self._rng(group).integers(0, num, (len(replicates), num))
            replicates = replicates + deviation[picked].mean(axis=1) * np.sqrt(num / (num - 1))
        return bootstrap.estimate(value, replicates)

    def difference(self, group: Group, control: Group, reading: str, figure: str) -> Estimate:
        """A single training set minus a control, paired over the evaluation clips."""
        (one,) = group.cells
        own, own_replicates = self._summary(one, reading, figure)
        both = [self._summary(i, reading, figure) for i in control.cells]
        value, replicates = bootstrap.against_draws(
            np.array([own]),
            own_replicates[:, None],
            np.array([[b[0]] for b in both]),
            np.stack([b[1][:, None] for b in both]),
            self._rng(control),
        )
        return bootstrap.estimate(float(value[0]), replicates[:, 0])

    def label_differences(self, group: Group, control: Group) -> tuple[Float64, Float64]:
        """AP differences of each label by the first reading: (L,), and replicates (B, L)."""
        (one,) = group.cells
        own, others = (self._reading(one, READINGS[0]), [self._reading(i, READINGS[0]) for i in control.cells])
        return bootstrap.against_draws(
            own.point.ap[0],
            own.replicates.ap,
            np.stack([o.point.ap[0] for o in others]),
            np.stack([o.replicates.ap for o in others]),
            self._rng(control),
        )


def find(probe: Probe, table: Table) -> dict[str, Any]:
    """Everything the probe found, as plain values in a fixed order (NaN: None)."""
    problem = probe.problem
    groups = groups_of(table)
    read = _Reader(table, probe.seed)
    rows = [_row(probe, table, group, read) for group in groups]
    choices = [g for g in groups if g.rule in (training_sets.NEIGHBOURS, training_sets.RUN)]
    comparisons = []
    for group in choices:
        for control in groups:
            if control.rule in (training_sets.RANDOM, training_sets.STRATIFIED) and (control.name, control.k) == (
                group.name,
                group.k,
            ):
                comparisons += _compare(read, group, control, table)
    headline = _headline(table, groups)
    by_title = {group.title: group for group in groups}
    if headline is not None:
        for rule in (training_sets.SEEDS, training_sets.POOL, training_sets.POOL_WEIGHTED):
            for control in groups:
                if control.rule == rule:
                    comparisons += _compare(read, headline, control, table)
    labels: list[dict[str, Any]] = []
    if headline is not None:
        labels = _labels(probe, table, headline, by_title.get(f"random k={headline.k}"), groups, read)
    evaluated = ~np.isnan(table.readings[0][0].point.ap[0])
    absent = [problem.names.get(x, x) for x, ok in zip(problem.label_ids, evaluated, strict=True) if not ok]
    heldout = [{"k": k, **_plain(e), "words": e.words()} for k, e in table.heldout_gains.items()]
    found: dict[str, Any] = {
        "same_space": problem.same_space,
        "counts": {
            "seeds": len(problem.seeds),
            "pool": len(problem.pool),
            "evaluation": len(problem.evaluation),
            "labels": len(problem.label_ids),
            "labels_evaluated": int(evaluated.sum()),
            "without_vector": problem.missing,
        },
        "judged_in": table.judged_in,
        "steps": probe.config.steps,
        "draws": probe.config.draws,
        "bootstrap": probe.config.bootstrap,
        "votes": probe.config.votes,
        "recommended_k": table.recommended,
        "headline": None if headline is None else headline.title,
        "heldout_gains": heldout,
        "arms": rows,
        "comparisons": comparisons,
        "labels": labels,
        "labels_not_in_evaluation": absent,
    }
    found["warnings"] = _warnings(probe, table, groups, found)
    found["sentences"] = _sentences(found)
    found["limits"] = list(LIMITS)
    return found


def _headline(table: Table, groups: Sequence[Group]) -> Group | None:
    """The arm that is compared with the whole pool: the recommended K, else the K best on held-out seeds."""
    of_k = {g.k: g for g in groups if g.rule == training_sets.NEIGHBOURS}
    if table.recommended is not None:
        return of_k.get(table.recommended)
    values = {k: float(macro(table.cells[g.cells[0]].heldout[None])[0]) for k, g in of_k.items()}
    known = {k: v for k, v in values.items() if not np.isnan(v)}
    return of_k[max(known, key=lambda k: known[k])] if known else None


def _row(probe: Probe, table: Table, group: Group, read: _Reader) -> dict[str, Any]:
    cells = [table.cells[i] for i in group.cells]
    first = cells[0]
    return {
        "arm": group.title,
        "rule": group.rule,
        "k": group.k,
        "draws": len(cells) if first.arm.draw is not None else None,
        "num_pool_clips": len(first.arm.rows),
        "num_clips": len(probe.problem.seeds) + len(first.arm.rows),
        "pool_share": len(first.arm.rows) / len(probe.problem.pool),
        "penalty": first.penalty,
        "penalty_at_edge": first.at_edge,
        "penalty_path": [[float(a), _number(float(b))] for a, b in first.path],
        "labels_not_trained": int((~first.trained).sum()),
        "unfinished": float(f"{max(c.unfinished for c in cells):.3g}"),
        "heldout_map": _number(float(np.mean([macro(c.heldout[None])[0] for c in cells]))),
        "readings": {
            reading: {figure: _plain(read.level(group, reading, figure)) for figure in FIGURES} for reading in READINGS
        },
        "map_by_draw": [_number(table.readings[i][0].summary("map")[0]) for i in group.cells] if len(cells) > 1 else [],
    }


def _compare(read: _Reader, group: Group, control: Group, table: Table) -> list[dict[str, Any]]:
    same = len(control.cells) > 1 and all(
        np.array_equal(table.cells[i].arm.rows, table.cells[group.cells[0]].arm.rows) for i in control.cells
    )
    out = []
    for reading in READINGS:
        for figure in FIGURES:
            got = read.difference(group, control, reading, figure)
            verdict, words = got.verdict(), got.words()
            if same:
                verdict, words = "same set", "the same clips: K takes the whole pool, so there is nothing to compare"
            elif figure != "map" and verdict == "equivalent":  # ±0.005 is stated for mAP
                verdict = "not resolved"
                words = f"not resolved: effects beyond [{got.low:+.4f}, {got.high:+.4f}] excluded"
            out.append(
                {
                    "arm": group.title,
                    "against": control.title,
                    "against_rule": control.rule,
                    "k": group.k,
                    "reading": reading,
                    "figure": figure,
                    **_plain(got),
                    "verdict": verdict,
                    "words": words,
                }
            )
    return out


def _labels(
    probe: Probe, table: Table, headline: Group, control: Group | None, groups: Sequence[Group], read: _Reader
) -> list[dict[str, Any]]:
    """Every label: clips, AP in each arm, and its gain over random picks where there are enough clips to test."""
    problem = probe.problem
    counts = problem.evaluation.labels.counts()
    in_seeds, in_pool = problem.seeds.labels.counts(), problem.pool.labels.counts()
    ap = {g.title: np.mean([table.readings[i][0].point.ap[0] for i in g.cells], axis=0) for g in groups}
    gain, p = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    low, high = gain.copy(), gain.copy()
    resolved = np.zeros(len(counts), dtype=bool)
    if control is not None:
        gain, replicates = read.label_differences(headline, control)
        p = bootstrap.p_values(gain, replicates)
        p[counts < MIN_POSITIVES] = np.nan
        resolved = bootstrap.benjamini_hochberg(p, FALSE_DISCOVERIES)
        each = [bootstrap.estimate(float(gain[i]), replicates[:, i]) for i in range(len(gain))]
        low, high = np.array([e.low for e in each]), np.array([e.high for e in each])
    return [
        {
            "id": label,
            "name": problem.names.get(label, label),
            "num_evaluation": int(counts[i]),
            "num_seeds": int(in_seeds[i]),
            "num_pool": int(in_pool[i]),
            "gain": _number(float(gain[i])),
            "low": _number(float(low[i])),
            "high": _number(float(high[i])),
            "p": _number(float(p[i])),
            "resolved": bool(resolved[i]),
            "ap": {title: _number(float(values[i])) for title, values in ap.items()},
        }
        for i, label in enumerate(problem.label_ids)
    ]


def _warnings(probe: Probe, table: Table, groups: Sequence[Group], found: dict[str, Any]) -> list[str]:
    out = []
    for group in groups:
        cell: Cell = table.cells[group.cells[0]]
        if cell.at_edge:
            end = "largest" if cell.penalty == cell.path[0, 0] else "smallest"
            out.append(
                f"{group.title}: the best λ = {cell.penalty:g} is the {end} tried: the best may lie beyond it; widen "
                "probe.penalties"
            )
        left = max(table.cells[i].unfinished for i in group.cells)
        if left > 0.01:
            out.append(f"{group.title}: {left:.1%} of a label's loss was still to be gained: raise probe.steps")
    if absent := found["labels_not_in_evaluation"]:
        out.append(
            f"{len(absent)} of {found['counts']['labels']} labels have no evaluation clip and count in no figure: "
            + listed(absent, 8)
        )
    seeds = probe.problem.seeds.labels.counts()
    unseen = [found_name for found_name, n in zip(_names(probe), seeds, strict=True) if n == 0]
    if unseen:
        out.append(f"{len(unseen)} labels have no seed: they cannot take part in choosing λ and K: {listed(unseen, 8)}")
    rare = int((probe.problem.evaluation.labels.counts() < MIN_POSITIVES).sum()) - len(absent)
    if rare > 0:
        out.append(f"{rare} labels have fewer than {MIN_POSITIVES} evaluation clips: their own gains are not tested")
    for group in groups:
        if group.rule in (training_sets.SEEDS, training_sets.NEIGHBOURS, training_sets.RUN, training_sets.POOL):
            lost = int((~table.cells[group.cells[0]].trained).sum())
            if lost:
                out.append(
                    f"{group.title}: {lost} labels are on none (or all) of its clips: their score is constant, their "
                    "AP the label's share"
                )
    for split, count in probe.problem.missing.items():
        if count:
            out.append(
                f"{count:,} clips of the {split} have no vector in probe.embeddings and are left out of all arms"
            )
    return out


def _sentences(found: dict[str, Any]) -> list[str]:
    """What the figures support; in the selecting encoder's own space that comes first."""
    out = []
    if found["same_space"]:
        out.append(SAME_SPACE + ".")
    if found["recommended_k"] is None:
        out.append(
            "no K beats random here: on held-out seeds no K's neighbours are resolved above as many random pool clips."
        )
    else:
        out.append(
            f"K = {found['recommended_k']} is recommended: the smallest within one standard error of the best on "
            "held-out seeds, and above as many random pool clips there."
        )
    for row in found["comparisons"]:
        if row["reading"] == READINGS[0] and row["figure"] == "map":
            against = {
                training_sets.RANDOM: "as many random pool clips",
                training_sets.STRATIFIED: "as many clips with the same label sets",
                training_sets.SEEDS: "the seeds alone",
                training_sets.POOL: "the whole pool at equal steps",
                training_sets.POOL_WEIGHTED: "the whole pool, weighted, at equal steps",
            }[row["against_rule"]]
            out.append(f"mAP, {row['arm']} against {against}: {row['words']}.")
    disagree = _disagreements(found)
    if disagree:
        out.append(
            f"The k-NN reading, with nothing to fit, says otherwise for {', '.join(disagree)}: do not rest on one."
        )
    tested = [x for x in found["labels"] if x["p"] is not None]
    if tested:
        up = sum(x["resolved"] and x["gain"] > 0 for x in tested)
        down = sum(x["resolved"] and x["gain"] < 0 for x in tested)
        out.append(
            f"Labels, {found['headline']} against random: of {len(tested)} tested, {up} gain and {down} lose at a "
            f"false discovery rate of {FALSE_DISCOVERIES:.0%}; the others are not resolved."
        )
    return out


def _disagreements(found: dict[str, Any]) -> list[str]:
    """Arms of which one reading resolves a gain over random and the other a loss."""
    verdicts: dict[tuple[str, str], set[str]] = {}
    for row in found["comparisons"]:
        if row["figure"] == "map" and row["against_rule"] == training_sets.RANDOM:
            verdicts.setdefault((row["arm"], row["against"]), set()).add(row["verdict"])
    return [arm for (arm, _), said in verdicts.items() if {"gain", "loss"} <= said]


def _names(probe: Probe) -> list[str]:
    return [probe.problem.names.get(x, x) for x in probe.problem.label_ids]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


def _plain(e: Estimate) -> dict[str, float | None]:
    return {"value": _number(e.value), "low": _number(e.low), "high": _number(e.high), "error": _number(e.error)}

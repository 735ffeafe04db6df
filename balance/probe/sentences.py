"""What the probe's findings support, in sentences that a reader cannot misread, and what a reader must be warned of.

In: `Findings`; out: lines for console, page and probe.json alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from balance.probe import logistic, training_sets
from balance.probe.bootstrap import Verdict
from balance.probe.data import ProbeData
from balance.probe.estimates import Group
from balance.probe.findings import Comparison, Findings
from balance.probe.results import CLASSIFIERS, Table
from balance.runtime.wording import listed

FALSE_DISCOVERIES = 0.1
MIN_POSITIVES = 5  # evaluation clips of a label below which its own gain is not tested: the normal law fails
SAME_SPACE = (
    "same space: optimistic or pessimistic, not evidence: these embeddings also chose the neighbours, which are "
    "redundant there by construction; probe.embeddings= names another encoder's, which would make the headline."
)
LIMITS = (
    "It is a linear probe on fixed embeddings: whether a network trained on the set gains is not measured here.",
    "Intervals hold for new evaluation clips and new draws of this size from this pool, not for other seeds or pools; "
    "differences to the seeds alone and to the whole pool are between these very training sets.",
    "Each interval holds by itself: of twenty, one is expected to miss.",
)
_AGAINST = {
    training_sets.RANDOM: "as many random pool clips",
    training_sets.STRATIFIED: "as many clips with the same label sets",
    training_sets.SEEDS: "the seeds alone",
    training_sets.POOL: "the whole pool",
    training_sets.POOL_WEIGHTED: "the whole pool, weighted",
}


def sentences_of(found: Findings, no_k: str | None) -> list[str]:
    """What the figures support; in the selecting encoder's own space that comes first. no_k: why K cannot be chosen."""
    out = [SAME_SPACE] if found.same_space else []
    out.append(_on_k(found, no_k))
    for row in found.comparisons:
        if row.reading == CLASSIFIERS[0] and row.figure == "map":
            out.append(f"mAP, {row.arm} against {_AGAINST[row.against_rule]}: {row.words}.")
    if disagree := _disagreements(found.comparisons):
        out.append(
            f"The k-NN reading, with nothing to fit, says otherwise for {', '.join(disagree)}: do not rest on one."
        )
    if tested := [label for label in found.labels if label.p is not None]:
        up = sum(label.resolved and (label.gain or 0.0) > 0 for label in tested)
        down = sum(label.resolved and (label.gain or 0.0) < 0 for label in tested)
        out.append(
            f"Labels, {found.headline} against random: of {len(tested)} tested, {up} gain and {down} lose at a "
            f"false discovery rate of {FALSE_DISCOVERIES:.0%}; the others are not resolved."
        )
    return out


def _on_k(found: Findings, no_k: str | None) -> str:
    if no_k is not None:
        return f"no K can be recommended: {no_k}."
    if found.recommended_k is None:
        return (
            "no K beats random here: on held-out seeds no K's neighbours are resolved above as many random pool clips."
        )
    return (
        f"K = {found.recommended_k} is recommended: the smallest within one standard error of the best on held-out "
        "seeds, and above as many random pool clips there."
    )


def _disagreements(comparisons: Sequence[Comparison]) -> list[str]:
    """Arms of which one classifier resolves a gain over random and the other a loss."""
    verdicts: dict[tuple[str, str], set[str]] = {}
    for row in comparisons:
        if row.figure == "map" and row.against_rule == training_sets.RANDOM:
            verdicts.setdefault((row.arm, row.against), set()).add(row.verdict)
    return [arm for (arm, _), said in verdicts.items() if {Verdict.gain, Verdict.loss} <= said]


def warnings_of(found: Findings, data: ProbeData, table: Table, groups: Sequence[Group]) -> list[str]:
    """What a reader must know before the sentences are believed."""
    return [*_of_fits(table, groups, found.steps), *_of_labels(found, data, table, groups), *_of_vectors(found)]


def _of_fits(table: Table, groups: Sequence[Group], steps: int) -> list[str]:
    out = []
    for group in groups:
        first = table.fits[group.fits[0]]
        if first.at_edge:
            end = "largest" if first.penalty == first.path[0, 0] else "smallest"
            out.append(
                f"{group.title}: the best λ = {first.penalty:g} is the {end} tried, beyond the grid too: the best may "
                "lie further; widen probe.penalties"
            )
        left = max(table.fits[i].unfinished for i in group.fits)
        if left > logistic.SETTLED:
            out.append(
                f"{group.title}: after {steps} passes the next step would still move a label's scores by {left:.0%} of "
                "their spread: raise probe.steps"
            )
    return out


def _of_labels(found: Findings, data: ProbeData, table: Table, groups: Sequence[Group]) -> list[str]:
    out = []
    absent = found.labels_not_in_evaluation
    if absent:
        out.append(
            f"{len(absent)} of {found.counts.labels} labels have no evaluation clip and count in no figure: "
            + listed(absent, 8)
        )
    seeds = data.seeds.labels.counts()
    unseen = [data.names.get(label, label) for label, num in zip(data.label_ids, seeds, strict=True) if num == 0]
    if unseen:
        out.append(f"{len(unseen)} labels have no seed: they cannot take part in choosing λ and K: {listed(unseen, 8)}")
    rare = int((data.evaluation.labels.counts() < MIN_POSITIVES).sum()) - len(absent)
    if rare > 0:
        out.append(f"{rare} labels have fewer than {MIN_POSITIVES} evaluation clips: their own gains are not tested")
    for group in groups:
        if group.rule in (training_sets.SEEDS, training_sets.NEIGHBOURS, training_sets.RUN, training_sets.POOL):
            lost = int((~table.fits[group.fits[0]].trained).sum())
            if lost:
                out.append(
                    f"{group.title}: {lost} labels are on none (or all) of its clips: their score is constant, their "
                    "AP the label's share"
                )
    return out


def _of_vectors(found: Findings) -> list[str]:
    return [
        f"{count:,} clips of the {split} have no vector in probe.embeddings and are left out of all arms"
        for split, count in found.counts.without_vector.items()
        if count
    ]

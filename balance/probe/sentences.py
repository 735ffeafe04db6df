"""What the probe's findings support, in sentences that a reader cannot misread, and what a reader must be warned of.

In: `Findings`; out: lines for console, page and probe.json alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from balance.probe import logistic, training_sets
from balance.probe.config import Rival
from balance.probe.data import ProbeData
from balance.probe.estimates import Group
from balance.probe.findings import Comparison, Conclusion, Findings, Step
from balance.probe.intervals import RESOLVE, Verdict
from balance.probe.results import LINEAR, Table
from balance.runtime.wording import listed

FALSE_DISCOVERIES = 0.1
OPTIMISTIC = 0.05  # held-out mAP above that of the evaluation clips, from which it is said
MIN_POSITIVES = 5  # evaluation clips of a label below which its own gain is not tested: the normal law fails
SAME_SPACE = (
    "same space: optimistic or pessimistic, not evidence: these embeddings also chose the neighbours, which are "
    "redundant there by construction; probe.embeddings= names another encoder's, which would make the headline."
)
READINGS = {
    "logistic": "linear",
    "knn": "k-NN vote",
    "prototype": "prototypes",
    "mlp": "small network",
}
LIMITS = (
    "It reads fixed embeddings: whether a network trained on the set gains is not measured here.",
    "Intervals hold for new evaluation clips and new draws of this size from this pool, not for other seeds or pools; "
    "differences to the seeds alone and to the whole pool are between these very training sets.",
    "Each interval holds by itself: of twenty, one is expected to miss.",
)
_AGAINST = {
    training_sets.RANDOM: "as many random pool clips",
    training_sets.STRATIFIED: "as many clips with the same label sets",
    training_sets.NEIGHBOURS: "the best single K",
    training_sets.SEEDS: "the seeds alone",
    training_sets.POOL: "the whole pool",
    training_sets.POOL_WEIGHTED: "the whole pool, weighted",
    "hierarchical_kmeans": "as many by hierarchical k-means",
    "class_balanced": "as many, class-balanced",
    "metaclip": "as many by MetaCLIP's caps",
    "k_center": "as many by k-center greedy",
    "easy_prototypes": "as many easy prototypes",
    "hard_prototypes": "as many hard prototypes",
}


def sentences_of(found: Findings, no_k: str | None) -> list[str]:
    """What the figures support; in the selecting encoder's own space that comes first. no_k: why K cannot be chosen."""
    out = [SAME_SPACE] if found.same_space else []
    out.append(_on_k(found, no_k))
    out += [f"mAP, {one.arm} against {_AGAINST[one.against_rule]}: {one.words}." for one in found.conclusions]
    out += _on_resolution(found)
    if (value := found.value_of_neighbours) is not None:
        steps = [f"ranks {x.from_k + 1} to {x.to_k} {_of_step(x)}" for x in value.steps]
        out.append(f"One more neighbour, mAP per 1,000 added clips: {'; '.join(steps)}.")
    out += _on_per_seed(found)
    if tested := [label for label in found.labels if label.p is not None]:
        up = sum(label.resolved and (label.gain or 0.0) > 0 for label in tested)
        down = sum(label.resolved and (label.gain or 0.0) < 0 for label in tested)
        out.append(
            f"Labels, {found.headline} against random: of {len(tested)} tested, {up} gain and {down} lose at a "
            f"false discovery rate of {FALSE_DISCOVERIES:.0%}; the others are not resolved."
        )
    return out


def _on_per_seed(found: Findings) -> list[str]:
    """Where `augment.per_seed_k` has nothing to win: no label's own K is resolved, or no gain of the whole set."""
    k = found.recommended_k
    if k is None or found.value_of_neighbours is None:
        return []
    against = next((one for one in found.conclusions if one.arm == training_sets.PER_SEED), None)
    if against is None:
        return [f"K per seed: no gain: no label is resolved to be served better by another K than {k}."]
    return [] if against.verdict is Verdict.gain else [f"K per seed: no gain over K = {k} for all is shown."]


def _of_step(step: Step) -> str:
    if step.per_1000_clips is None or step.verdict not in (Verdict.gain, Verdict.loss):
        return str(step.verdict)
    return f"{step.per_1000_clips:+.4f} [{step.per_1000_clips_low:+.4f}, {step.per_1000_clips_high:+.4f}]"


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


def conclusions_of(comparisons: Sequence[Comparison]) -> tuple[Conclusion, ...]:
    """What the readings say together of each arm's mAP against a reference: a verdict only where it is everyone's."""
    by_pair: dict[tuple[str, str], list[Comparison]] = {}
    for row in comparisons:
        if row.figure == "map":
            by_pair.setdefault((row.arm, row.against), []).append(row)
    out = []
    for rows in by_pair.values():
        verdicts = {row.reading: row.verdict for row in rows}
        unfinished = [row for row in rows if row.verdict is Verdict.not_finished]
        first = unfinished[0] if unfinished else rows[0]  # of a fit that is not finished nothing is said at all
        agree = bool(unfinished) or len(set(verdicts.values())) == 1
        words = first.words if agree else "the readings disagree, so nothing is concluded: " + _each(rows)
        if agree and first.verdict in (Verdict.gain, Verdict.loss):
            words += f" by all {len(rows)} readings"
        out.append(
            Conclusion(
                arm=first.arm,
                against=first.against,
                against_rule=first.against_rule,
                k=first.k,
                agree=agree,
                verdict=first.verdict if agree else None,
                by_reading=verdicts,
                words=words,
            )
        )
    return tuple(out)


def _each(rows: Sequence[Comparison]) -> str:
    """The readings by verdict: `gain by linear (0.0310); not resolved by k-NN vote`."""
    by_verdict: dict[Verdict, list[str]] = {}
    for row in rows:
        size = f" ({abs(row.value or 0.0):.4f})" * (row.verdict in (Verdict.gain, Verdict.loss))
        by_verdict.setdefault(row.verdict, []).append(reading_name(row.reading) + size)
    return "; ".join(f"{verdict} by {', '.join(names)}" for verdict, names in by_verdict.items())


def reading_name(reading: str) -> str:
    """`knn` → `k-NN vote`, `knn, selecting space` → `k-NN vote in the selecting space`."""
    name, _, space = reading.partition(", ")
    return READINGS[name] + (f" in the {space}" if space else "")


def veto(conclusions: Sequence[Conclusion], k: int) -> str | None:
    """Why this K is not recommended although it is chosen: any reading resolves a loss there against random picks or
    against the seeds alone, or all of them one against a rival of its size."""
    for one in conclusions:
        if one.arm != f"{training_sets.NEIGHBOURS} k={k}":
            continue
        against = [reading_name(name) for name, verdict in one.by_reading.items() if verdict is Verdict.loss]
        any_is_enough = one.against_rule in (training_sets.RANDOM, training_sets.SEEDS)
        is_rival = one.against_rule in {rule.value for rule in Rival}
        if against and (any_is_enough or (is_rival and len(against) == len(one.by_reading))):
            return f"K = {k} is best on held-out seeds, but a loss against {one.against} by {listed(against)}"
    return None


def _on_resolution(found: Findings) -> list[str]:
    """What could have been seen with these clips and draws, for the linear reading against random picks."""
    rows = [
        row
        for row in found.comparisons
        if (row.reading, row.figure, row.against_rule) == (LINEAR, "map", training_sets.RANDOM)
    ]
    rows = [row for row in rows if row.detectable is not None and row.arm.startswith(training_sets.NEIGHBOURS)]
    if not rows:
        return []
    best, worst = (f(rows, key=lambda row: row.detectable or 0.0) for f in (min, max))
    span = f"{best.detectable:.4f}"
    if worst is not best:
        span += f" ({best.arm}) to {worst.detectable:.4f} ({worst.arm})"
    out = f"Smallest true difference to random picks that these clips and {found.draws} draws resolve in 80 of 100 "
    out += f"probes: {span}; "
    needed = [row.videos_to_resolve for row in rows]
    if any(x is None for x in needed):
        out += f"{RESOLVE} would need more draws (probe.draws): their luck alone is larger at some K."
    else:
        out += f"{RESOLVE} would need about {max(x or 0 for x in needed):,} evaluation videos for every K."
    return [out]


def warnings_of(found: Findings, data: ProbeData, table: Table, groups: Sequence[Group]) -> list[str]:
    """What a reader must know before the sentences are believed."""
    return [
        *_of_fits(table, groups, found.steps),
        *_of_sources(found),
        *_of_labels(found, data, table, groups),
        *_of_vectors(found),
    ]


def _of_fits(table: Table, groups: Sequence[Group], steps: int) -> list[str]:
    at_edge: dict[str, list[str]] = {}
    unfinished = []
    for group in groups:
        first = table.fits[group.fits[0]]
        if first.at_edge:
            end = "largest" if first.penalty == first.path[0, 0] else "smallest"
            at_edge.setdefault(f"λ = {first.penalty:g} is the {end} tried", []).append(group.title)
        left = max(table.fits[i].unfinished for i in group.fits)
        if left > logistic.SETTLED:
            unfinished.append(
                f"{group.title}: after {steps} passes the next step would still move a label's scores by {left:.0%} of "
                "their spread: raise probe.steps"
            )
    return [
        *(
            f"{listed(titles, 4)}: the best {what}, beyond the grid too: the best may lie further; widen "
            "probe.penalties"
            for what, titles in at_edge.items()
        ),
        *unfinished,
    ]


def _of_sources(found: Findings) -> list[str]:
    """How far the held-out seeds can be believed."""
    out = []
    if found.counts.seed_sources == 1:
        out.append(
            "all seeds are of one source (probe.source): each is held out by itself, so λ is chosen on clips whose "
            "source is trained on"
        )
    if num := found.counts.pool_of_seed_sources:
        out.append(
            f"{num:,} pool clips are of a seed's source, by their ids (probe.source): where that seed is held out they "
            "are left out of training"
        )
    for arm in found.arms:
        value = arm.readings[LINEAR]["map"].value
        if arm.arm != found.headline or value is None or arm.heldout_map is None:
            continue
        if arm.heldout_map - value > OPTIMISTIC:
            out.append(
                f"{arm.arm}: mAP {arm.heldout_map:.3f} on held-out seeds, {value:.3f} on the evaluation clips: seeds "
                "and pool may share sources that their ids do not tell, or the evaluation is of another kind"
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

"""report.html: what a run did, for the eye, as one self-contained file.

In: the stages' results, measured by `stats.run_stats`. Out: HTML with inline SVG, no network, the same bytes for the
same run but for links to media. Light and dark, keyboard and screen reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from markupsafe import Markup

from balance.curation.curate import Curated
from balance.curation.removed import Removals, Rule
from balance.demo.checkpoint import NOTICE
from balance.prepared import Prepared
from balance.records import REASONS, RandomSimilarity, Split, Strings
from balance.report import figures, html, listening
from balance.report.sound import Sound
from balance.results.summary import Summary
from balance.runtime import files
from balance.runtime.remote import AnyPath
from balance.stats import run_stats
from balance.stats.run_stats import RunStats, SampleRates

PAIRS_SHOWN = 25
FAILURES_SHOWN = 100
DISPUTED_SHOWN = 20  # labels, and seeds
RATES_DIFFER = 0.1  # share of the clips that would have to change their rate, from which the page warns


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What the page says of the run beside its results.

    dataset: `dataset.name`; media_base: where links to the media point instead of media_root; parents: label id -> ids
    of its parents in the ontology; sound: what the spectrograms are drawn from, None without media;
    num_embedded: clips whose sound the page holds itself; rng_seed: of the
    seeds that are drawn for listening.
    """

    dataset: str
    is_demo: bool
    media_root: AnyPath
    media_base: str | None
    parents: Mapping[str, list[str]]
    sound: Sound | None
    num_embedded: int
    rng_seed: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """Clips that one rule took out. value: what the rows' third column is; rows: the first (clip, copy of, value)."""

    title: str
    value: str
    count: int
    rows: tuple[_Row, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """audio, its_audio: links to the sound of the clip, and of the one that it copies."""

    id: str
    because_of: str | None
    value: float | None
    audio: tuple[str, ...]
    its_audio: tuple[str, ...]


def write_report(folder: Path, about: About, *, prepared: Prepared, k: int, curated: Curated, summary: Summary) -> Path:
    """`report.html` in the run's folder. summary: the content of summary.json; neighbours at K or more in prepared."""
    path = folder / "report.html"
    with files.atomic_text(path) as file:
        file.write(render(folder, about, prepared, k, curated, summary))
    return path


def render(folder: Path, about: About, prepared: Prepared, k: int, curated: Curated, summary: Summary) -> str:
    """The page's text; folder: where it will lie."""
    stats = run_stats.measure(
        splits=prepared.embedded.splits,
        eligible=prepared.eligible,
        neighbours=prepared.neighbours,
        k=k,
        chosen=curated.union.pool_rows,
        ontology=prepared.embedded.ontology,
        parents=about.parents,
    )
    links = listening.Links.to(about.media_root, about.media_base, folder)
    clips = listening.choose(
        prepared.seeds,
        prepared.pool,
        prepared.neighbours.top(k),
        stats.agreement_by_seed,
        names=prepared.embedded.ontology,
        links=links,
        sound=about.sound,
        num_embedded=about.num_embedded,
        rng_seed=about.rng_seed,
    )
    agreement, chance = summary.label_agreement, summary.label_agreement_random
    num_seeds = len(prepared.seeds.embedded)
    shown = [clip for part in clips for group in part.groups for clip in group.clips]
    return (
        html.environment()
        .get_template("report.html")
        .render(
            dataset=about.dataset,
            s=summary,
            stats=stats,
            num_seeds=num_seeds,
            train_on=_train_on(prepared, k),
            share_before=stats.hubs.chosen if len(curated.removals) + len(curated.included) else None,
            times_chance=agreement / chance if agreement is not None and chance else None,
            num_failures=len(prepared.embedded.failures),
            failures=prepared.embedded.failures[:FAILURES_SHOWN],
            num_listed=sum(len(split.index) for split in prepared.embedded.splits.values()),
            warnings=_warnings(about, summary, stats.rates, [*prepared.warnings, *curated.warnings]),
            notes=curated.notes,
            figures=_figures(stats, summary.similarity_random, num_seeds, len(prepared.eligible), k),
            disputed=_disputed(summary, prepared.embedded.ontology),
            reasons=REASONS,
            rules=_rules(
                prepared.embedded.splits, Removals.join(prepared.kept_out, curated.included, curated.removals), links
            ),
            listening=clips,
            audible=any(clip.audio for clip in shown),
            pictured=any(clip.picture for clip in shown),
        )
    )


def _figures(stats: RunStats, random: RandomSimilarity, num_seeds: int, num_eligible: int, k: int) -> dict[str, Markup]:
    drawn = {
        "saturation": figures.saturation(stats.saturation, k),
        "hubs": figures.hubs(stats.hubs, num_seeds, num_eligible, k),
        "similarity": figures.similarity(stats.similarity, random),
        "lift": Markup(),
    }
    if (by_rank := stats.labels_by_rank) is not None:
        drawn["agreement"] = figures.agreement(by_rank)
        if by_rank.num_judged:
            drawn["lift"] = figures.lift(by_rank)
    if stats.balance is not None:
        drawn["labels"] = figures.labels(stats.balance.rows)
    return drawn


def _disputed(summary: Summary, names: Mapping[str, str]) -> dict[str, list[tuple[str, float]]]:
    """The labels (by name) and seeds on which the encoders agree least; nothing where there is one encoder."""
    if summary.consensus is None:
        return {}
    least = {
        kind: sorted(values.items(), key=lambda item: (item[1], item[0]))[:DISPUTED_SHOWN]
        for kind, values in (("labels", summary.consensus.by_label), ("seeds", summary.consensus.by_seed))
    }
    return least | {"labels": [(names.get(label, label), value) for label, value in least["labels"]]}


def _train_on(prepared: Prepared, k: int) -> str:
    has_lines = prepared.seeds.index.lines is not None and prepared.pool.index.lines is not None
    return f"src_augmented_k{k}.csv" if has_lines else f"ids_k{k}.csv"


def _warnings(about: About, summary: Summary, rates: SampleRates | None, found: list[str]) -> list[str]:
    if about.is_demo:
        found.append(f"{NOTICE[0].upper()}{NOTICE[1:]}.")
    if summary.nearly_all:
        found.append("The neighbours are nearly the whole pool: a smaller K selects more.")
    if summary.num_partial:
        found.append(f"{summary.partial_warning[0].upper()}{summary.partial_warning[1:]}.")
    if rates is not None and rates.differ > RATES_DIFFER:
        found.append(
            f"Seeds and pool differ in sample rates ({rates.differ:.0%} of the clips would have to change theirs): "
            "neighbours may follow the rate instead of the sound."
        )
    return found


def _rules(splits: Mapping[str, Split], removals: Removals, links: listening.Links) -> list[_Rule]:
    pool = splits["pool"].index
    rules = []
    for rule in Rule:
        at = pa.compute.indices_nonzero(pa.compute.equal(removals.rule, rule.name))
        if len(at):
            if rule in (Rule.leak_acoustic, Rule.copy_acoustic):  # what barely passed the threshold is most in doubt
                at = at.take(pa.compute.sort_indices(removals.value.take(at)))
            first = at[:PAIRS_SHOWN]
            rows = removals.rows[first.to_numpy()]
            of = removals.because_of.take(first)
            columns = (
                pool.ids.take(pa.array(rows)).to_pylist(),
                of.to_pylist(),
                removals.value.take(first).to_pylist(),
            )
            audio = [links.audio(pool, int(row)) for row in rows]
            shown = zip(*columns, audio, _audio_of(of, splits, links), strict=True)
            rules.append(_Rule(rule.title, rule.value_name, len(at), tuple(_Row(*row) for row in shown)))
    return rules


def _audio_of(ids: Strings, splits: Mapping[str, Split], links: listening.Links) -> list[tuple[str, ...]]:
    """Links to the sound of these clips (null: none), looked for among evaluation clips, seeds and pool in turn."""
    found: list[tuple[str, ...]] = [()] * len(ids)
    for name in ("pool", "seeds", "eval"):  # the last that has it counts
        if name in splits:
            index = splits[name].index
            for place, row in enumerate(pa.compute.index_in(ids, value_set=index.ids).to_pylist()):
                if row is not None and ids[place].is_valid:
                    found[place] = links.audio(index, row)
    return found

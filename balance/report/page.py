"""report.html: what a run did, for the eye, as one self-contained file; and one page a sweep.

In: the stages' results, measured by `effect`. Out: HTML with inline SVG, no network, the same bytes for the same run
(links to media, which are absolute or follow `report.media_base`, aside). Light and dark, keyboard and screen reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from balance.curation.curate import Curated
from balance.curation.removed import Removals, Rule
from balance.demo.checkpoint import NOTICE
from balance.prepared import Prepared
from balance.records import REASONS, Index
from balance.report import figures, html, listening
from balance.results.summary import Summary
from balance.runtime import files
from balance.stats import run_stats

PAIRS_SHOWN = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What the page says of the run beside its results.

    dataset: `dataset.name`; media_base: where links to the media point instead of media_root; parents: label id -> ids
    of its parents in the ontology; seed: of the clips that are drawn for listening.
    """

    dataset: str
    is_demo: bool
    media_root: Path
    media_base: str | None
    parents: Mapping[str, list[str]]
    seed: int


def write_report(folder: Path, about: About, *, prepared: Prepared, k: int, curated: Curated, summary: Summary) -> Path:
    """`report.html` in the run's folder. summary: the content of summary.json; neighbours at K or more in prepared."""
    path = folder / "report.html"
    with files.atomic_text(path) as file:
        file.write(render(about, prepared, k, curated, summary))
    return path


def render(about: About, prepared: Prepared, k: int, curated: Curated, summary: Summary) -> str:
    """The page's text."""
    measured = run_stats.measure(
        splits=prepared.embedded.splits,
        eligible=prepared.eligible,
        neighbours=prepared.neighbours,
        k=k,
        chosen=curated.union.pool_rows,
        ontology=prepared.embedded.ontology,
        parents=about.parents,
    )
    clips = listening.choose(
        prepared.seeds,
        prepared.pool,
        prepared.neighbours.top(k),
        measured["agreement_by_seed"],
        names=prepared.embedded.ontology,
        base=listening.base_url(about.media_base, about.media_root),
        media=about.media_root,
        seed=about.seed,
    )
    by_rank = measured["labels_by_rank"]
    agreement, chance = summary.label_agreement, summary.label_agreement_random
    num_seeds = len(prepared.seeds.embedded)
    return (
        html.environment()
        .get_template("report.html")
        .render(
            dataset=about.dataset,
            s=summary,
            e=measured,
            num_seeds=num_seeds,
            train_on=_train_on(prepared, k),
            share_before=measured["hubs"]["chosen"] if len(curated.removals) else None,
            times_chance=agreement / chance if agreement is not None and chance else None,
            num_failures=len(prepared.embedded.failures),
            num_listed=sum(len(split.index) for split in prepared.embedded.splits.values()),
            warnings=_warnings(about, summary, measured, curated),
            notes=curated.notes,
            figures={
                "saturation": figures.saturation(measured["saturation"], k),
                "hubs": figures.hubs(measured["hubs"], num_seeds, len(prepared.eligible), k),
                "similarity": figures.similarity(measured["similarity"]),
                "agreement": figures.agreement(by_rank) if agreement is not None else "",
                "lift": figures.lift(by_rank) if agreement is not None else "",
                "labels": figures.labels(measured["balance"]["rows"]) if measured["balance"]["rows"] else "",
            },
            rates=sorted({hz for row in measured["rates"]["table"] for hz in row["rates"]})
            if measured["rates"]
            else [],
            reasons=REASONS,
            rules=_rules(prepared.pool.index, Removals.join(prepared.decontaminated, curated.removals)),
            listening=clips,
            audible=any(clip["audio"] for part in clips for group in part["groups"] for clip in group),
        )
    )


def _train_on(prepared: Prepared, k: int) -> str:
    has_lines = prepared.seeds.index.lines is not None and prepared.pool.index.lines is not None
    return f"src_augmented_k{k}.csv" if has_lines else f"ids_k{k}.csv"


def _warnings(about: About, summary: Summary, measured: dict[str, Any], curated: Curated) -> list[str]:
    found = list(curated.warnings)
    if about.is_demo:
        found.append(f"{NOTICE[0].upper()}{NOTICE[1:]}.")
    if summary.nearly_all:
        found.append("The neighbours are nearly the whole pool: a smaller K selects more.")
    rates = measured["rates"]
    if rates and rates["differ"] > run_stats.RATES_DIFFER:
        found.append(
            f"Seeds and pool differ in sample rates ({rates['differ']:.0%} of the clips would have to change theirs): "
            "neighbours may follow the rate instead of the sound."
        )
    return found


def _rules(pool: Index, removals: Removals) -> list[dict[str, Any]]:
    rules = []
    for rule in Rule:
        at = pa.compute.indices_nonzero(pa.compute.equal(removals.rule, rule.name))
        if len(at):
            first = at[:PAIRS_SHOWN]
            rows = removals.rows[first.to_numpy()]
            columns = (pool.ids.take(pa.array(rows)), removals.because_of.take(first), removals.value.take(first))
            shown = zip(*(column.to_pylist() for column in columns), strict=True)
            rules.append(
                {
                    "title": rule.title,
                    "value": rule.value_name,
                    "count": len(at),
                    "rows": [{"id": a, "because_of": b, "value": c} for a, b, c in shown],
                }
            )
    return rules

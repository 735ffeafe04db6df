"""report.html: what a run did, for the eye, as one self-contained file; and one page a sweep.

In: the stages' results, measured by `effect`. Out: HTML with inline SVG, no network, the same bytes for the same run
(links to media, which are absolute or follow `report.media_base`, aside). Light and dark, keyboard and screen reader.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from balance.curation.curate import Curated
from balance.curation.decontaminate import Removed
from balance.pipeline import Prepared
from balance.records import REASONS, Index
from balance.report import figures, html, listening
from balance.runtime import files
from balance.stats import run_stats

PAIRS_SHOWN = 25
_RULES = {
    "leak_id": ("Evaluation clips, by id", ""),
    "leak_exact": ("Evaluation clips, equal samples", "correlation"),
    "leak_acoustic": ("Evaluation clips, by sound", "correlation"),
    "copy_exact": ("Copies of a seed or neighbour, equal samples", "correlation"),
    "copy_acoustic": ("Copies of a seed or neighbour, by sound", "correlation"),
    "cap": ("Beyond the label cap", "clips a label"),
    "metaclip": ("Not drawn by metaclip", "probability to stay"),
    "budget": ("Beyond the budget", "rank"),
}
SWEEP_COLUMNS = (
    "k",
    "num_seeds",
    "num_neighbours",
    "pool_share",
    "pool_share_uniform",
    "label_agreement",
    "label_agreement_random",
    "label_recall",
    "label_recall_random",
    "label_entropy_before",
    "label_entropy_after",
)


def write_report(folder: Path, *, prepared: Prepared, k: int, curated: Curated, summary: dict[str, Any]) -> Path:
    """`report.html` in the run's folder. summary: the content of summary.json; neighbours at K or more in prepared."""
    path = folder / "report.html"
    with files.atomic_text(path) as file:
        file.write(render(prepared, k, curated, summary))
    return path


def render(prepared: Prepared, k: int, curated: Curated, summary: dict[str, Any]) -> str:
    """The page's text."""
    settings = prepared.settings
    given = settings.dataset.ontology
    measured = run_stats.measure(
        splits=prepared.splits,
        eligible=prepared.eligible,
        neighbours=prepared.neighbours,
        k=k,
        curated=curated,
        ontology=prepared.ontology,
        parents=run_stats.read_parents(Path(given).expanduser() if given else settings.root / "ontology.json"),
    )
    clips = listening.choose(
        prepared.seeds,
        prepared.pool,
        prepared.neighbours.top(k),
        measured["agreement_by_seed"],
        names=prepared.ontology,
        base=listening.base_url(settings.report.media_base, settings.media_root),
        media=settings.media_root,
        seed=settings.seed,
    )
    by_rank = measured["labels_by_rank"]
    has_labels = summary["label_agreement"] is not None
    num_seeds = len(prepared.seeds.embedded)
    chance = summary["label_agreement_random"]
    return (
        _environment()
        .get_template("report.html")
        .render(
            dataset=settings.dataset.name,
            s=summary,
            e=measured,
            num_seeds=num_seeds,
            train_on=_train_on(prepared, k),
            share_before=measured["hubs"]["chosen"] if len(curated.removed) else None,
            times_chance=summary["label_agreement"] / chance if has_labels and chance else None,
            num_failures=len(prepared.failures),
            num_listed=sum(len(split.index) for split in prepared.splits.values()),
            warnings=_warnings(prepared, summary, measured, curated),
            notes=curated.notes,
            figures={
                "saturation": figures.saturation(measured["saturation"], k),
                "hubs": figures.hubs(measured["hubs"], num_seeds, len(prepared.eligible), k),
                "similarity": figures.similarity(measured["similarity"]),
                "agreement": figures.agreement(by_rank) if has_labels else "",
                "lift": figures.lift(by_rank) if has_labels else "",
                "labels": figures.labels(measured["balance"]["rows"]) if measured["balance"]["rows"] else "",
            },
            rates=sorted({hz for row in measured["rates"]["table"] for hz in row["rates"]})
            if measured["rates"]
            else [],
            reasons=REASONS,
            rules=_rules(prepared.pool.index, Removed.join(prepared.leaks, curated.removed)),
            listening=clips,
            audible=any(clip["audio"] for part in clips for group in part["groups"] for clip in group),
        )
    )


def write_sweep(root: Path) -> list[Path]:
    """`sweep.csv` and `report.html` at a sweep's root, over the runs that are complete; nothing while there is none."""
    rows = []
    for path in sorted(root.glob("**/summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        run = path.parent.relative_to(root).as_posix()
        link = f"{run}/report.html" if (path.parent / "report.html").exists() else None
        rows.append({"run": run, "page": link, **{name: summary[name] for name in SWEEP_COLUMNS}})
    if not rows:
        return []
    rows.sort(key=lambda row: (row["k"], row["run"]))
    table, page = root / "sweep.csv", root / "report.html"
    with files.atomic_text(table) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *SWEEP_COLUMNS))
        writer.writerows([row["run"], *("" if row[c] is None else row[c] for c in SWEEP_COLUMNS)] for row in rows)
    with files.atomic_text(page) as file:
        figure = Markup(figures.sweep(rows))
        file.write(_environment().get_template("sweep.html").render(rows=rows, columns=SWEEP_COLUMNS, figure=figure))
    return [table, page]


def _environment() -> jinja2.Environment:
    environment = html.environment()
    environment.filters["short"] = _short
    environment.globals["scroll"] = _scroll
    return environment


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{int(value):,}" if value == int(value) else f"{value:.3f}"


def _scroll(label: str, figure: str) -> Markup:
    """A figure that scrolls within itself where the screen is narrower than it can be read."""
    return Markup(
        '<figure><div class="scroll" tabindex="0" role="region" aria-label="Figure: {}">'
        '<div class="wide">{}</div></div></figure>'
    ).format(label, Markup(figure))


def _train_on(prepared: Prepared, k: int) -> str:
    has_lines = prepared.seeds.index.lines is not None and prepared.pool.index.lines is not None
    return f"src_augmented_k{k}.csv" if has_lines else f"ids_k{k}.csv"


def _warnings(prepared: Prepared, summary: dict[str, Any], measured: dict[str, Any], curated: Curated) -> list[str]:
    found = list(curated.warnings)
    if prepared.settings.is_demo:
        found.append("The demo encoder's weights are random: figures above chance show how sounds differ, not a model.")
    if summary["pool_share"] > 0.9:
        found.append("The neighbours are nearly the whole pool: a smaller K selects more.")
    rates = measured["rates"]
    if rates and rates["differ"] > run_stats.RATES_DIFFER:
        found.append(
            f"Seeds and pool differ in sample rates ({rates['differ']:.0%} of the clips would have to change theirs): "
            "neighbours may follow the rate instead of the sound."
        )
    return found


def _rules(pool: Index, removed: Removed) -> list[dict[str, Any]]:
    rules = []
    for rule, (title, value) in _RULES.items():
        at = pa.compute.indices_nonzero(pa.compute.equal(removed.rule, rule))
        if len(at):
            first = at[:PAIRS_SHOWN]
            rows = removed.rows[first.to_numpy()]
            columns = (pool.ids.take(pa.array(rows)), removed.by.take(first), removed.value.take(first))
            shown = zip(*(column.to_pylist() for column in columns), strict=True)
            rules.append(
                {
                    "title": title,
                    "value": value or "value",
                    "count": len(at),
                    "rows": [{"id": a, "by": b, "value": c} for a, b, c in shown],
                }
            )
    return rules

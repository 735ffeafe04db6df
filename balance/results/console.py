"""The lines that a person reads at the end of a run.

In: what the run found. Out: log lines: figures, warnings, where the files are and what to type next. Two shares stand
beside each other only where both are of the search's result: what curation left follows as a number of its own.
Agreement falls with K, so it is said at 10, where runs of different K compare, and at the run's own K, as summary.json
and the page have it.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.curation.curate import Curated
from balance.curation.removed import Rule
from balance.demo.checkpoint import NOTICE
from balance.prepared import Prepared
from balance.records import Neighbours, common_names
from balance.report.sweep import SweepRow
from balance.results.summary import Summary
from balance.runtime.wording import listed
from balance.stats.labels import label_agreement, label_agreement_random, label_recall, label_recall_random

log = logging.getLogger(__name__)

_AGREEMENT_K = 10
_NUM_EXAMPLES = 3


def tell(
    folder: Path,
    prepared: Prepared,
    summary: Summary,
    curated: Curated,
    *,
    train_with: str,
    is_demo: bool,
) -> None:
    """Print what the run found. train_with: the name of the file to train on."""
    lines = [*_kept_out(prepared), _chosen(prepared, summary, curated), *_agreement(prepared, summary, curated)]
    if is_demo:
        lines.append(NOTICE)
    if summary.nearly_all:
        lines.append("warning: the neighbours are nearly the whole pool; a smaller k selects more")
    lines.append(f"failures: {json.dumps(summary.failures)}")
    for line in (*lines, *curated.notes):
        log.info("%s", line)
    if summary.num_partial:
        log.warning("warning: %s", summary.partial_warning)
    for warning in (*prepared.warnings, *curated.warnings):
        log.warning("warning: %s", warning)
    for line in _files(folder, prepared, summary.k, train_with):
        log.info("%s", line)


def tell_sweep(root: Path, rows: Sequence[SweepRow]) -> None:
    """Print the sweep so far: its page, and a line per K; no uniform picks, since curation may have thinned a set."""
    log.info("the sweep so far: %s", _short(root / "report.html"))
    log.info("%8s  %12s  %11s  %11s  %9s", "k", "neighbours", "of the pool", "agreement@k", "by chance")
    for row in rows:
        figures = row.figures
        agreement, chance = (
            "–" if (value := figures[name]) is None else f"{value:.3f}"
            for name in ("label_agreement", "label_agreement_random")
        )
        log.info(
            "%8s  %12s  %11s  %11s  %9s",
            f"{row.k:,}",
            f"{figures['num_neighbours']:,}",
            f"{figures['pool_share']:.1%}",
            agreement,
            chance,
        )


def _files(folder: Path, prepared: Prepared, k: int, train_with: str) -> list[str]:
    """Where everything is, and the one next command, to be typed as it stands."""
    where = _short(folder)
    asked = prepared.pool.index.ids[int(prepared.neighbours.pool_rows[0, 0])].as_py()
    return [
        f"files: {where}",
        f"  look at report.html, train with {train_with}, read augmented_k{k}.csv; the clusters are neighbours_k{k}.*",
        f"next: python -m balance.why {shlex.quote(str(where))} {shlex.quote(asked)}",
    ]


def _short(path: Path) -> Path:
    """Relative to the working directory where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _kept_out(prepared: Prepared) -> list[str]:
    """What was out before the search: for each rule a count and three examples, as `pool id = evaluation id`."""
    out = prepared.decontaminated
    pairs = zip(prepared.pool.index.ids.take(pa.array(out.rows)).to_pylist(), out.because_of.to_pylist(), strict=True)
    by_rule: dict[str, list[str]] = {}
    for rule, (ours, theirs) in zip(out.rule.to_pylist(), pairs, strict=True):
        by_rule.setdefault(rule, []).append(f"{ours} = {theirs}")
    if len(prepared.excluded):
        by_rule[Rule.excluded.name] = prepared.pool.index.ids.take(pa.array(prepared.excluded.rows)).to_pylist()
    return [
        f"{Rule[rule].title}: {len(shown):,} pool clips cannot be chosen: {listed(shown, _NUM_EXAMPLES)}"
        for rule, shown in by_rule.items()
    ]


def _chosen(prepared: Prepared, summary: Summary, curated: Curated) -> str:
    found, num_eligible = curated.num_found, summary.num_pool_eligible
    line = (
        f"k = {summary.k}: {found:,} distinct neighbours of {len(prepared.seeds.embedded):,} seeds = "
        f"{found / num_eligible:.1%} of the {num_eligible:,} pool clips that can be chosen "
        f"(uniform picks: {summary.pool_share_uniform:.1%})"
    )
    if found != summary.num_neighbours:
        line += f"; {summary.num_neighbours:,} stay after curation = {summary.pool_share:.1%}"
    return line


def _agreement(prepared: Prepared, summary: Summary, curated: Curated) -> list[str]:
    """Label agreement and recall at 10 and at K, of the search's result; no line where no seed has labels."""
    at = min(_AGREEMENT_K, prepared.neighbours.k)
    before = ", before curation" if curated.num_found != summary.num_neighbours else ""
    lines = [_agreement_line(prepared, at, before)]
    if summary.k != at:
        lines.append(_agreement_line(prepared, summary.k, f"{before}; as in summary.json and report.html"))
    return [line for line in lines if line]


def _agreement_line(prepared: Prepared, k: int, of: str) -> str:
    seeds, pool = prepared.seeds, prepared.pool
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names).take(seeds.embedded)
    pool_labels = pool.index.labels.recode(names)
    eligible = pool_labels.take(prepared.eligible)
    top = prepared.neighbours.top(k)
    top = Neighbours(np.arange(len(seeds.embedded)), top.pool_rows, top.similarities)
    agreement = label_agreement(seed_labels, pool_labels, top)
    if agreement is None:
        return ""
    by_chance = label_agreement_random(seed_labels, eligible) or 0.0
    recall = label_recall(seed_labels, pool_labels, top) or 0.0
    recall_by_chance = label_recall_random(seed_labels, eligible, k) or 0.0
    times = f", {agreement / by_chance:.2f} x chance" if by_chance else ""
    return (
        f"label agreement@{k}: {agreement:.3f} (random picks {by_chance:.3f}{times}); "
        f"label recall@{k}: {recall:.3f} (random picks {recall_by_chance:.3f}){of}"
    )

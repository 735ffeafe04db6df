"""The lines that a person reads at the end of a run, and of a sweep.

In: what the run found. Out: log lines: a table of figures, warnings, where the files are and what to type next. Two
figures stand beside each other only where both are of the search's result: what curation left follows as a number of
its own. Agreement falls with K, so it is said at the run's own K, as summary.json and the page have it, and at
10, where runs of different K compare. A sweep has a line per K; the rest is in each run's log file.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
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
    in_sweep: bool = False,
) -> None:
    """Print what the run found. train_with: the name of the file to train on; in_sweep: all but warnings is for the
    log file alone, since `tell_of_sweep` follows."""
    lines = [*_kept_out(prepared), *_table(_figures(prepared, summary, curated))]
    if is_demo:
        lines.append(NOTICE)
    if summary.nearly_all:
        lines.append("warning: the neighbours are nearly the whole pool; a smaller k selects more")
    for line in (*lines, *curated.notes):
        log.log(_level(in_sweep), "%s", line)
    if summary.num_partial:
        log.warning("warning: %s", summary.partial_warning)
    for warning in (*prepared.warnings, *curated.warnings):
        log.warning("warning: %s", warning)
    for line in _files(folder, prepared, summary.k, train_with):
        log.log(_level(in_sweep), "%s", line)


def _level(in_sweep: bool) -> int:
    return logging.DEBUG if in_sweep else logging.INFO


_SWEEP_LINE = "%8s  %12s  %11s  %11s  %9s  %s"


def tell_of_sweep(row: SweepRow, *, with_header: bool) -> None:
    """Print the line of one run of a sweep; no uniform picks, since curation may have thinned a set."""
    if with_header:
        log.info(_SWEEP_LINE, "k", "neighbours", "of the pool", "agreement@k", "by chance", "run")
    figures = row.figures
    agreement, chance = (
        "–" if (value := figures[name]) is None else f"{value:.3f}"
        for name in ("label_agreement", "label_agreement_random")
    )
    neighbours, share = f"{figures['num_neighbours']:,}", f"{figures['pool_share']:.1%}"
    log.info(_SWEEP_LINE, f"{row.k:,}", neighbours, share, agreement, chance, row.run)


def tell_sweep(root: Path, rows: Sequence[SweepRow]) -> None:
    """Print where a finished sweep is, and the one next command."""
    log.info("files: %s", _short(root))
    log.info("  look at report.html; the table is sweep.csv, each run has a folder of its own")
    runs = [shlex.quote(str(_short(root / row.run))) for row in (rows[0], rows[-1])]
    log.info("next: python -m balance.compare %s", " ".join(runs))


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


def _figures(prepared: Prepared, summary: Summary, curated: Curated) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the table: name, of this run, of random picks, remark. Agreement and recall are of the search's result,
    at 10 and at K; no row where no seed has labels."""
    found, num_eligible = curated.num_found, summary.num_pool_eligible
    is_thinned = found != summary.num_neighbours
    before = "before curation" if is_thinned else ""
    yield f"k = {summary.k}", "this run", "random picks", ""
    yield "seeds", f"{len(prepared.seeds.embedded):,}", "", ""
    yield "distinct neighbours", f"{found:,}", "", f"of {num_eligible:,} pool clips that can be chosen"
    yield "share of the pool", f"{found / num_eligible:.1%}", f"{summary.pool_share_uniform:.1%}", before
    if is_thinned:
        yield "after curation", f"{summary.num_neighbours:,}", "", f"{summary.pool_share:.1%} of the pool"
    at = min(_AGREEMENT_K, prepared.neighbours.k)
    for k in dict.fromkeys((summary.k, at)):
        yield from _agreement(prepared, k, before)
    yield "similarity at rank 1", f"{summary.similarity_first:.4f}", f"{summary.similarity_random.mean:.4f}", ""
    yield (
        f"similarity at rank {summary.k}",
        f"{summary.similarity_last:.4f}",
        f"{summary.similarity_random.mean:.4f}",
        "",
    )
    failed = [
        f"{split}: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        for split, reasons in summary.failures.items()
        if reasons
    ]
    num_failed = sum(sum(reasons.values()) for reasons in summary.failures.values())
    yield "clips without embedding", f"{num_failed:,}", "", "; ".join(failed)


def _table(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Lines: names to the left, figures to the right."""
    cells = list(rows)
    name, ours, theirs = (max(len(row[column]) for row in cells) for column in range(3))
    return [f"{row[0]:<{name}}  {row[1]:>{ours}}  {row[2]:>{theirs}}  {row[3]}".rstrip() for row in cells]


def _agreement(prepared: Prepared, k: int, before: str) -> Iterator[tuple[str, str, str, str]]:
    seeds, pool = prepared.seeds, prepared.pool
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names).take(seeds.embedded)
    pool_labels = pool.index.labels.recode(names)
    eligible = pool_labels.take(prepared.eligible)
    top = prepared.neighbours.top(k)
    top = Neighbours(np.arange(len(seeds.embedded)), top.pool_rows, top.similarities)
    agreement = label_agreement(seed_labels, pool_labels, top)
    if agreement is None:
        return
    by_chance = label_agreement_random(seed_labels, eligible) or 0.0
    recall = label_recall(seed_labels, pool_labels, top) or 0.0
    recall_by_chance = label_recall_random(seed_labels, eligible, k) or 0.0
    times = f"{agreement / by_chance:.2f} x random picks" if by_chance else ""
    remark = ", ".join(filter(None, [times, before]))
    yield f"label agreement@{k}", f"{agreement:.3f}", f"{by_chance:.3f}", remark
    yield f"label recall@{k}", f"{recall:.3f}", f"{recall_by_chance:.3f}", before

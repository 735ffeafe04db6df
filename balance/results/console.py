"""The lines that a person reads at the end of a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from balance.curation.curate import Curated
from balance.prepared import Prepared
from balance.records import Neighbours, common_names
from balance.stats.labels import label_agreement, label_agreement_random, label_recall, label_recall_random

log = logging.getLogger(__name__)

_AGREEMENT_K = 10


def tell(
    folder: Path,
    prepared: Prepared,
    summary: dict[str, Any],
    curated: Curated,
    *,
    train_with: str,
    is_demo: bool,
) -> None:
    """Print what the run found. summary: the content of summary.json; train_with: the name of the file to train on."""
    k, at = summary["k"], min(_AGREEMENT_K, prepared.neighbours.k)
    seeds, pool = prepared.seeds, prepared.pool
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names).take(seeds.embedded)
    pool_labels = pool.index.labels.recode(names)
    top = prepared.neighbours.top(at)
    top = Neighbours(np.arange(len(seeds.embedded)), top.pool_rows, top.similarities)
    eligible = pool_labels.take(prepared.eligible)
    lines = [
        f"k = {k}: {summary['num_neighbours']:,} distinct neighbours of {len(seeds.embedded):,} seeds = "
        f"{summary['pool_share']:.1%} of the {summary['num_pool_eligible']:,} pool clips that can be chosen "
        f"(uniform picks: {summary['pool_share_uniform']:.1%})"
    ]
    agreement = label_agreement(seed_labels, pool_labels, top)
    if agreement is not None:
        by_chance = label_agreement_random(seed_labels, eligible) or 0.0
        recall = label_recall(seed_labels, pool_labels, top) or 0.0
        recall_by_chance = label_recall_random(seed_labels, eligible, at) or 0.0
        times = f", {agreement / by_chance:.2f} x chance" if by_chance else ""
        lines.append(
            f"label agreement@{at}: {agreement:.3f} (random picks {by_chance:.3f}{times}); "
            f"label recall@{at}: {recall:.3f} (random picks {recall_by_chance:.3f})"
        )
    if is_demo:
        lines.append(
            "the demo encoder's weights are random: agreement above chance shows how sounds differ, not a model"
        )
    if summary["pool_share"] > 0.9:
        lines.append("warning: the neighbours are nearly the whole pool; a smaller k selects more")
    lines.append(f"failures: {json.dumps(summary['failures'])}")
    here = Path.cwd()
    lines.append(f"files: {folder.relative_to(here) if folder.is_relative_to(here) else folder}")
    lines.append(f"  train with {train_with}, read augmented_k{k}.csv; the clusters are neighbours_k{k}.*")
    for line in lines:
        log.info("%s", line)
    for note in curated.notes:
        log.info("%s", note)
    for warning in curated.warnings:
        log.warning("warning: %s", warning)

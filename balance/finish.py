"""From neighbours to the files of a run, and to the lines that a person reads at the end."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from balance.config import Settings
from balance.curation import curate
from balance.data import formats
from balance.data.formats import Format
from balance.pipeline import Prepared, acoustic_copies, prepare
from balance.records import Index, Neighbours, common_names
from balance.report import page
from balance.results import curation_files, tables
from balance.results.train_root import write_train_root
from balance.runtime import files
from balance.stats import labels

log = logging.getLogger(__name__)

_AGREEMENT_K = 10


def run(settings: Settings, folder: Path) -> None:
    """The whole job into `folder`. Raises UserError, OSError."""
    started = time.monotonic()
    prepared = prepare(settings)
    k, seeds, pool = settings.k, prepared.seeds, prepared.pool
    neighbours = prepared.neighbours.top(k)
    curated = curate.curate(
        settings.augment,
        seed=settings.seed,
        seeds=seeds,
        pool=pool,
        eligible=prepared.eligible,
        neighbours=neighbours,
        acoustic=acoustic_copies(settings, prepared),
    )
    written = tables.write_neighbours(folder, k, seeds.index, pool.index, neighbours)
    written += tables.write_augmented(folder, k, seeds.index, seeds.embedded, pool.index, curated.union)
    training = _write_training_index(
        settings, folder, [seeds.index.take(seeds.embedded), pool.index.take(curated.union.pool_rows)]
    )
    written += training
    written += curation_files.write_curation(
        folder, k, seeds.index, seeds.embedded, pool.index, prepared.leaks, curated
    )
    written.append(tables.write_failures(folder, prepared.failures))
    summary = tables.summarise(prepared, k, curated.union) | {"curation": curated.figures}
    files.write_json(folder / "summary.json", summary)
    written.append(folder / "summary.json")
    written.append(page.write_report(folder, prepared=prepared, k=k, curated=curated, summary=summary))
    times_s = {**prepared.times_s, "total_s": time.monotonic() - started}
    tables.write_manifest(folder, prepared=prepared, outputs=written, ids=folder / f"ids_k{k}.csv", times_s=times_s)
    if settings.dataset.format is Format.vipant:
        write_train_root(
            folder,
            root=settings.root,
            media=settings.media_root,
            paths=[split.index.paths for split in prepared.splits.values()],
        )
    _tell(prepared, summary, folder, training[0].name if training else f"ids_k{k}.csv")
    for note in curated.notes:
        log.info("%s", note)
    for warning in curated.warnings:
        log.warning("warning: %s", warning)


def _write_training_index(settings: Settings, folder: Path, parts: list[Index]) -> list[Path]:
    """The index to train on: a VIP-ANT index where the clips have its lines, else one of the data set's own form."""
    form, k = settings.dataset.format, settings.k
    if form not in (Format.vipant, Format.embeddings):
        return formats.write_index(form, parts, folder, k, columns=settings.dataset.columns)
    if any(part.lines is None for part in parts):
        return []  # the user's own vectors without an index beside them
    return tables.write_index(folder / f"src_augmented_k{k}.csv", parts)


def _tell(prepared: Prepared, summary: dict[str, Any], folder: Path, train_with: str) -> None:
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
    agreement = labels.label_agreement(seed_labels, pool_labels, top)
    if agreement is not None:
        by_chance = labels.label_agreement_random(seed_labels, eligible) or 0.0
        recall = labels.label_recall(seed_labels, pool_labels, top) or 0.0
        recall_by_chance = labels.label_recall_random(seed_labels, eligible, at) or 0.0
        times = f", {agreement / by_chance:.2f} x chance" if by_chance else ""
        lines.append(
            f"label agreement@{at}: {agreement:.3f} (random picks {by_chance:.3f}{times}); "
            f"label recall@{at}: {recall:.3f} (random picks {recall_by_chance:.3f})"
        )
    if prepared.settings.is_demo:
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

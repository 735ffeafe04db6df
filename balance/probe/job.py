"""A probe from its settings to its files: probe.csv, probe.json, probe.html, and the sentences on the console.

Prepares what is missing (embeddings, neighbours), runs the table of training sets, writes what was found. A stopped
probe goes on at its next fit.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balance import pipeline
from balance.config import ProbeSettings
from balance.curation.config import Leaks
from balance.data.config import Format
from balance.data.ontology import ontology_file, read_parents
from balance.demo.checkpoint import NOTICE
from balance.encoders.chosen import read_encoder
from balance.encoders.device import own_device
from balance.errors import UserError
from balance.prepared import Prepared
from balance.probe import conclusions, page
from balance.probe.config import Guard
from balance.probe.data import NO_EVAL, ProbeData, of_prepared
from balance.probe.findings import Findings
from balance.probe.results import FIGURES, LINEAR
from balance.probe.runner import Probe
from balance.probe.training_sets import RANDOM
from balance.runtime import files
from balance.runtime.remote import place
from balance.runtime.terminal import Stage

log = logging.getLogger(__name__)


def run(settings: ProbeSettings, folder: Path) -> Findings:
    """The whole job into `folder`. Raises UserError, OSError."""
    with pipeline.Kept() as kept:
        return _run(settings, folder, kept)


def _run(settings: ProbeSettings, folder: Path, kept: pipeline.Kept) -> Findings:
    for key, folders in (("embeddings", [settings.probe.embeddings]), ("runs", settings.probe.runs)):
        for given in folders:
            if given is not None and not place(given).is_dir():
                raise UserError(f"probe.{key}={given}: no such folder")
    second = settings.probe.encoder
    if second is not None:
        read_encoder(second)  # what is wrong with it is said before hours of embedding with the first
    prepared, data = data_for(settings, kept, "probe.k", settings.probe.k)
    stage = Stage("probe", None, "fits")

    def probe_of(data: ProbeData, before: int) -> Probe:
        def progress(what: str, done: int) -> None:
            stage.at(before + done)
            stage.note(what)

        device = own_device(prepared.embedded.device)
        cache = settings.cache / "probe"
        return Probe(data, settings.probe, seed=settings.seed, device=device, cache=cache, progress=progress)

    probe = probe_of(data, 0)
    arms = probe.arms()
    stage.starts(len(arms) * (1 if data.selecting is None else 2))
    with stage:
        table = probe.run(arms)
        if data.selecting is not None:
            there = probe_of(data.selecting, len(arms)).run(arms, table)
            table = table.beside(there, "selecting space")
        found = conclusions.find(probe, table)
    guard = f"{len(prepared.decontaminated):,} pool clips are left out as copies of evaluation clips (probe.leaks: "
    guard += f"{guard_of(settings).value})"
    found = dataclasses.replace(found, guard=guard)
    write(folder, settings.dataset.name, found)
    for sentence in [*found.sentences, *found.limits, found.guard, *(f"warning: {w}" for w in found.warnings)]:
        log.info("%s", sentence)
    if settings.hears_at_random:
        log.info("%s", NOTICE)
    log.info("files: %s", os.path.relpath(folder))
    log.info("  look at probe.html; the table is probe.csv, everything is in probe.json")
    return found


def write(folder: Path, dataset: str, found: Findings) -> None:
    """probe.json, probe.csv and probe.html."""
    files.write_json(folder / "probe.json", {"dataset": dataset, **dataclasses.asdict(found)})
    write_csv(folder / "probe.csv", found)
    with files.atomic_text(folder / "probe.html") as file:
        file.write(page.render(dataset, found))


def data_for(settings: ProbeSettings, kept: pipeline.Kept, key: str, ks: Sequence[int]) -> tuple[Prepared, ProbeData]:
    """The run at the largest of these K's, without copies of evaluation clips in its pool, and what is probed of it;
    what is said of `k` is said of their key here."""
    augment = dataclasses.replace(settings.augment, leaks=guard_of(settings), per_seed_k=None)
    try:
        prepared = pipeline.prepare(dataclasses.replace(settings, k=max(ks), augment=augment), kept)
    except UserError as error:
        if "there is no dataset.eval" in str(error):
            raise UserError(NO_EVAL) from None
        if str(error).startswith("k="):
            raise UserError(f"of {key}={list(ks)}: {error} in {key}") from None
        raise
    second = settings.probe.encoder
    data = of_prepared(
        prepared,
        settings.dataset,
        settings.probe.embeddings if second is None else str(pipeline.embed_with(settings, second, kept)),
        parents=read_parents(ontology_file(settings.dataset.ontology, settings.root)),
        source=settings.probe.source,
    )
    return prepared, data


def guard_of(settings: ProbeSettings) -> Leaks:
    """The stricter of the run's level and the probe's."""
    asked, levels = settings.probe.leaks, list(Leaks)
    if asked is Guard.auto:
        has_sound = settings.dataset.format is not Format.embeddings
        wanted = Leaks.acoustic if has_sound else settings.augment.leaks
    else:
        wanted = Leaks(asked.value)
    return max(wanted, settings.augment.leaks, key=levels.index)


def write_csv(path: Path, found: Findings) -> None:
    """One row per arm and classifier: size, λ, figures with their intervals, the mAP's difference to the random arm."""
    figures = [f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")]
    head = ["arm", "rule", "k", "draws", "reading", "num_clips", "num_pool_clips", "pool_share", "penalty"]
    head += ["penalty_at_edge", "heldout_map", *figures, "gain", "gain_low", "gain_high", "verdict"]
    gains = {(r.arm, r.reading): r for r in found.comparisons if r.figure == "map" and r.against_rule == RANDOM}
    with files.atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for arm in found.arms:
            for classifier in found.readings:
                gain = gains.get((arm.arm, classifier))
                is_fit = classifier == LINEAR
                row: list[Any] = [arm.arm, arm.rule, arm.k, arm.draws, classifier, arm.num_clips, arm.num_pool_clips]
                row.append(round(arm.pool_share, 6))
                row += [arm.penalty, arm.penalty_at_edge, arm.heldout_map] if is_fit else [None] * 3
                for figure in FIGURES:
                    value = arm.readings[classifier].get(figure)
                    row += [None] * 3 if value is None else [value.value, value.low, value.high]
                row += [None] * 4 if gain is None else [gain.value, gain.low, gain.high, gain.verdict]
                writer.writerow(row)

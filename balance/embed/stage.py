"""The embedding stage: indexes and a checkpoint -> every clip's embedding in the store, or the reason why not.

Inventory (what is in the store, what is missing on disk), plan, embed, look again. Everything that is already there
is left alone; the store is opened before and after.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from balance.audio.decoder_process import DecodeSettings
from balance.audio.decoders import plan_slots
from balance.audio.fbank import FrontEnd
from balance.data.config import MediaSource
from balance.data.missing import find_missing, refuse_missing
from balance.embed import part_file
from balance.embed.checks import PrecisionReport, check_reused, measure_precision
from balance.embed.config import EmbedConfig
from balance.embed.failures import refuse_failures
from balance.embed.parts import PART_CLIPS, plan_parts
from balance.embed.progress import EmbedProgress, duration
from balance.embed.store import Store
from balance.embed.worker import EmbedTask, embed_on
from balance.encoders.checkpoint import Checkpoint
from balance.encoders.config import EncoderConfig
from balance.encoders.device import worker_devices
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.records import SPLITS, DecodeFailure, Failure, Index, Int64, Partial, Split
from balance.runtime import files

log = logging.getLogger(__name__)

# To be raised with any change of decoder, front end or tower that changes a number. 2: sound to the end of the data.
FRONT_END_VERSION = 2


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedSplits:
    """fingerprint: hex, of what decides the numbers; identity: changes when the stored bytes do; failures: all clips
    without an embedding, by split and index order; partial: likewise, clips that could not be decoded to their end;
    precision: the resolved one."""

    splits: Mapping[str, Split]
    failures: tuple[Failure, ...]
    partial: tuple[Partial, ...]
    fingerprint: str
    identity: str
    precision: str
    precision_report: PrecisionReport | None
    times_s: Mapping[str, float]


def embed_media(
    config: EmbedConfig,
    encoder: EncoderConfig,
    source: MediaSource,
    indexes: Mapping[str, Index],
    checkpoint: Checkpoint,
    *,
    dataset: str,
    cache: Path,
    seed: int,
    device: torch.device,
    names: Mapping[str, str],
) -> EmbeddedSplits:
    """Embed what is not yet embedded.

    dataset: `dataset.name`; cache: the folder of all stores; names: label id -> name, for messages. Raises UserError,
    OSError.
    """
    precision = encoder.precision.resolve(device.type)
    fingerprint, made_by = fingerprint_of(checkpoint, precision, encoder.compile)
    directory = cache / "embeddings" / f"{dataset}-{fingerprint}"
    started = time.monotonic()
    store = Store(directory, ignore=config.refresh)
    missing: dict[str, Int64] = {}
    todo: list[tuple[str, Index, Int64]] = []
    remembered = pa.array([] if config.retry_failures else list(store.failures), pa.string())
    for split, index in indexes.items():
        without = np.flatnonzero(store.rows(index.paths) < 0)
        paths = index.paths.take(pa.array(without))
        absent = find_missing(source.root, source.format.value, paths)
        missing[split] = without[absent]
        todo.append((split, index, without[~absent & ~_is_in(paths, remembered)]))
    _log_inventory(indexes, missing, todo)
    for split, index in indexes.items():
        refuse_missing(
            split, index, missing[split], max_missing=config.max_missing, media_root=source.root, names=names
        )
    times = {"inventory_s": time.monotonic() - started}

    started = time.monotonic()
    task = EmbedTask(
        directory=directory,
        plan=plan_parts(todo, PART_CLIPS[device.type], store.attempts),
        checkpoint=checkpoint.path,
        device=str(device),
        precision=precision,
        compile=encoder.compile,
        batch_size=encoder.batch_size,
        decode=decode_settings(source, config, checkpoint.front_end),
        num_workers=config.num_decoders,
        clip_timeout_s=config.clip_timeout_s,
    )
    check_reused(store, indexes, task, seed=seed)
    present = {split: len(index) - len(missing[split]) for split, index in indexes.items()}
    if len(task.plan):
        _make(config, task, present, {**made_by, "dataset": dataset, "dim": checkpoint.dim})
        store = store.reopen()
    times["embed_s"] = time.monotonic() - started

    splits: dict[str, Split] = {}
    failures: list[Failure] = []
    partial: list[Partial] = []
    places: list[Int64] = []
    for split in (s for s in SPLITS if s in indexes):
        index = indexes[split]
        rows = store.rows(index.paths)
        embedded = np.flatnonzero(rows >= 0)
        places.append(rows[embedded])
        splits[split] = Split(index, embedded, store.vectors(rows[embedded]), store.facts(rows[embedded]))
        unreadable, found = _failures(split, index, np.flatnonzero(rows < 0), set(missing[split].tolist()), store)
        refuse_failures(split, unreadable, present[split], max_failures=config.max_failures)
        failures.extend(found)
        partial.extend(_partial(split, index, embedded, store))
    report = None
    if precision is not Precision.float32:
        report = measure_precision(task, splits["seeds"], splits["pool"], seed=seed)
    return EmbeddedSplits(
        splits=splits,
        failures=tuple(failures),
        partial=tuple(partial),
        fingerprint=fingerprint,
        identity=store.identity(np.concatenate(places)),
        precision=precision.value,
        precision_report=report,
        times_s=times,
    )


def fingerprint_of(checkpoint: Checkpoint, precision: Precision, compile: bool) -> tuple[str, dict[str, Any]]:
    """(16 hex digits, what they stand for): everything that changes a number of an embedding. precision: resolved."""
    made_by = {
        "checkpoint_sha256": checkpoint.sha256,
        "front_end": asdict(checkpoint.front_end),
        "front_end_version": FRONT_END_VERSION,
        "precision": precision.value,
    }
    if compile:  # other kernels, other last bits
        made_by["compile"] = True
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16], made_by


def _is_in(paths: Any, some: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_in(paths, value_set=some).to_numpy(zero_copy_only=False), dtype=bool)


def decode_settings(source: MediaSource, config: EmbedConfig, front_end: FrontEnd) -> DecodeSettings:
    """What decoder processes need to know to serve this front end."""
    slot_bytes, num_slots = plan_slots(config.queue_bytes, front_end.max_frames, config.num_decoders)
    return DecodeSettings(
        media_root=str(source.root),
        format=source.format.value,
        columns=asdict(source.columns),
        max_frames=front_end.max_frames,
        zero_mean=front_end.zero_mean,
        slot_bytes=slot_bytes,
        num_slots=num_slots,
    )


def _log_inventory(
    indexes: Mapping[str, Index], missing: Mapping[str, Int64], todo: list[tuple[str, Index, Int64]]
) -> None:
    for split, index, rows in todo:
        log.info(
            "%s: %s to embed, %s missing, %s known from earlier runs",
            split,
            f"{len(rows):,}",
            f"{len(missing[split]):,}",
            f"{len(indexes[split]) - len(rows) - len(missing[split]):,}",
        )
        assert len(index) == len(indexes[split])


def _make(config: EmbedConfig, task: EmbedTask, present: Mapping[str, int], made_by: dict[str, Any]) -> None:
    """Embed the plan, with a bar, the early stop of `max_failures`, and one sentence for an unwritable cache."""
    directory = task.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if config.refresh:
            log.info("refresh: the store %s is started anew", directory.name)
            for file in sorted([*directory.glob("part-*.arrow"), *directory.glob("*.json")]):
                file.unlink(missing_ok=True)
        if not (directory / "meta.json").exists():
            files.write_json(directory / "meta.json", made_by)
        elif not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"the cache {directory.parent.parent} cannot be written ({error.strerror}) and {len(task.plan):,} clips "
            "must be embedded; type cache_dir=/a/folder/of/yours or export BALANCE_CACHE=/a/folder/of/yours"
        ) from error
    gigabytes = len(task.plan) * (4 * made_by["dim"] + 120) / 1e9
    devices = worker_devices(task.device, config.num_processes)
    log.info(
        "embedding %s clips in %d parts on %s (%s) with %d decoders: %.3g GB of store in %s",
        f"{len(task.plan):,}",
        len(task.plan.names),
        ", ".join(devices),
        task.precision.value,
        task.num_workers,
        gigabytes,
        directory,
    )

    def on_failures(split: str, failures: list[DecodeFailure]) -> None:
        refuse_failures(split, failures, present[split], max_failures=config.max_failures)

    progress = EmbedProgress(task.plan, on_failures)
    started = time.monotonic()
    try:
        embed_on(task, devices, progress)
    finally:
        rate = progress.close()
    part_file.remove_leftovers(directory)
    log.info("embedded in %s, %.1f clips/s", duration(time.monotonic() - started), rate)


def _partial(split: str, index: Index, rows: Int64, store: Store) -> list[Partial]:
    """Of the clips in these rows, which have an embedding, those that could not be decoded to their end."""
    rows = rows[_is_in(index.paths.take(pa.array(rows)), pa.array(list(store.partial), pa.string()))]
    clips = index.take(rows)
    return [
        Partial(clip_id, split, path, store.partial[path])
        for clip_id, path in zip(clips.ids.to_pylist(), clips.paths.to_pylist(), strict=True)
    ]


def _failures(
    split: str, index: Index, rows: Int64, missing: set[int], store: Store
) -> tuple[list[DecodeFailure], list[Failure]]:
    """(the unreadable, all rows of failures.jsonl) of the clips in these rows, which have no embedding."""
    unreadable: list[DecodeFailure] = []
    found: list[Failure] = []
    at = pa.array(rows)
    clips = zip(rows.tolist(), index.ids.take(at).to_pylist(), index.paths.take(at).to_pylist(), strict=True)
    for row, clip_id, path in clips:
        failure = store.failures.get(path)
        if row in missing or failure is None:
            found.append(Failure(clip_id, split, path, "missing", "no such file"))
            continue
        unreadable.append(failure)
        found.append(Failure(clip_id, split, path, failure.reason, failure.detail))
    return unreadable, found

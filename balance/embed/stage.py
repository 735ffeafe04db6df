"""The embedding stage: indexes and an encoder -> every clip's embedding in the store, or the reason why not.

Inventory (what is in the store, what is missing on disk, what was replaced there), comparison of what is in doubt,
plan, embed, inventory again: what was planned is embedded, a recorded failure, or made again. Everything that is
already there is left alone. The price: two looks at the whole store, of which the second reads only new parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from balance.audio.decoder_process import DecodeSettings
from balance.audio.decoders import plan_slots, plan_window_slots
from balance.data.config import MediaSource
from balance.data.missing import refuse_missing
from balance.data.stamps import file_stamps
from balance.embed.checks import (
    PrecisionReport,
    check_reused,
    compare_in_doubt,
    measure_conformance,
    measure_precision,
)
from balance.embed.config import EmbedConfig
from balance.embed.failures import refuse_failures
from balance.embed.inventory import Inventory, take_inventory
from balance.embed.parts import PART_CLIPS, Plan, plan_parts
from balance.embed.progress import EmbedProgress
from balance.embed.store import Store
from balance.embed.store_files import remove_leftovers
from balance.embed.use import UnmarkedUse, Use, use_of
from balance.embed.worker import EmbedTask, embed_on, embed_with
from balance.encoders.base import Encoder, WaveformEncoder
from balance.encoders.config import EncoderConfig
from balance.encoders.device import slow_bfloat16, worker_devices
from balance.encoders.precision import Precision
from balance.encoders.vipant import VipAnt
from balance.engine.seam import Engine
from balance.errors import UserError
from balance.records import SPLITS, DecodeFailure, Failure, Index, Partial, Split
from balance.runtime import files
from balance.runtime.cores import available_cores
from balance.runtime.remote import AnyPath
from balance.runtime.terminal import duration
from balance.runtime.wording import counted, size

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # a part may be gone again when it is looked up: damaged, or removed by hand
# To be raised with any change of decoder, front end or tower that changes a number. 2: sound to the end of the data.
FRONT_END_VERSION = 2


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedSplits:
    """fingerprint: hex, of what decides the numbers; identity: changes when the stored bytes do; failures: all clips
    without an embedding, by split and index order; partial: likewise, clips that could not be decoded to their end;
    precision: the resolved one; conformance: the encoder's figures (`checks.measure_conformance`)."""

    splits: Mapping[str, Split]
    failures: tuple[Failure, ...]
    partial: tuple[Partial, ...]
    fingerprint: str
    identity: str
    precision: str
    precision_report: PrecisionReport | None
    conformance: Mapping[str, Any] | None
    times_s: Mapping[str, float]


def embed_media(
    config: EmbedConfig,
    how: EncoderConfig,
    source: MediaSource,
    indexes: Mapping[str, Index],
    encoder: Encoder,
    *,
    dataset: str,
    cache: AnyPath,
    seed: int,
    device: torch.device,
    names: Mapping[str, str],
    uses: contextlib.ExitStack,
    engine: Engine | None = None,
) -> EmbeddedSplits:
    """Embed what is not yet embedded.

    how: device, precision and batches of the encoder; dataset: `dataset.name`; cache: the folder of all stores; names:
    label id -> name, for messages; uses: closed when the vectors are not read any more: until then nobody empties the
    store; engine: None for this machine's own processes. Raises UserError, OSError.
    """
    precision = how.precision.resolve(device.type)
    fingerprint, made_by = fingerprint_of(encoder, precision)
    task = EmbedTask(
        directory=cache / "embeddings" / f"{dataset}-{fingerprint}",
        plan=plan_parts([], 1),
        encoder=encoder,
        device=str(device),
        precision=precision,
        batch_size=how.batch_size,
        decode=decode_settings(source, config, encoder),
        num_workers=config.num_decoders,
        clip_timeout_s=config.clip_timeout_s,
    )
    started = time.monotonic()
    use = use_of(task.directory)
    uses.enter_context(use)
    store = Store(task.directory, ignore=config.refresh)
    stamps = {name: file_stamps(source.root, source.format.value, index.paths) for name, index in indexes.items()}

    def take(store: Store, *, retry_failures: bool) -> list[Inventory]:
        return [take_inventory(store, name, indexes[name], stamps[name], retry_failures) for name in indexes]

    inventories = take(store, retry_failures=config.retry_failures)
    for one in inventories:
        one.tell()
    _refuse_missing(config, source, inventories, names)
    inventory_s = time.monotonic() - started

    started = time.monotonic()
    inventories = [compare_in_doubt(store, one, task) for one in inventories]
    check_reused(store, inventories, task, seed=seed)
    attempts = 0
    while len(plan := _plan(store, inventories, PART_CLIPS[device.type])):
        if attempts == _ATTEMPTS:
            raise UserError(
                f"{len(plan):,} clips were embedded {attempts} times and are gone each time from {task.directory}: "
                "find out who removes files there, and run the same command again"
            )
        task = dataclasses.replace(task, plan=plan)
        made = {**made_by, "dataset": dataset, "dim": encoder.dim}
        is_new = config.refresh and not attempts
        if isinstance(encoder, WaveformEncoder) and (is_new or _conformance(task.directory) is None):
            made["conformance"] = measure_conformance(task)
        _open_to_write(task, use, made, refresh=is_new)
        present = {one.split: one.num_present for one in inventories}
        _make(config, task, present, encoder.dim, asked=how.device, engine=engine)
        attempts += 1
        store = store.reopen()
        inventories = take(store, retry_failures=False)
        _refuse_missing(config, source, inventories, names)
        inventories = [compare_in_doubt(store, one, task) for one in inventories]
    embed_s = time.monotonic() - started

    splits = {one.split: one.embedded(store) for one in inventories}
    failures: list[Failure] = []
    partial: list[Partial] = []
    for one in sorted(inventories, key=lambda one: SPLITS.index(one.split)):
        unreadable, found = one.failures(store)
        refuse_failures(one.split, unreadable, one.num_present, max_failures=config.max_failures)
        failures.extend(found)
        partial.extend(one.partial(store))
    report = None
    if precision is not Precision.float32:
        report = measure_precision(task, splits["seeds"], splits["pool"], seed=seed)
    return EmbeddedSplits(
        splits={name: splits[name] for name in SPLITS if name in splits},
        failures=tuple(failures),
        partial=tuple(partial),
        fingerprint=fingerprint,
        identity=store.identity(np.concatenate([one.rows[one.rows >= 0] for one in inventories])),
        precision=precision.value,
        precision_report=report,
        conformance=_conformance(task.directory),
        times_s={"inventory_s": inventory_s, "embed_s": embed_s},
    )


def decoders_beside(devices: Sequence[str], num_workers: int) -> int:
    """How many decoders work for the processes on these devices: of all cores one is left to each that feeds a GPU,
    which it keeps busy; another number was typed, and is taken."""
    feeders = sum(device.startswith("cuda") for device in devices)
    return max(1, num_workers - feeders) if num_workers == available_cores() else num_workers


def fingerprint_of(encoder: Encoder, precision: Precision) -> tuple[str, dict[str, Any]]:
    """(16 hex digits, what they stand for): everything that changes a number of an embedding. precision: resolved."""
    made_by = {**encoder.made_by(), "front_end_version": FRONT_END_VERSION, "precision": precision.value}
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16], made_by


_SLOT_S = 30.0  # of a decoder's slot, where the encoder hears clips of any length: longer ones cross the pipe
_FILE_RATE_HZ = 48_000  # likewise, where it hears the file's own rate


def decode_settings(source: MediaSource, config: EmbedConfig, encoder: Encoder) -> DecodeSettings:
    """What decoder processes need to know to serve this encoder."""
    if isinstance(encoder, VipAnt):
        front_end = encoder.front_end
        heard: dict[str, Any] = {"max_frames": front_end.max_frames, "zero_mean": front_end.zero_mean}
        slots = plan_slots(config.queue_bytes, front_end.max_frames, config.num_decoders)
    else:
        assert isinstance(encoder, WaveformEncoder)
        rate, duration = encoder.sample_rate_hz, encoder.max_duration_s
        heard = {"max_frames": 1, "zero_mean": False}  # of no use
        heard |= {"windows": True, "sample_rate_hz": rate, "max_duration_s": duration}
        num_samples = round((duration or _SLOT_S) * (rate or _FILE_RATE_HZ))
        slots = plan_window_slots(config.queue_bytes, num_samples, config.num_decoders)
    return DecodeSettings(
        media_root=str(source.root),
        format=source.format.value,
        columns=asdict(source.columns),
        slot_bytes=slots[0],
        num_slots=slots[1],
        **heard,
    )


def _refuse_missing(
    config: EmbedConfig, source: MediaSource, inventories: Sequence[Inventory], names: Mapping[str, str]
) -> None:
    for one in inventories:
        missing = np.flatnonzero(one.missing)
        refuse_missing(
            one.split, one.index, missing, max_missing=config.max_missing, media_root=source.root, names=names
        )


def _plan(store: Store, inventories: Sequence[Inventory], part_clips: int) -> Plan:
    """What is to be embedded, as the inventories say."""
    todo = [one.to_embed for one in inventories]
    earlier: dict[str, str] = {}
    for one in todo:
        earlier |= store.earlier(one.index.paths.take(pa.array(one.rows)))
    return plan_parts(todo, part_clips, earlier)


def _conformance(directory: AnyPath) -> dict[str, Any] | None:
    """The encoder's figures, as they were measured before the store first got rows; None where they were not."""
    try:
        kept = json.loads((directory / "meta.json").read_bytes())["conformance"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return kept if isinstance(kept, dict) else None


def _open_to_write(task: EmbedTask, use: Use | UnmarkedUse, made_by: dict[str, Any], *, refresh: bool) -> None:
    """Make the store's folder, or empty it (refresh); UserError where it cannot be written."""
    directory = task.directory
    try:
        if refresh:
            use.empty()
            log.info("refresh: the store %s is started anew", directory.name)
        directory.mkdir(parents=True, exist_ok=True)
        use.enter()
        if "conformance" in made_by or not (directory / "meta.json").exists():
            files.write_json(directory / "meta.json", made_by)
    except OSError as error:
        raise UserError(
            f"the cache {directory.parent.parent} cannot be written ({error.strerror}) and {len(task.plan):,} clips "
            "must be embedded; type cache_dir=/a/folder/of/yours or export BALANCE_CACHE=/a/folder/of/yours"
        ) from error


def _make(
    config: EmbedConfig,
    task: EmbedTask,
    present: Mapping[str, int],
    dim: int,
    *,
    asked: str,
    engine: Engine | None,
) -> None:
    """Embed the plan, with a bar and the early stop of `max_failures`.

    present: clips on disk or embedded, by split; asked: `encoder.device` as typed.
    """
    devices = worker_devices(asked, task.device, config.num_processes)
    task = dataclasses.replace(task, num_workers=decoders_beside(devices, config.num_decoders))
    if task.device == "cpu" and task.precision is Precision.bfloat16 and slow_bfloat16():
        log.warning("on this processor bfloat16 is slower than float32: type encoder.precision=float32")
    log.info(
        "embedding %s in %s on %s (%s) with %s decoders: %s of store in %s",
        counted(len(task.plan), "clip"),
        counted(len(task.plan.names), "part"),
        engine or ", ".join(devices),
        task.precision.value,
        "their" if engine else task.num_workers,
        size(len(task.plan) * (4 * dim + 120)),
        task.directory,
    )

    def on_failures(split: str, failures: list[DecodeFailure]) -> None:
        refuse_failures(split, failures, present[split], max_failures=config.max_failures)

    progress = EmbedProgress(task.plan, on_failures, workers=(lambda: str(engine)) if engine else None)
    started = time.monotonic()
    try:
        if engine is None:
            embed_on(task, devices, progress)
        else:
            embed_with(engine, task, progress)
    finally:
        rate = progress.close()
    remove_leftovers(task.directory)
    log.info("embedded in %s, %.1f clips/s", duration(time.monotonic() - started), rate)

"""The probe's arms, trained: from settings to finetune.csv, finetune.json and finetune.html.

The story: embeddings and neighbours (what is missing is made), the arms, the probe's answer for them, the network's
inputs, one training per arm and repeat, the figures beside each other. Every training is one file in the cache, so a
stopped job goes on at its last checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance import pipeline
from balance.config import FinetuneSettings
from balance.data.vipant_index import index_weights
from balance.demo.checkpoint import NOTICE
from balance.errors import UserError
from balance.finetune import agreement, inputs, networks, page, training
from balance.finetune.agreement import ArmScores, Findings
from balance.finetune.config import Arithmetic
from balance.probe.data import ProbeData
from balance.probe.estimates import Estimates, Group, groups_of
from balance.probe.job import data_for
from balance.probe.ranking_metrics import Ranking
from balance.probe.results import Table
from balance.probe.runner import Probe
from balance.probe.training_sets import Arm
from balance.records import Float64, Int64, Labels
from balance.runtime import files
from balance.runtime.terminal import Stage
from balance.runtime.threads import one_core

log = logging.getLogger(__name__)

FORMAT = 1  # of the kept trainings


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    """What all trainings share. pool_at: (P,) place of a pool clip among the inputs, −1 where no arm has it."""

    data: ProbeData
    inputs: inputs.Inputs
    pool_at: Int64
    evaluation: Int64  # rows of the inputs
    truth: Any  # CSR, of the evaluation clips that can be heard
    groups: Int64
    network: networks.Network
    recipe: training.Recipe
    moments: tuple[float, float]
    device: torch.device
    seed: int


def run(settings: FinetuneSettings, folder: Path) -> Findings:
    """The whole job into `folder`. Raises UserError, OSError."""
    with pipeline.Kept() as kept:
        return _run(settings, folder, kept)


def _run(settings: FinetuneSettings, folder: Path, kept: pipeline.Kept) -> Findings:
    config = settings.finetune
    if settings.dataset.format.value == "embeddings":
        raise UserError("dataset.format=embeddings has no sound to train on: give the data set with its media")
    network = networks.network_of(config)
    prepared, data = data_for(settings, kept, "finetune.k", config.k)
    device = torch.device(prepared.embedded.device)
    cache = settings.cache_folder
    stage = Stage("finetune", None, "steps")
    probe = Probe(
        data,
        dataclasses.replace(settings.probe, k=config.k, draws=config.repeats),
        seed=settings.seed,
        device=device,
        cache=cache / "probe",
        progress=lambda what, done: stage.note(f"probe, {what}"),
    )
    arms = probe.arms()
    table = probe.run(arms)
    world = _world(settings, data, network, arms, device, progress=lambda n: stage.note(f"inputs: {n:,} clips"))
    groups = groups_of(table.fits)
    stage.starts(len(groups) * config.repeats * config.steps)
    log.info(
        "%d trainings of %s, %s steps of %d clips each, on %s",
        len(groups) * config.repeats, network.name, f"{config.steps:,}", config.batch_size, device,
    )  # fmt: skip
    with stage, one_core() if network.is_small and device.type == "cpu" else contextlib.nullcontext():
        scores = [_trained(world, group, table, config.repeats, cache / "finetune", stage) for group in groups]
    found = _findings(settings, world, table, groups, scores)
    write(folder, settings.dataset.name, found)
    for sentence in [*found.sentences, *found.limits]:
        log.info("%s", sentence)
    if settings.is_demo:
        log.info("%s", NOTICE)
    log.info("files: %s", os.path.relpath(folder))
    log.info("  look at finetune.html; the table is finetune.csv, everything is in finetune.json")
    return found


def _world(
    settings: FinetuneSettings,
    data: ProbeData,
    network: networks.Network,
    arms: Sequence[Arm],
    device: torch.device,
    progress: Any,
) -> _World:
    """The inputs of every clip that an arm or the evaluation needs: seeds, then pool clips, then evaluation clips."""
    config = settings.finetune
    pool_rows = np.unique(np.concatenate([arm.rows for arm in arms]))
    num_seeds, num_pool = len(data.seeds), len(pool_rows)
    clips = [data.clips["seeds"], data.clips["pool"].take(pool_rows), data.clips["eval"]]
    media = inputs.Media(settings.media, settings.num_decoders, settings.queue_bytes, settings.clip_timeout_s)
    made = inputs.make(
        inputs.Clips.of(clips), network, media, config.max_duration_s, settings.cache_folder / "finetune", progress
    )
    pool_at = np.full(len(data.pool), -1, dtype=np.int64)
    pool_at[pool_rows] = num_seeds + np.arange(num_pool)
    evaluation = num_seeds + num_pool + np.arange(len(data.evaluation))
    heard = made.readable[evaluation]
    if not heard.any() or not made.readable[:num_seeds].any():
        raise UserError("no seed, or no evaluation clip, can be decoded any more: are the media still there?")
    seeds = np.flatnonzero(made.readable[:num_seeds])
    arithmetic = config.precision
    if arithmetic is Arithmetic.auto:
        arithmetic = Arithmetic.bfloat16 if device.type == "cuda" else Arithmetic.float32
    dtype = torch.bfloat16 if arithmetic is Arithmetic.bfloat16 else torch.float32
    return _World(
        data=data,
        inputs=made,
        pool_at=pool_at,
        evaluation=evaluation[heard],
        truth=data.evaluation.labels.matrix()[np.flatnonzero(heard)],
        groups=data.evaluation.groups[heard],
        network=network,
        recipe=training.Recipe(config.steps, config.batch_size, config.learning_rate, dtype),
        moments=made.moments(seeds),
        device=device,
        seed=settings.seed,
    )


def _trained(
    world: _World, group: Group, table: Table, repeats: int, folder: Path, stage: Stage
) -> list[training.Trained]:
    """The trainings of an arm: of its one set with different first weights, or of a different draw in each."""
    out = []
    for repeat in range(repeats):
        arm = table.fits[group.fits[repeat % len(group.fits)]].arm
        stage.note(f"{group.title}, training {repeat + 1} of {repeats}")
        out.append(_one(world, arm, repeat, folder, stage))
    return out


def _one(world: _World, arm: Arm, repeat: int, folder: Path, stage: Stage) -> training.Trained:
    data = world.data
    rows = np.concatenate([np.arange(len(data.seeds)), world.pool_at[arm.rows]])
    labels = Labels.join([data.seeds.labels, data.pool.labels.take(arm.rows)]).recode(data.label_ids)
    readable = np.flatnonzero(world.inputs.readable[rows])
    rows, labels = rows[readable], labels.take(readable)
    seed = int(np.random.default_rng([world.seed, 20, repeat]).integers(2**31))
    file = folder / f"{_key(world, arm, rows, seed)}.npz"
    kept = files.read_npz(file)
    if kept is not None:
        stage.advance(world.recipe.steps, by_others=True)
        return training.Trained(kept["scores"], float(kept["loss"]))
    started_at = stage.done
    mean, std = (torch.tensor(x) for x in world.moments)

    def progress(done: int) -> None:
        stage.at(started_at + done)

    made = training.train(
        lambda: world.network.build(len(data.label_ids), mean, std),
        world.inputs,
        rows,
        labels.matrix(),
        world.evaluation,
        world.recipe,
        seed=seed,
        weights=index_weights(labels) if arm.weighted else None,
        device=world.device,
        checkpoint=file.with_suffix(".pt"),
        progress=progress,
    )
    files.write_npz(file, {"scores": made.scores, "loss": np.float64(made.loss)})
    file.with_suffix(".pt").unlink(missing_ok=True)
    return made


def _key(world: _World, arm: Arm, rows: Int64, seed: int) -> str:
    recipe = world.recipe
    settings = [FORMAT, world.data.fingerprint, world.inputs.digest, world.network.name, seed, world.moments]
    settings += [recipe.steps, recipe.batch_size, recipe.learning_rate, str(recipe.dtype), arm.weighted]
    settings += [world.device.type, torch.__version__]
    return hashlib.sha256(json.dumps(settings).encode() + rows.tobytes()).hexdigest()[:32]


def _findings(
    settings: FinetuneSettings,
    world: _World,
    table: Table,
    groups: Sequence[Group],
    trained: Sequence[Sequence[training.Trained]],
) -> Findings:
    config, estimates = settings.finetune, Estimates(table)
    arms = [_arm(world, group, table, estimates, each) for group, each in zip(groups, trained, strict=True)]
    agreed = agreement.agreement(arms, np.random.default_rng([settings.seed, 21]))
    return agreement.findings(
        arms,
        agreed,
        network=world.network.name,
        device=str(world.device),
        precision=str(world.recipe.dtype).removeprefix("torch."),
        config=config,
        clips_left_out=int((~world.inputs.readable).sum()),
    )


def _arm(
    world: _World, group: Group, table: Table, estimates: Estimates, trained: Sequence[training.Trained]
) -> ArmScores:
    probed = [table.evaluations[i][table.readings[0]].summary("map")[1] for i in group.fits]
    values, deviations = zip(*(_map(world, one) for one in trained), strict=True)
    return ArmScores(
        title=group.title,
        rule=group.rule,
        k=group.k,
        num_clips=len(world.data.seeds) + len(table.fits[group.fits[0]].arm.rows),
        values=np.array(values),
        deviations=np.stack(deviations),
        probe=float(estimates.by_draw(group, table.readings[0], "map").mean()),
        probe_deviations=np.mean(probed, axis=0),
    )


def _map(world: _World, one: training.Trained) -> tuple[float, Float64]:
    """mAP, and its (G,) change with each evaluation video left out; clips that cannot be heard change nothing."""
    ranking = Ranking(one.scores, world.truth)
    _, means, deviations = ranking.evaluate({"": np.arange(len(world.data.label_ids))})
    of_videos = np.zeros(int(world.data.evaluation.groups.max()) + 1)
    np.add.at(of_videos, world.groups, deviations["map"])
    return means["map"], of_videos


def write(folder: Path, dataset: str, found: Findings) -> None:
    """finetune.json, finetune.csv and finetune.html."""
    files.write_json(folder / "finetune.json", {"dataset": dataset, **dataclasses.asdict(found)})
    with files.atomic_text(folder / "finetune.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "rule", "k", "num_clips", "map", "map_low", "map_high", "map_by_training", "probe_map"])
        for arm in found.arms:
            each = ";".join(f"{value:.6f}" for value in arm.map_by_training if value is not None)
            writer.writerow(
                [arm.arm, arm.rule, arm.k, arm.num_clips, arm.map.value, arm.map.low, arm.map.high, each, arm.probe_map]
            )
    with files.atomic_text(folder / "finetune.html") as file:
        file.write(page.render(dataset, found))

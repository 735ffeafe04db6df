"""A run's augmented set as indexes to train from, whatever the format of its data set.

In: a run's folder. Out: its seeds, its neighbours and, where the run had any, the evaluation clips, read from the data
set's own index files, and where their audio lies. The price: the whole pool's index is read once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from balance.data.config import Format, MediaSource
from balance.data.locate import NoSuchIndex
from balance.errors import UserError
from balance.records import Index
from balance.results.read_run import Run
from balance.runtime.remote import AnyPath
from balance.training.dataset import select


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingData:
    """train: seeds, then neighbours, in the order of the run's files; evaluation: None where the run had no list of
    them; root: `dataset.root`."""

    train: Sequence[Index]
    evaluation: Index | None
    media: MediaSource
    root: AnyPath


def read_training_data(run_dir: Path) -> TrainingData:
    """UserError where the folder is no complete run, or its data set has vectors and no audio."""
    run = Run.read(str(run_dir))
    source, table = run.facts.source, run.augmented

    def read(value: str) -> Index:
        return source.read_split(value)

    if source.format is Format.embeddings:
        raise UserError(f"{run_dir}: its data set holds vectors, not audio: there is nothing to decode and train on")
    train = []
    for kind, value in (("seed", source.balanced), ("neighbour", source.unbalanced)):
        train.append(select(read(value), table["id"].filter(pc.equal(table["source"], kind)).to_pylist()))
    evaluation = None
    if source.eval is not None:
        with contextlib.suppress(NoSuchIndex):  # the run, too, went on without it
            evaluation = read(source.eval)
    media = MediaSource(root=source.media, format=source.format, columns=source.columns)
    return TrainingData(train=train, evaluation=evaluation, media=media, root=source.root)

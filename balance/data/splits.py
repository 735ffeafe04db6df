"""The three splits of a run, each read by the key that names it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from balance.data.config import DatasetConfig
from balance.data.locate import NoSuchIndex
from balance.records import Index

log = logging.getLogger(__name__)

T = TypeVar("T")


def read_splits(dataset: DatasetConfig, read: Callable[[str], T]) -> dict[str, T]:
    """Seeds, pool and, where it is found, eval: each `read(value)` of its key."""
    found = {"seeds": read(dataset.balanced), "pool": read(dataset.unbalanced)}
    if dataset.eval is not None:
        try:
            found["eval"] = read(dataset.eval)
        except NoSuchIndex as error:
            log.warning("no guard against evaluation clips: %s", error)
    return found


def tell(indexes: Mapping[str, Index]) -> None:
    """Print how many clips each split lists, and where."""
    for split, index in indexes.items():
        log.info("%s: %s clips in %s", split, f"{len(index):,}", index.file)

"""The clips and vectors of a finished run, found again: its indexes, and the store or files that it searched.

In: a run read back (`read_run.Run`). Out: `records.Split`s as the run had them, as far as their files are still where
the manifest says. What is gone or another is a user's mistake, named. Price: the indexes are read anew.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from balance.data import precomputed
from balance.data.config import Format
from balance.data.locate import NoSuchIndex
from balance.embed.store import Store
from balance.errors import UserError
from balance.records import Index, Int64, Split, Strings
from balance.results.read_run import Run
from balance.runtime.wording import listed

KEYS = {"seeds": "balanced", "pool": "unbalanced", "eval": "eval"}


def open_splits(run: Run) -> dict[str, Split]:
    """Seeds, pool and, where it is found, eval, with the vectors that the run searched. UserError, OSError."""
    if run.facts.source.format is Format.embeddings:
        return _own_splits(run)
    held = open_store(run)
    found = {}
    for name, index in _indexes(run).items():
        rows = held.rows(index.paths)
        embedded = np.flatnonzero(rows >= 0)
        found[name] = Split(index, embedded, held.vectors(rows[embedded]), held.facts(rows[embedded]))
    return found


def open_store(run: Run) -> Store:
    """The run's embedding store; UserError where it is gone."""
    directory = run.facts.cache / "embeddings" / f"{run.facts.source.name}-{run.facts.fingerprint}"
    if not directory.is_dir():
        raise UserError(f"{directory} is not there: the run's embeddings are needed, and it held them")
    return Store(directory)


def own_vectors(run: Run, split: str) -> precomputed.PrecomputedSplit:
    """A split of `dataset.format=embeddings`; UserError where its vectors are not those that the run read."""
    key = KEYS[split]
    value = getattr(run.facts.source, key)
    given = precomputed.read_vectors(run.facts.source.root, value)
    if given.sha256 != run.facts.inputs.get(f"{split}.vectors"):
        raise UserError(
            f"the vectors of dataset.{key}={value} are no longer those that the run searched: put those back, or run "
            "the job again"
        )
    return given


def rows_of(ids: Strings, index: Index, what: str) -> Int64:
    """The row of each of these ids, (n,) int64. UserError where the index lacks one: it is another than the run's."""
    found = pc.index_in(ids, value_set=index.ids)
    if found.null_count:
        gone = ids.filter(found.is_null()).to_pylist()
        raise UserError(
            f"{index.file} lacks {len(gone):,} {what} of the run ({listed(gone)}): it was changed since; put the "
            "index that the run read back, or run the job again"
        )
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _indexes(run: Run) -> dict[str, Index]:
    source = run.facts.source
    found = {}
    for name, key in KEYS.items():
        value = getattr(source, key)
        try:
            if value is not None:
                found[name] = source.read_split(value)
        except NoSuchIndex:
            if name != "eval":
                raise
    return found


def _own_splits(run: Run) -> dict[str, Split]:
    found = {}
    for name in KEYS:
        if name == "eval" and "eval.vectors" not in run.facts.inputs:  # ids alone, or none
            continue
        given = own_vectors(run, name)
        found[name] = Split(given.index, np.arange(len(given.index), dtype=np.int64), given.vectors, None)
    return found

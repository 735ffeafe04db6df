"""Which clips come from one source: parts of one video, takes of one recording.

In: clip ids; out: a source's name per clip. A held-out seed whose source is also in the training set is no new clip:
its figures are optimistic. YouTube ids name the video; in others the seconds at the end are taken off (`{id}_{bos}`)
where that leaves many sources; a user who knows better gives a pattern. Price: what ids do not tell is not found.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data.clip_ids import comparable
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Int64, Strings

MIN_SOURCES = 30
LARGEST_SHARE = 0.1  # of the clips: a source that has more is a word that all ids share
_SECONDS = r"(?:_[0-9]+(?:\.[0-9]+)?){1,2}$"


def sources(ids: dict[str, Strings], ids_as: Ids, pattern: str | None) -> dict[str, Strings]:
    """Split -> source of each clip, equal where clips share one. ids_as: how ids are read; pattern: a regular
    expression whose first group, or else whole match, is the source; a clip that it does not match is alone.

    UserError for a pattern that is none.
    """
    if pattern is not None:
        return {name: _by_pattern(each, pattern) for name, each in ids.items()}
    whole = {name: comparable(each, ids_as) for name, each in ids.items()}
    if ids_as is Ids.youtube:
        return whole
    shorter = {name: pc.replace_substring_regex(each, _SECONDS, "") for name, each in whole.items()}
    counts = pc.value_counts(pa.concat_arrays([_flat(each) for each in shorter.values()])).field("counts").to_numpy()
    usable = len(counts) >= MIN_SOURCES and counts.max() <= LARGEST_SHARE * counts.sum()
    return shorter if usable else whole


def numbered(names: Strings) -> Int64:
    """The number of each clip's source, 0 … G − 1 in order of appearance, (n,) int64."""
    return np.asarray(_flat(names).dictionary_encode().indices.to_numpy(), dtype=np.int64)


def shared(of_seeds: Strings, of_pool: Strings) -> Int64:
    """The number (`numbered`) of the seeds' source that each pool clip shares, −1 where none: (P,) int64."""
    known = _flat(of_seeds).dictionary_encode().dictionary
    found = pc.index_in(of_pool, value_set=known).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


def _flat(names: Strings) -> Strings:
    return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names


def _by_pattern(ids: Strings, pattern: str) -> Strings:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"probe.source={pattern}: not a regular expression ({error}), such as '^([^-]+)-'") from None

    def source(id: str) -> str:
        found = compiled.search(id)
        return f"alone {id}" if found is None else f"of {found.group(1) if compiled.groups else found.group()}"

    return pa.array([source(id) for id in ids.to_pylist()], pa.string())

"""What a run on the user's own vectors can compare by sound: the files that the index beside the vectors names.

In: splits without facts. Out: the same with the facts of their clips, of which each is decoded once and kept
(`sounds`). Evaluation clips need no vectors to be heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from balance.curation.sounds import Decoders, Sounds, hear_all
from balance.data.config import MediaSource
from balance.data.missing import refuse_missing
from balance.data.stamps import file_stamps
from balance.embed.failures import refuse_failures
from balance.records import Index, Int64, Split


@dataclass(frozen=True, slots=True, eq=False)
class _Listed:
    """A split's clips, as `sounds.Wanted`."""

    index: Index
    stamps: Int64


def has_files(split: Split | None) -> bool:
    """Whether an index names the files of a split."""
    return split is not None and bool(pc.any(pc.not_equal(split.index.paths, "")).as_py())


def with_facts(
    splits: Mapping[str, Split],
    media: MediaSource,
    decoders: Decoders,
    *,
    cache: Path,
    again: bool,
    max_missing: float,
    max_failures: float,
) -> dict[str, Split]:
    """The splits; those with files with the facts of these. again: also decode what could not be decoded before;
    max_missing, max_failures: shares, as of a run. Raises UserError, OSError."""
    named = {name: split.index for name, split in splits.items() if has_files(split)}
    sounds = Sounds(cache, media)
    listed = {
        name: _Listed(index, file_stamps(media.root, media.format.value, index.paths)) for name, index in named.items()
    }
    for name, one in listed.items():
        missing = np.flatnonzero(one.stamps[:, 0] < 0)
        refuse_missing(name, one.index, missing, max_missing=max_missing, media_root=media.root, names={})
    hear_all("own vectors", [(sounds, one) for one in listed.values()], decoders, again=again)
    found = dict(splits)
    for name, one in listed.items():
        facts, failures = sounds.facts(sounds.places(one.index, one.stamps, with_failed=True))
        refuse_failures(name, failures, int((one.stamps[:, 0] >= 0).sum()), max_failures=max_failures)
        found[name] = Split(one.index, np.arange(len(one.index)), splits[name].vectors, facts)
    return found

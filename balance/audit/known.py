"""What runs know already of the samples of an audit's clips, so that an audit by equal samples decodes few of them.

In: a list. Out: which of its rows are in an embedding store, and the facts of these. A row counts where its file has
the path, size and modification time that were embedded, by the decoding of today. As a run does, a seeded sample is
decoded and compared: data sets unpacked side by side may agree in all three. Price: opening the stores, which checks
their parts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.audio.decoder_process import Job
from balance.audit.lists import Listed
from balance.curation.sounds import Decoders, Heard
from balance.embed.inventory import take_inventory
from balance.embed.stage import FRONT_END_VERSION
from balance.embed.store import Store
from balance.records import Facts, Int64

log = logging.getLogger(__name__)

_NUM_COMPARED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """rows: (k,) int64 of the list, ascending; facts: theirs; partial: place in `rows` -> what could not be decoded."""

    rows: Int64
    facts: Facts
    partial: dict[int, str]

    def heard(self) -> Iterator[tuple[int, Heard]]:
        """(row, what was heard of it) without windows."""
        facts = self.facts
        seconds = facts.num_samples / facts.sample_rate
        for i, row in enumerate(self.rows.tolist()):
            sha1, detail = facts.pcm_sha1[i].tobytes(), self.partial.get(i, "")
            yield row, Heard(sha1, float(facts.rms_db[i]), float(seconds[i]), "", detail, (), ())


def known(listed: Listed, cache: Path, dataset: str, decoders: Decoders, *, seed: int) -> Known | None:
    """Of the store that knows most clips of this list; None where no store knows any. dataset: `dataset.name`."""
    best: Known | None = None
    for directory in sorted((cache / "embeddings").glob(f"{dataset}-*")):
        if not _is_of_today(directory):
            continue
        store = Store(directory)
        inventory = take_inventory(store, listed.side, listed.index, listed.stamps, retry_failures=False)
        rows = np.flatnonzero((inventory.rows >= 0) & ~inventory.in_doubt & ~listed.missing)
        if len(rows) <= (0 if best is None else len(best.rows)):
            continue
        at = inventory.rows[rows]
        found = Known(rows, store.facts(at), store.partial(at))
        if _is_the_same(found, listed, decoders, seed):
            best = found
        else:
            log.warning("%s: the store %s is of other files: it is left out", listed.name, directory.name)
    return best


def _is_of_today(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / "meta.json").read_bytes())["front_end_version"] == FRONT_END_VERSION)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _is_the_same(found: Known, listed: Listed, decoders: Decoders, seed: int) -> bool:
    """Whether the files of some of these rows decode to the samples that were embedded."""
    some = np.sort(np.random.default_rng(seed).permutation(len(found.rows))[:_NUM_COMPARED])
    rows = found.rows[some]
    offsets, sizes = listed.index.places()
    ids, paths = (column.take(pa.array(rows)).to_pylist() for column in (listed.index.ids, listed.index.paths))
    jobs = [
        Job(clip_id, path, int(offsets[row]), int(sizes[row]))
        for clip_id, path, row in zip(ids, paths, rows.tolist(), strict=True)
    ]
    heard = decoders.hear(listed.media, jobs)
    return all(
        facts["pcm_sha1"] == sha1.tobytes() for facts, sha1 in zip(heard, found.facts.pcm_sha1[some], strict=True)
    )

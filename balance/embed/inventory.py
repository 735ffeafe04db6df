"""What is known of every clip of a split: embedded, failed, missing, in doubt; and so what is to be done.

In: an opened store, an index, the stamps of its media files. Out: an `Inventory`, taken before the work, and again
after it: only what has an embedding, a recorded failure or no file on disk is done.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from balance.embed.parts import ToEmbed
from balance.embed.store import Store
from balance.records import Bool, DecodeFailure, Failure, Index, Int64, Partial, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """What is known of the n clips of one split.

    stamps: (n, 2) of the media files, −1 where missing; rows: (n,) int64 store row of the clip's embedding, −1 where
    none counts; failed: (n,) bool, not to be decoded again; in_doubt: (n,) bool, the file has another modification time
    than when it was embedded; replaced: (n,) bool, it has another size, or was found to have other samples.
    """

    split: str
    index: Index
    stamps: Int64
    rows: Int64
    failed: Bool
    in_doubt: Bool
    replaced: Bool

    @property
    def missing(self) -> Bool:
        """Neither embedded nor on disk."""
        return (self.rows < 0) & (self.stamps[:, 0] < 0)

    @property
    def to_embed(self) -> ToEmbed:
        todo = (self.rows < 0) & ~self.failed & ~self.missing
        return ToEmbed(self.split, self.index, np.flatnonzero(todo), self.stamps)

    @property
    def num_present(self) -> int:
        return len(self.index) - int(self.missing.sum())

    def compared(self, is_same: Bool) -> Inventory:
        """No doubt left. is_same: (n,) bool, whether a clip in doubt has the samples that were embedded."""
        other = self.in_doubt & ~is_same
        return replace(
            self,
            rows=np.where(other, -1, self.rows),
            in_doubt=np.zeros_like(other),
            replaced=self.replaced | other,
        )

    def tell(self) -> None:
        num_todo, num_missing = len(self.to_embed.rows), int(self.missing.sum())
        num_known = len(self.index) - num_todo - num_missing
        log.info(
            "%s: %s to embed, %s missing, %s known from earlier runs",
            self.split,
            *(f"{n:,}" for n in (num_todo, num_missing, num_known)),
        )
        if self.replaced.any():
            count = f"{self.replaced.sum():,}"
            log.info("%s: %s files have another size than when they were embedded: embedded again", self.split, count)

    def embedded(self, store: Store) -> Split:
        """The split with the vectors and facts of its clips."""
        at = np.flatnonzero(self.rows >= 0)
        return Split(self.index, at, store.vectors(self.rows[at]), store.facts(self.rows[at]))

    def partial(self, store: Store) -> list[Partial]:
        """The clips with an embedding that could not be decoded to their end."""
        found = store.partial(self.rows)
        clips = self.index.take(np.fromiter(found, dtype=np.int64, count=len(found)))
        return [
            Partial(clip_id, self.split, path, words)
            for clip_id, path, words in zip(clips.ids.to_pylist(), clips.paths.to_pylist(), found.values(), strict=True)
        ]

    def failures(self, store: Store) -> tuple[list[DecodeFailure], list[Failure]]:
        """(those that could not be read, all rows of failures.jsonl) of the clips without an embedding."""
        unreadable: list[DecodeFailure] = []
        found: list[Failure] = []
        missing = self.missing
        for row in np.flatnonzero(self.rows < 0):
            clip_id, path = self.index.ids[int(row)].as_py(), self.index.paths[int(row)].as_py()
            if missing[row]:
                found.append(Failure(clip_id, self.split, path, "missing", "no such file"))
                continue
            failure = store.failure(path, (int(self.stamps[row, 0]), int(self.stamps[row, 1])))
            assert failure is not None, "an inventory without anything to embed"
            unreadable.append(failure)
            found.append(Failure(clip_id, self.split, path, failure.reason, failure.detail))
        return unreadable, found


def take_inventory(store: Store, split: str, index: Index, stamps: Int64, retry_failures: bool) -> Inventory:
    """Look every clip up. stamps: `file_stamps` of the index; retry_failures: as if none had failed yet."""
    found = store.find(index.paths, stamps)
    failed = np.zeros_like(found.failed) if retry_failures else found.failed
    return Inventory(
        split=split,
        index=index,
        stamps=stamps,
        rows=np.where(found.failed | found.other_size, -1, found.rows),
        failed=failed,
        in_doubt=found.other_time & ~found.failed,
        replaced=found.other_size & ~found.failed,
    )

"""The user's own choice of pool clips: the id list of `augment.exclude`, such as the map saves.

In: the configuration, the indexes as read. Out: `IdLists`, pool rows and what is to be said. Seeds and ids of no pool
clip are passed over with a warning, since a lasso on the map catches seeds and evaluation clips too; a list of such ids
alone is a mistake. Excluded clips are out before the search, like copies of evaluation clips, so that K true neighbours
remain and no baseline draws them; the price: another list is another search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from balance.curation.config import AugmentConfig
from balance.curation.removed import Removals, Rule
from balance.data.clip_ids import read_id_list
from balance.errors import UserError
from balance.records import Index, Int64, Strings
from balance.runtime.remote import AnyPath, place
from balance.runtime.wording import listed

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdLists:
    """excluded: (n,) int64 pool rows, ascending; files: the lists; warnings: sentences for console and page."""

    excluded: Int64
    files: tuple[AnyPath, ...]
    warnings: tuple[str, ...]

    def out(self, decontaminated: Removals) -> Removals:
        """The excluded clips that are not out already as copies of evaluation clips."""
        return Removals.of(np.setdiff1d(self.excluded, decontaminated.rows), Rule.excluded)


def read_id_lists(config: AugmentConfig, indexes: Mapping[str, Index]) -> IdLists:
    """The list of the configuration. Raises UserError: a list that cannot be read, holds no id, or no pool clip's."""
    if config.exclude is None:
        return IdLists(excluded=np.empty(0, np.int64), files=(), warnings=())
    file = place(config.exclude).absolute()
    rows, warnings = _rows(f"augment.exclude={config.exclude}", read_id_list(file), indexes)
    return IdLists(excluded=rows, files=(file,), warnings=warnings)


def _rows(given: str, ids: Strings, indexes: Mapping[str, Index]) -> tuple[Int64, tuple[str, ...]]:
    """The rows of all pool clips of these ids that are no seed's, and what is said of the others."""
    seeds, pool = indexes["seeds"].ids, indexes["pool"].ids
    is_seed = pc.is_in(ids, value_set=seeds)
    is_unknown = pc.and_not(pc.invert(is_seed), pc.is_in(ids, value_set=pool))
    others = [
        f"{len(some):,} {what} ({listed(some.to_pylist(), _NUM_EXAMPLES)})"
        for some, what in ((ids.filter(is_seed), "are seeds"), (ids.filter(is_unknown), "are of no pool clip"))
        if len(some)
    ]
    left = ids.filter(pc.invert(pc.or_(is_seed, is_unknown)))
    said = f"{given}: of {len(ids):,} ids {', '.join(others)}"
    if not len(left):
        raise UserError(f"{said}, so nothing is left: give ids of the pool, such as {pool[0]}, one per line, no header")
    rows = np.flatnonzero(pc.is_in(pool, value_set=left).to_numpy(zero_copy_only=False)).astype(np.int64)
    return rows, (f"{said}: these are passed over",) if others else ()

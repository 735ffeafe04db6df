"""The user's own choice of pool clips: the id lists of `augment.exclude` and `.include`.

In: the configuration, the indexes as read. Out: `IdLists`, pool rows and what is to be said. Seeds and ids of no pool
clip are passed over with a warning, since a lasso on the map catches seeds and evaluation clips too; a list of such ids
alone is a mistake. Excluded clips are out before the search, like copies of evaluation clips, so that K true neighbours
remain and no baseline draws them; the price: another list is another search. Included clips stay as seeds do, whatever
the curation steps say; copies of evaluation clips are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.curation.config import AugmentConfig
from balance.curation.removed import Removals, Rule
from balance.data.clip_ids import comparable, read_id_list
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Index, Int64, Strings
from balance.runtime.remote import AnyPath, place
from balance.runtime.wording import listed

_NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdLists:
    """excluded, included: (n,) int64 pool rows, ascending; files: the lists; warnings: for console and page."""

    excluded: Int64
    included: Int64
    files: tuple[AnyPath, ...]
    warnings: tuple[str, ...]

    def out(self, decontaminated: Removals) -> Removals:
        """The excluded clips that are not out already as copies of evaluation clips."""
        return Removals.of(np.setdiff1d(self.excluded, decontaminated.rows), Rule.excluded)

    def entering(self, decontaminated: Removals, eligible: Int64, pool: Index) -> tuple[Int64, tuple[str, ...]]:
        """The included clips that can enter, and what is said of the others. UserError: copies of evaluation clips."""
        _refuse_copies(pool.ids.take(pa.array(np.intersect1d(self.included, decontaminated.rows))))
        others = pool.ids.take(pa.array(np.setdiff1d(self.included, eligible))).to_pylist()
        if not others:
            return self.included, ()
        said = f"augment.include: {len(others):,} clips have no embedding, or share sound with a seed, and do not enter"
        return np.intersect1d(self.included, eligible), (f"{said} ({listed(others, _NUM_EXAMPLES)})",)


def read_id_lists(config: AugmentConfig, indexes: Mapping[str, Index], ids_as: Ids) -> IdLists:
    """The lists of the configuration. ids_as: how ids are compared with those of evaluation clips.

    Raises UserError: a list that cannot be read, holds no id, or no pool clip's; a clip in both lists; an included
    evaluation clip.
    """
    files: list[AnyPath] = []
    ids: dict[str, Strings] = {}
    rows = {"exclude": np.empty(0, np.int64), "include": np.empty(0, np.int64)}
    warnings: tuple[str, ...] = ()
    for name, file in (("exclude", config.exclude), ("include", config.include)):
        if file is not None:
            files.append(place(file).absolute())
            ids[name] = read_id_list(files[-1])
    if len(ids) == len(rows) and (both := ids["exclude"].filter(pc.is_in(ids["exclude"], value_set=ids["include"]))):
        raise UserError(
            f"augment.exclude and augment.include both list {listed(both.to_pylist(), 5)}: take it out of one of them"
        )
    if "include" in ids and "eval" in indexes:
        is_in = pc.is_in(comparable(ids["include"], ids_as), value_set=comparable(indexes["eval"].ids, ids_as))
        _refuse_copies(ids["include"].filter(is_in))
    for name, some in ids.items():
        rows[name], said = _rows(f"augment.{name}={getattr(config, name)}", some, indexes)
        warnings += said
    return IdLists(excluded=rows["exclude"], included=rows["include"], files=tuple(files), warnings=warnings)


def _refuse_copies(ids: Strings) -> None:
    if len(ids):
        raise UserError(
            f"augment.include lists {len(ids):,} evaluation clips or copies of them ({listed(ids.to_pylist(), 5)}): "
            "take them out of the list, or no evaluation on dataset.eval is clean"
        )


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

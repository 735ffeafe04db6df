"""Decontamination: the pool clips that are copies of evaluation clips, found before the search.

In: the splits. Out: `Removals`, which rule takes a clip out and because of which evaluation clip. They are excluded
before the search, so that K true neighbours remain. A semantic embedding cannot say what a copy is (near neighbours are
what the method wants): ids, equal samples or correlated sound do.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.curation.config import Leaks
from balance.curation.dedup import FindCopies, need_sound, sound_codes
from balance.curation.removed import Removals, Rule
from balance.data.clip_ids import comparable
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Int64, Split


def decontaminate(level: Leaks, pool: Split, eval: Split | None, ids_as: Ids, acoustic: FindCopies | None) -> Removals:
    """The pool clips that are evaluation clips, by id, by equal samples, by sound.

    level: `augment.leaks`; ids_as: how ids are compared; acoustic: needed for the highest level. Raises UserError
    where there are no evaluation clips to compare with, or no sound.
    """
    if eval is None:
        if level is not Leaks.id:
            raise UserError(
                f"augment.leaks={level.value} needs the evaluation clips, and there is no dataset.eval: "
                "name it, or type augment.leaks=id"
            )
        return Removals.none()
    by_id = _by_id(pool, eval, ids_as)
    if level is Leaks.id:
        return by_id
    need_sound(pool, eval, f"augment.leaks={level.value}", "augment.leaks=id")
    left = np.setdiff1d(pool.embedded, by_id.rows)
    exact = _by_samples(pool, eval, left)
    if level is Leaks.exact:
        return Removals.join(by_id, exact)
    assert acoustic is not None
    return Removals.join(by_id, exact, _by_sound(pool, eval, np.setdiff1d(left, exact.rows), acoustic))


def _by_id(pool: Split, eval: Split, ids_as: Ids) -> Removals:
    found = pc.index_in(comparable(pool.index.ids, ids_as), value_set=comparable(eval.index.ids, ids_as))
    at = np.flatnonzero(np.asarray(found.is_valid()))
    return Removals.of(at, Rule.leak_id, eval.index.ids.take(found.take(pa.array(at))))


def _by_samples(pool: Split, eval: Split, pool_rows: Int64) -> Removals:
    codes = sound_codes(eval, pool, pool_rows)
    num_eval = len(eval.embedded)
    first = {int(code): i for i, code in reversed(list(enumerate(codes[:num_eval]))) if code >= 0}
    same = np.array([first.get(int(code), -1) for code in codes[num_eval:]], dtype=np.int64)
    exact = np.flatnonzero(same >= 0)
    because_of = eval.index.ids.take(pa.array(eval.embedded[same[exact]]))
    return Removals.of(pool_rows[exact], Rule.leak_exact, because_of, np.ones(len(exact)))


def _by_sound(pool: Split, eval: Split, pool_rows: Int64, acoustic: FindCopies) -> Removals:
    queries, rows, value = acoustic.between(eval, pool, pool_rows)
    order = np.lexsort((queries, -value, rows))  # each clip's most similar evaluation clip
    order = order[np.unique(rows[order], return_index=True)[1]]
    because_of = eval.index.ids.take(pa.array(queries[order]))
    return Removals.of(rows[order], Rule.leak_acoustic, because_of, value[order])

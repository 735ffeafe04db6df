"""Decontamination: the pool clips that are copies of evaluation clips, found before the search.

In: the splits. Out: `Removals`, which rule takes a clip out and because of which evaluation clip. They are excluded
before the search, so that K true neighbours remain. A semantic embedding cannot say what a copy is (near neighbours are
what the method wants): ids, equal samples or correlated sound do. Seeds are the user's choice and stay: a seed with an
evaluation clip's id is refused before any work (`preflight`), one that sounds like it is a warning.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from balance.curation.config import Leaks
from balance.curation.dedup import FindCopies, need_sound, sound_codes
from balance.curation.removed import Removals, Rule
from balance.data.config import Ids
from balance.data.slices import same_sound
from balance.errors import UserError
from balance.records import Int64, Split
from balance.runtime.wording import listed


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


def warn_of_copied_seeds(
    level: Leaks, seeds: Split, eval: Split | None, acoustic: FindCopies | None
) -> tuple[str, ...]:
    """A sentence where seeds copy evaluation clips, by equal samples or, of `Leaks.acoustic`, by sound."""
    if eval is None or level is Leaks.id:
        return ()
    found = _by_samples(seeds, eval, seeds.embedded)
    if level is Leaks.acoustic:
        assert acoustic is not None
        left = np.setdiff1d(seeds.embedded, found.rows)
        found = Removals.join(found, _by_sound(seeds, eval, left, acoustic))
    if not len(found):
        return ()
    ids = seeds.index.ids.take(pa.array(found.rows)).to_pylist()
    pairs = [f"{seed} = {other}" for seed, other in zip(ids, found.because_of.to_pylist(), strict=True)]
    return (
        f"{len(found):,} seeds copy evaluation clips and stay ({listed(pairs, 3)}): take them out of dataset.balanced, "
        "or no evaluation on dataset.eval is clean",
    )


def _by_id(pool: Split, eval: Split, ids_as: Ids) -> Removals:
    found = same_sound(pool.index, eval.index, ids_as)
    at = np.flatnonzero(found >= 0)
    return Removals.of(at, Rule.leak_id, eval.index.ids.take(pa.array(found[at])))


def _by_samples(clips: Split, eval: Split, rows: Int64) -> Removals:
    """Which of these rows of `clips` have the samples of an evaluation clip, and of which."""
    codes = sound_codes(eval, clips, rows)
    num_eval = len(eval.embedded)
    first = {int(code): i for i, code in reversed(list(enumerate(codes[:num_eval]))) if code >= 0}
    same = np.array([first.get(int(code), -1) for code in codes[num_eval:]], dtype=np.int64)
    exact = np.flatnonzero(same >= 0)
    because_of = eval.index.ids.take(pa.array(eval.embedded[same[exact]]))
    return Removals.of(rows[exact], Rule.leak_exact, because_of, np.ones(len(exact)))


def _by_sound(clips: Split, eval: Split, rows: Int64, acoustic: FindCopies) -> Removals:
    """Which of these rows of `clips` sound like an evaluation clip, and like which most."""
    queries, found, value = acoustic.between(eval, clips, rows)
    order = np.lexsort((queries, -value, found))
    order = order[np.unique(found[order], return_index=True)[1]]
    because_of = eval.index.ids.take(pa.array(queries[order]))
    return Removals.of(found[order], Rule.leak_acoustic, because_of, value[order])

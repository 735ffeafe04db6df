"""What may be augmented with: the configuration of the controls, and the guard against evaluation clips.

In: the splits. Out: `Removed`, the pool clips that copy an evaluation clip, by which rule and because of which; they
are excluded before the search, so that K true neighbours remain. Each control is off unless asked for, but the guard by
id. A semantic embedding cannot say what a copy is (near neighbours are what the method wants): ids, equal samples
or correlated sound do. The controls after the search are in `curation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.curation import dedup
from balance.curation.config import AugmentConfig, Leaks
from balance.data.clip_ids import youtube_ids
from balance.errors import UserError
from balance.records import Float64, Int64, Split


@dataclass(frozen=True, slots=True, eq=False)
class Removed:
    """Pool clips taken out, one row a clip.

    rows: (n,) int64 of the pool index; Arrow arrays beside it: rule (string: `leak_id`, `leak_exact`, `leak_acoustic`,
    `copy_exact`, `copy_acoustic`, `cap`, `metaclip`, `budget`); by: id of the clip that it copies (null for the last
    three); value (double): correlation of a copy (1 where exact), per_label of the cap, probability to stay of
    metaclip, rank of the budget; null for an id.
    """

    rows: Int64
    rule: Any
    by: Any
    value: Any

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def of(rows: Int64, rule: str, by: Any = None, value: Float64 | None = None) -> Removed:
        """Clips that one rule removed; by: Arrow strings, value: (n,) float64, or None."""
        return Removed(
            rows,
            pa.repeat(pa.scalar(rule), len(rows)),
            pa.nulls(len(rows), pa.string()) if by is None else _one_chunk(by).cast(pa.string()),
            pa.nulls(len(rows), pa.float64()) if value is None else pa.array(value, pa.float64()),
        )

    @staticmethod
    def join(*parts: Removed) -> Removed:
        """One after another."""
        rows = np.concatenate([np.empty(0, np.int64), *(p.rows for p in parts)])
        empty = Removed.of(np.empty(0, np.int64), "")
        columns = ([getattr(p, name) for p in (empty, *parts)] for name in ("rule", "by", "value"))
        return Removed(rows, *(pa.concat_arrays(arrays) for arrays in columns))


class FindCopies(Protocol):
    """Finds acoustic copies: copies.AcousticCopies, or a test's own."""

    def between(self, queries: Split, base: Split, base_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Pairs (row of queries.index, row of base.index, correlation) with base rows among `base_rows`."""
        ...

    def within(self, seeds: Split, pool: Split, pool_rows: Int64) -> tuple[Int64, Int64, Float64]:
        """Pairs (node, node, correlation) among all embedded seeds (nodes 0 … S − 1, in the order of
        `seeds.embedded`) and `pool_rows` (nodes S …)."""
        ...


def find_leaks(config: AugmentConfig, pool: Split, eval: Split | None, acoustic: FindCopies | None) -> Removed:
    """The pool clips that are evaluation clips, by id, by equal samples, by sound; to exclude before the search.

    acoustic: needed for `leaks=acoustic`. Raises UserError where the embeddings are the user's own and the level asks
    for sound.
    """
    if eval is None:
        if config.leaks is not Leaks.id:
            raise UserError(
                f"augment.leaks={config.leaks.value} needs the evaluation clips, and there is no dataset.eval: "
                "name it, or type augment.leaks=id"
            )
        return Removed.join()
    found = pc.index_in(youtube_ids(pool.index.ids), value_set=youtube_ids(eval.index.ids))
    at = np.flatnonzero(np.asarray(found.is_valid()))
    parts = [Removed.of(at, "leak_id", eval.index.ids.take(found.take(pa.array(at))))]
    if config.leaks is not Leaks.id:
        need_sound(pool, eval, f"augment.leaks={config.leaks.value}", "augment.leaks=id")
        left = np.setdiff1d(pool.embedded, at)
        sounds = dedup.sound_codes(eval, pool, left)
        first = {int(code): i for i, code in reversed(list(enumerate(sounds[: len(eval.embedded)]))) if code >= 0}
        same = np.array([first.get(int(code), -1) for code in sounds[len(eval.embedded) :]], dtype=np.int64)
        exact = np.flatnonzero(same >= 0)
        by = eval.index.ids.take(pa.array(eval.embedded[same[exact]]))
        parts.append(Removed.of(left[exact], "leak_exact", by, np.ones(len(exact))))
    if config.leaks is Leaks.acoustic:
        assert acoustic is not None
        left = np.setdiff1d(left, parts[-1].rows)
        queries, rows, value = acoustic.between(eval, pool, left)
        order = np.lexsort((queries, -value, rows))  # each clip's most similar evaluation clip
        order = order[np.unique(rows[order], return_index=True)[1]]
        by = eval.index.ids.take(pa.array(queries[order]))
        parts.append(Removed.of(rows[order], "leak_acoustic", by, value[order]))
    return Removed.join(*parts)


def need_sound(first: Split, second: Split, given: str, instead: str) -> None:
    """UserError where a control that compares sound meets embeddings without media."""
    if first.facts is None or second.facts is None:
        raise UserError(f"{given} compares sound, and dataset.format=embeddings has none: type {instead}")


def _one_chunk(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

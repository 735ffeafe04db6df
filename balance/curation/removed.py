"""What was taken out, and why: the rules by name, and the removed pool clips as columns.

In: pool rows, a rule, the clip because of which, a value. Out: `Removals`, one row per clip, which `decisions.parquet`
holds as they are (there `because_of` is the column `by`). A rule's title, the name of its value and its sentence stand
here once, for the page and for `balance.why`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from balance.records import Doubles, Float64, Int64, Strings


class Rule(enum.Enum):
    """Why a clip is out, in the order of the steps; the member's name is the word in `decisions.parquet`, where
    `included` alone says why a clip is in.

    title: over the page's table; value_name: what `Removals.value` is; sentence: what `why` says after the clip's id.
    """

    leak_id = ("Evaluation clips, by id", "value", "is the evaluation clip {because_of} (by id)")
    leak_exact = (
        "Evaluation clips, equal samples",
        "correlation",
        "has the same samples as the evaluation clip {because_of}",
    )
    leak_acoustic = (
        "Evaluation clips, by sound",
        "correlation",
        "sounds like the evaluation clip {because_of} (correlation {value:.3f})",
    )
    excluded = ("Excluded by hand", "value", "is in the list of augment.exclude")
    per_seed_k = (
        "Beyond the K of each seed",
        "rank",
        "came at rank {value:.0f} or later, beyond the K of each seed that has it among its neighbours",
    )
    included = ("Included by hand", "value", "is in the list of augment.include")
    copy_exact = (
        "Copies of a seed or neighbour, equal samples",
        "correlation",
        "has the same samples as {because_of}, which stays",
    )
    copy_acoustic = (
        "Copies of a seed or neighbour, by sound",
        "correlation",
        "sounds like {because_of}, which stays (correlation {value:.3f})",
    )
    cap = (
        "Beyond the label cap",
        "clips per label",
        "would lift a label above {value:.0f} clips, or others with its labels were preferred",
    )
    metaclip = ("Not drawn by metaclip", "probability to stay", "was not drawn (probability to stay {value:.3f})")
    budget = ("Beyond the budget", "rank", "came at rank {value:.0f}, beyond the budget")

    def __init__(self, title: str, value_name: str, sentence: str) -> None:
        self.title = title
        self.value_name = value_name
        self._sentence = sentence

    def sentence(self, because_of: str | None, value: float | None) -> str:
        """What the rule did to a clip, to be read after its id."""
        return self._sentence.format(because_of=because_of, value=np.nan if value is None else value)


@dataclass(frozen=True, slots=True, eq=False)
class Removals:
    """Pool clips taken out, one row per clip.

    rows: (n,) int64 of the pool index; Arrow arrays beside it: rule (string, names of `Rule`); because_of: id of the
    clip that it copies (null where it copies none); value (double): correlation of a copy (1 where exact), per_label
    of the cap, probability to stay of metaclip, rank of the budget and of per_seed_k; null for an id.
    """

    rows: Int64
    rule: Strings
    because_of: Strings
    value: Doubles

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def of(rows: Int64, rule: Rule, because_of: Strings = None, value: Float64 | None = None) -> Removals:
        """Clips that one rule removed; because_of: Arrow strings, value: (n,) float64, or None."""
        return Removals(
            rows,
            pa.repeat(pa.scalar(rule.name), len(rows)),
            pa.nulls(len(rows), pa.string()) if because_of is None else one_chunk(because_of).cast(pa.string()),
            pa.nulls(len(rows), pa.float64()) if value is None else pa.array(value, pa.float64()),
        )

    @staticmethod
    def none() -> Removals:
        """No clip."""
        nothing = pa.nulls(0, pa.string())
        return Removals(np.empty(0, np.int64), nothing, nothing, pa.nulls(0, pa.float64()))

    @staticmethod
    def join(*parts: Removals) -> Removals:
        """One after another."""
        parts = (Removals.none(), *parts)
        return Removals(
            np.concatenate([part.rows for part in parts]),
            pa.concat_arrays([part.rule for part in parts]),
            pa.concat_arrays([part.because_of for part in parts]),
            pa.concat_arrays([part.value for part in parts]),
        )


def one_chunk(column: Strings) -> Strings:
    """An Arrow array of a column that may come in chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

"""What the pipeline hands on: a run up to its embeddings, and up to its neighbours. Frozen; one holds the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from balance.consensus import Agreement
from balance.curation.removed import Removals
from balance.data.config import Ids
from balance.embed.checks import PrecisionReport
from balance.records import Failure, Int64, Neighbours, Partial, Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedded:
    """A run up to the embeddings: what does not depend on k.

    splits: `seeds`, `pool` and, where it was found, `eval`; failures: of all splits, in the order of failures.jsonl;
    partial: likewise, of warnings.jsonl; ids_as: how ids are compared; ontology: label id -> name; fingerprint: of what
    decides the embeddings' numbers (hex); identity: changes when their bytes do; inputs: path -> sha256 of the files
    read; conformance: the encoder's figures, where it is not VIP-ANT; times_s: seconds of each stage.
    """

    splits: Mapping[str, Split]
    failures: tuple[Failure, ...]
    partial: tuple[Partial, ...] = ()
    ids_as: Ids
    ontology: Mapping[str, str]
    fingerprint: str
    identity: str
    device: str
    precision: str
    precision_report: PrecisionReport | None
    conformance: Mapping[str, Any] | None = None
    inputs: Mapping[str, str]
    times_s: Mapping[str, float]

    @property
    def seeds(self) -> Split:
        return self.splits["seeds"]

    @property
    def pool(self) -> Split:
        return self.splits["pool"]

    @property
    def eval(self) -> Split | None:
        return self.splits.get("eval")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A run up to the neighbours.

    consensus: how far other encoders agree, where `search.also` names their stores; the neighbours are then at K alone,
    in the order of `search.consensus`. decontaminated: pool clips kept out as copies of evaluation clips; excluded:
    pool clips kept out by `augment.exclude`; included: (i,) int64 eligible pool rows that `augment.include` lists,
    ascending; warnings: sentences for console and page;
    eligible: (e,) int64 pool rows that may be neighbours, ascending; neighbours: at max(k, search.k_cache), at most the
    eligible pool; times_s: seconds of each stage of this job (a sweep's later job embeds nothing).
    """

    embedded: Embedded
    decontaminated: Removals
    excluded: Removals = field(default_factory=Removals.none)
    included: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    warnings: tuple[str, ...] = ()
    eligible: Int64
    neighbours: Neighbours
    consensus: Agreement | None = None
    times_s: Mapping[str, float]

    @property
    def kept_out(self) -> Removals:
        """The pool clips that were out before the search."""
        return Removals.join(self.decontaminated, self.excluded)

    @property
    def seeds(self) -> Split:
        return self.embedded.seeds

    @property
    def pool(self) -> Split:
        return self.embedded.pool

"""summary.json: what a run did, in numbers.

In: a run up to its neighbours, and what curation left of them. Out: `Summary`, which console and page read, too; JSON
only where the file is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from balance.consensus import Agreement
from balance.curation.curate import Curated, CurationFigures
from balance.prepared import Embedded, Prepared
from balance.records import SPLITS, Float32, Labels, Neighbours, RandomSimilarity, common_names
from balance.runtime import files
from balance.stats.labels import (
    label_agreement,
    label_agreement_random,
    label_entropy,
    label_recall,
    label_recall_random,
)
from balance.stats.similarity import random_similarity
from balance.stats.union import uniform_share

NEARLY_ALL = 0.9  # share of the eligible pool from which K hardly selects


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The fields of summary.json, in its order.

    pool_share, num_neighbours, label_entropy_after: of the augmented set, after curation; pool_share_uniform and the
    agreement and recall @k: of the search's result. A mean over nothing is None. failures: split -> reason -> clips;
    similarity_first, similarity_last: mean over seeds of the cosine at rank 1 and at rank K, of the search's result;
    num_partial: clips that could not be decoded to their end; sample_rates: split -> Hz -> clips.
    """

    k: int
    num_seeds: int
    num_seeds_without_embedding: int
    num_pool: int
    num_pool_embedded: int
    num_pool_eligible: int
    num_leaks: int
    num_neighbours: int
    pool_share: float
    pool_share_uniform: float | None
    label_agreement: float | None
    label_agreement_random: float | None
    label_recall: float | None
    label_recall_random: float | None
    label_entropy_before: float | None
    label_entropy_after: float | None
    similarity_first: float
    similarity_last: float
    similarity_random: RandomSimilarity
    failures: Mapping[str, Mapping[str, int]]
    num_silent: int
    num_partial: int
    sample_rates: Mapping[str, Mapping[str, int]]
    fingerprint: str
    curation: CurationFigures
    consensus: Agreement | None = None

    @property
    def nearly_all(self) -> bool:
        """Whether the augmented set holds so much of the pool that a smaller K would select more."""
        return self.pool_share > NEARLY_ALL

    @property
    def partial_warning(self) -> str:
        """What is said where `num_partial` is not 0."""
        return (
            f"clips that could not be decoded to their end: {self.num_partial:,}. "
            "Their embeddings are of what could be decoded; warnings.jsonl lists them"
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values; of `curation` the steps that were on; `consensus` where there are several encoders."""
        plain = asdict(self)
        if self.consensus is None:
            del plain["consensus"]
        return plain | {"curation": {step: found for step, found in plain["curation"].items() if found is not None}}


def summarise(prepared: Prepared, k: int, curated: Curated, rng_seed: int) -> Summary:
    """What the run did at K. rng_seed: of the random pairs."""
    seeds, pool, union = prepared.seeds, prepared.pool, curated.union
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names).take(seeds.embedded)
    pool_labels = pool.index.labels.recode(names)
    eligible_labels = pool_labels.take(prepared.eligible)
    neighbours = prepared.neighbours.top(k)
    at_seeds = Neighbours(np.arange(len(seeds.embedded)), neighbours.pool_rows, neighbours.similarities)
    after = Labels.join([seed_labels, pool_labels.take(union.pool_rows)])
    num_eligible = len(prepared.eligible)
    return Summary(
        k=k,
        num_seeds=len(seeds.index),
        num_seeds_without_embedding=len(seeds.index) - len(seeds.embedded),
        num_pool=len(pool.index),
        num_pool_embedded=len(pool.embedded),
        num_pool_eligible=num_eligible,
        num_leaks=len(prepared.decontaminated),
        num_neighbours=len(union),
        pool_share=len(union) / num_eligible,
        pool_share_uniform=uniform_share(len(seeds.embedded), num_eligible, k),
        label_agreement=label_agreement(seed_labels, pool_labels, at_seeds),
        label_agreement_random=label_agreement_random(seed_labels, eligible_labels),
        label_recall=label_recall(seed_labels, pool_labels, at_seeds),
        label_recall_random=label_recall_random(seed_labels, eligible_labels, k),
        label_entropy_before=label_entropy(seed_labels, len(names)),
        label_entropy_after=label_entropy(after, len(names)),
        similarity_first=_mean(neighbours.similarities[:, 0]),
        similarity_last=_mean(neighbours.similarities[:, -1]),
        similarity_random=random_similarity(seeds, pool, prepared.eligible, rng_seed),
        failures=_failures(prepared.embedded),
        num_silent=_num_silent(prepared.embedded),
        num_partial=len(prepared.embedded.partial),
        sample_rates=_sample_rates(prepared.embedded),
        fingerprint=prepared.embedded.fingerprint,
        curation=replace(curated.figures, excluded=len(prepared.excluded) or None),
        consensus=prepared.consensus,
    )


def write_summary(folder: Path, summary: Summary) -> Path:
    """`summary.json`."""
    path = folder / "summary.json"
    files.write_json(path, summary.as_json())
    return path


def _mean(similarities: Float32) -> float:
    return math.fsum(similarities.tolist()) / len(similarities)


def _failures(embedded: Embedded) -> dict[str, dict[str, int]]:
    return {
        split: dict(sorted(Counter(f.reason for f in embedded.failures if f.split == split).items()))
        for split in SPLITS
        if split in embedded.splits
    }


def _num_silent(embedded: Embedded) -> int:
    facts = [split.facts for split in embedded.splits.values() if split.facts is not None]
    return sum(int(part.silent().sum()) for part in facts)


def _sample_rates(embedded: Embedded) -> dict[str, dict[str, int]]:
    return {
        name: {
            str(hz): count
            for hz, count in sorted(Counter(split.facts.sample_rate.tolist() if split.facts else []).items())
        }
        for name, split in embedded.splits.items()
    }

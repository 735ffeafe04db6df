"""What a run did, in numbers for the page: saturation, hubs, similarity, labels by rank, label balance, sample rates.

In: splits, neighbours (as many ranks as were searched), the clips of the augmented set. Out: `RunStats`, frozen values
and small numpy columns; the page and its figures add nothing to them. Labels are also compared with the ontology's
ancestors added on both sides, since only 36 % of the implied ancestors are labelled: a "Dog" beside a "Bark" is no
disagreement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from balance.records import QUALITY, SPLITS, Facts, Float64, Int32, Int64, Labels, Neighbours, Split, common_names
from balance.stats.labels import (
    agreement_by_seed,
    entropy_of,
    hits_by_rank,
    label_agreement_random,
    overlaps,
)
from balance.stats.union import Union, uniform_share, union_of, union_sizes

NUM_HUBS = 15
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


CLIPPED, DC_OFFSET, SILENT_END_S = 1e-3, 1e-2, 1.0  # from which the page counts a clip


@dataclass(frozen=True, slots=True, eq=False)
class Saturation:
    """The union of the neighbours at n values of K, thinned to about 80.

    k: (n,) int64; union: (n,) int64 distinct clips; share: (n,) float64 of the eligible pool; uniform: (n,) float64
    the share that uniform picks would take.
    """

    k: Int64
    union: Int64
    share: Float64
    uniform: Float64


@dataclass(frozen=True, slots=True)
class Hub:
    """A clip that many seeds chose. times: seeds that have it in their top K; similarity: the best of them."""

    id: str
    labels: tuple[str, ...]
    times: int
    share_of_seeds: float
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Hubs:
    """How often clips are chosen at K, over the eligible pool.

    times, clips: (n,) int64, so many clips are chosen so many times (from 1 on); never: clips that no seed chose;
    chosen: share that some seed chose; top_percent_share: share of all places that the most chosen 1 % take; skewness:
    of the number of times, after Radovanović et al. 2010; top: the NUM_HUBS most chosen.
    """

    times: Int64
    clips: Int64
    mean: float
    skewness: float
    never: int
    chosen: float
    top_percent_share: float
    top: tuple[Hub, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityByRank:
    """rank: (n,) int64; quantiles: (5, n) float64 of the similarity over seeds, a row per value of QUANTILES."""

    rank: Int64
    quantiles: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """by_rank: (K,) float64 mean share of a seed's labels that its neighbour of a rank has; random: uniform picks."""

    by_rank: Float64
    random: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelsByRank:
    """raw: labels as given; ancestors: with the ontology's ancestors on both sides, None without an ontology; lift:
    (K,) float64 share of rank-r neighbours with a seed's label ÷ the label's share of the pool, mean over the
    num_judged labels that seeds and pool both have (NaN if there is none)."""

    raw: Agreement
    ancestors: Agreement | None
    lift: Float64
    num_judged: int


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Clips that have a label: before (seeds), after (seeds and neighbours), in the eligible pool."""

    id: str
    name: str
    before: int
    after: int
    pool: int


@dataclass(frozen=True, slots=True)
class LabelBalance:
    """rows: every label, the most frequent after first; entropy (normalised), effective (number of labels, e^H) and
    gini: (before, after), None where there is nothing to count."""

    rows: tuple[LabelCounts, ...]
    entropy: tuple[float | None, float | None]
    effective: tuple[float | None, float | None]
    gini: tuple[float | None, float | None]

    @property
    def without_gain(self) -> list[LabelCounts]:
        """The labels that no neighbour has."""
        return [row for row in self.rows if row.after == row.before]


@dataclass(frozen=True, slots=True)
class SplitRates:
    """rates: sample rate in Hz -> clips, ascending; silent: clips below records.SILENT_DB."""

    split: str
    rates: Mapping[int, int]
    silent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitQuality:
    """Clips of a split by `records.QUALITY`. known: clips of which it was measured; clipped: of more than CLIPPED of
    full-scale values; offset: of a mean beyond DC_OFFSET; silent_ends: of more than SILENT_END_S of silence at an end;
    alike: of several channels that are all the same; median_bandwidth_hz: None of no clip."""

    split: str
    known: int
    clipped: int
    offset: int
    silent_ends: int
    alike: int
    median_bandwidth_hz: float | None


@dataclass(frozen=True, slots=True)
class SampleRates:
    """splits: one row per split; same: share of neighbours that have their seed's rate; chance: that of uniform picks;
    differ: share of clips that would have to change their rate for seeds and pool to be alike (total variation)."""

    splits: tuple[SplitRates, ...]
    same: float
    chance: float
    differ: float

    @property
    def rates(self) -> list[int]:
        """All sample rates, ascending."""
        return sorted({hz for split in self.splits for hz in split.rates})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunStats:
    """All that the page shows beside the summary.

    labels_by_rank: None where no seed has labels; balance: None where no clip has; rates: None without media;
    quality: by split; agreement_by_seed: (S,) float64, NaN without labels.
    """

    saturation: Saturation
    hubs: Hubs
    similarity: SimilarityByRank
    labels_by_rank: LabelsByRank | None
    balance: LabelBalance | None
    rates: SampleRates | None
    quality: tuple[SplitQuality, ...]
    agreement_by_seed: Float64


def with_ancestors(labels: Labels, parents: Mapping[str, list[str]]) -> Labels:
    """The same clips with every ancestor of their labels; the vocabulary grows by them."""
    closure: dict[str, set[str]] = {}
    for name in labels.names:
        seen, todo = {name}, [name]
        while todo:
            new = [p for p in parents.get(todo.pop(), []) if p not in seen]
            seen.update(new)
            todo.extend(new)
        closure[name] = seen
    names = tuple(sorted(set().union(*closure.values()))) if closure else ()
    place = {name: i for i, name in enumerate(names)}
    rows = [(i, place[a]) for i, name in enumerate(labels.names) for a in sorted(closure[name])]
    implied = scipy.sparse.csr_matrix(
        (np.ones(len(rows), np.int32), tuple(np.array(rows, dtype=np.int64).reshape(-1, 2).T)),
        shape=(len(labels.names), len(names)),
    )
    found = (labels.matrix() @ implied).tocsr()
    found.sort_indices()
    return Labels(names, found.indptr.astype(np.int64), found.indices.astype(np.int32))


def measure(
    *,
    splits: Mapping[str, Split],
    eligible: Int64,
    neighbours: Neighbours,
    k: int,
    chosen: Int64,
    ontology: Mapping[str, str],
    parents: Mapping[str, list[str]],
) -> RunStats:
    """neighbours: of the search, at least K ranks; chosen: (U,) int64 pool rows of the augmented set; ontology: label
    id -> name; parents: label id -> ids of its parents."""
    seeds, pool = splits["seeds"], splits["pool"]
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names)
    pool_labels = pool.index.labels.recode(names)
    top = neighbours.top(k)
    agreement = agreement_by_seed(seed_labels, pool_labels, top)
    has_labels = not np.isnan(agreement).all()
    balance = label_balance(seed_labels, pool_labels, seeds.embedded, chosen, eligible, ontology)
    return RunStats(
        saturation=saturation(neighbours, len(eligible)),
        hubs=_hubs(union_of(top), top, len(eligible), pool, ontology),
        similarity=_similarity(top),
        labels_by_rank=_labels_by_rank(seed_labels, pool_labels, eligible, top, parents) if has_labels else None,
        balance=balance if balance.rows else None,
        rates=_rates(splits, top, eligible),
        quality=tuple(_quality(name, splits[name].facts) for name in SPLITS if name in splits),
        agreement_by_seed=agreement,
    )


def saturation(neighbours: Neighbours, num_eligible: int) -> Saturation:
    """How much of the eligible pool the union takes at each K, beside uniform picks."""
    sizes = union_sizes(neighbours)
    ks = np.unique(np.round(np.geomspace(1, neighbours.k, 80)).astype(int))
    num_seeds = len(neighbours.seed_rows)
    return Saturation(
        k=ks,
        union=sizes[ks - 1],
        share=sizes[ks - 1] / num_eligible,
        uniform=np.array([uniform_share(num_seeds, num_eligible, int(k)) for k in ks]),
    )


def _hubs(union: Union, top: Neighbours, num_eligible: int, pool: Split, ontology: Mapping[str, str]) -> Hubs:
    times = union.num_seeds
    order = np.lexsort((union.pool_rows, -times))[:NUM_HUBS]
    values, clips = np.unique(times, return_counts=True)
    mean = top.pool_rows.size / num_eligible
    spread = math.sqrt((float((times.astype(np.float64) ** 2).sum()) / num_eligible) - mean**2)
    third = (float(((times - mean) ** 3).sum()) - (num_eligible - len(times)) * mean**3) / num_eligible
    most = np.sort(times)[::-1][: max(1, num_eligible // 100)]
    return Hubs(
        times=values,
        clips=clips,
        mean=mean,
        skewness=third / spread**3 if spread > 0 else 0.0,
        never=num_eligible - len(union),
        chosen=len(union) / num_eligible,
        top_percent_share=float(most.sum() / max(times.sum(), 1)),
        top=tuple(
            Hub(
                id=pool.index.ids[int(union.pool_rows[i])].as_py(),
                labels=tuple(ontology.get(label, label) for label in pool.index.labels[int(union.pool_rows[i])]),
                times=int(times[i]),
                share_of_seeds=float(times[i] / max(len(top.seed_rows), 1)),
                similarity=float(union.best_similarity[i]),
            )
            for i in order.tolist()
        ),
    )


def _similarity(top: Neighbours) -> SimilarityByRank:
    ranks = np.unique(np.round(np.geomspace(1, top.k, 120)).astype(int))
    return SimilarityByRank(ranks, np.quantile(top.similarities[:, ranks - 1], QUANTILES, axis=0))


def _labels_by_rank(
    seed_labels: Labels, pool_labels: Labels, eligible: Int64, top: Neighbours, parents: Mapping[str, list[str]]
) -> LabelsByRank:
    ancestors = None
    if parents:
        full = [with_ancestors(labels, parents) for labels in (seed_labels, pool_labels)]
        ancestors = _agreement(full[0], full[1], eligible, top)
    seeds_with = seed_labels.take(top.seed_rows).counts()
    share = pool_labels.take(eligible).counts() / max(len(eligible), 1)
    judged = np.flatnonzero((seeds_with > 0) & (share > 0))
    hits = hits_by_rank(seed_labels, pool_labels, top)[:, judged]
    return LabelsByRank(
        raw=_agreement(seed_labels, pool_labels, eligible, top),
        ancestors=ancestors,
        lift=(hits / seeds_with[judged] / share[judged]).mean(axis=1) if len(judged) else np.full(top.k, np.nan),
        num_judged=len(judged),
    )


def _agreement(seed_labels: Labels, pool_labels: Labels, eligible: Int64, top: Neighbours) -> Agreement:
    sizes = seed_labels.sizes()[top.seed_rows]
    some = sizes > 0
    found = overlaps(seed_labels, pool_labels, top)[some]
    random = label_agreement_random(seed_labels.take(top.seed_rows), pool_labels.take(eligible))
    return Agreement((found / sizes[some, None]).mean(axis=0), random)


def gini(counts: Int64) -> float | None:
    """Gini coefficient of label counts: 0 all alike, towards 1 all in one label; None over nothing."""
    total = int(counts.sum())
    if total == 0:
        return None
    ordered = np.sort(counts)
    place = np.arange(1, len(ordered) + 1)
    return float(((2 * place - len(ordered) - 1) * ordered).sum() / (len(ordered) * total))


def label_balance(
    seed_labels: Labels,
    pool_labels: Labels,
    seed_rows: Int64,
    chosen: Int64,
    eligible: Int64,
    ontology: Mapping[str, str],
) -> LabelBalance:
    """Label counts before (seeds) and after (seeds and neighbours), and what they say."""
    before = seed_labels.take(seed_rows).counts()
    after = before + pool_labels.take(chosen).counts()
    there = pool_labels.take(eligible).counts()
    rows = tuple(
        LabelCounts(
            id=seed_labels.names[i],
            name=ontology.get(seed_labels.names[i], seed_labels.names[i]),
            before=int(before[i]),
            after=int(after[i]),
            pool=int(there[i]),
        )
        for i in np.lexsort((np.arange(len(after)), -after)).tolist()
    )
    entropy = (entropy_of(before, len(before)), entropy_of(after, len(before)))
    return LabelBalance(
        rows=rows,
        entropy=entropy,
        effective=(_effective(entropy[0], len(before)), _effective(entropy[1], len(before))),
        gini=(gini(before), gini(after)),
    )


def _effective(entropy: float | None, num_labels: int) -> float | None:
    return None if entropy is None else math.exp(entropy * math.log(num_labels))


def _quality(split: str, facts: Facts | None) -> SplitQuality:
    measured = np.empty((0, len(QUALITY))) if facts is None or facts.quality is None else facts.quality
    measured = measured[~np.isnan(measured).any(axis=1)]
    of = dict(zip(QUALITY, measured.T, strict=True))
    silence_s = np.maximum(of["leading_silence_s"], of["trailing_silence_s"])
    return SplitQuality(
        split=split,
        known=len(measured),
        clipped=int((of["clipped"] > CLIPPED).sum()),
        offset=int((np.abs(of["dc_offset"]) > DC_OFFSET).sum()),
        silent_ends=int((silence_s > SILENT_END_S).sum()),
        alike=int(((of["channels"] > 1) & (of["channels_equal"] > 0)).sum()),
        median_bandwidth_hz=float(np.median(of["bandwidth_hz"])) if len(measured) else None,
    )


def _rates(splits: Mapping[str, Split], top: Neighbours, eligible: Int64) -> SampleRates | None:
    seeds, pool = splits["seeds"], splits["pool"]
    if seeds.facts is None or pool.facts is None:
        return None
    rows = []
    for split in SPLITS:
        facts = splits[split].facts if split in splits else None
        if facts is not None:
            counted = dict(sorted(Counter(facts.sample_rate.tolist()).items()))
            rows.append(SplitRates(split, counted, int(facts.silent().sum())))
    seed_rate = seeds.facts.sample_rate
    pool_rate = pool.facts.sample_rate
    at = np.searchsorted(pool.embedded, top.pool_rows.reshape(-1)).reshape(top.pool_rows.shape)
    eligible_rate = pool_rate[np.searchsorted(pool.embedded, eligible)]
    rates = np.unique(np.concatenate([seed_rate, eligible_rate]))
    of_seeds, of_pool = (_shares(values, rates) for values in (seed_rate, eligible_rate))
    return SampleRates(
        splits=tuple(rows),
        same=float((pool_rate[at] == seed_rate[:, None]).mean()),
        chance=float((of_seeds * of_pool).sum()),
        differ=float(np.abs(of_seeds - of_pool).sum() / 2),
    )


def _shares(values: Int32, of: Int32) -> Float64:
    counts = np.bincount(np.searchsorted(of, values), minlength=len(of))
    return np.asarray(counts / max(len(values), 1))

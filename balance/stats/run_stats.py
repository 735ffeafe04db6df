"""What a run did, in numbers for the page: saturation, hubs, labels by rank, balance, rates, pairs taken out.

In: splits, neighbours (as many ranks as were searched), the curated set. Out: one dictionary of plain values and small
numpy columns: the page and its figures add nothing to it. Labels are also compared with the ontology's ancestors added
on both sides, since only 36 % of the implied ancestors are labelled: a "Dog" beside a "Bark" is no disagreement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from balance.records import SPLITS, Float64, Int64, Labels, Neighbours, Split, common_names
from balance.stats.labels import (
    Union,
    agreement_by_seed,
    entropy_of,
    hits_by_rank,
    label_agreement_random,
    overlaps,
    uniform_share,
    union_of,
    union_sizes,
)

NUM_HUBS = 15
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RATES_DIFFER = 0.1  # total variation of the sample rates of seeds and pool from which the page warns


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
) -> dict[str, Any]:
    """All that the page shows beside the summary. neighbours: of the search, at least K ranks; chosen: (U,)
    int64 pool rows of the augmented set."""
    seeds, pool = splits["seeds"], splits["pool"]
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names)
    pool_labels = pool.index.labels.recode(names)
    top = neighbours.top(k)
    union = union_of(top)
    return {
        "saturation": saturation(neighbours, len(eligible)),
        "hubs": _hubs(union, top, len(eligible), pool, ontology),
        "similarity": _similarity(top),
        "labels_by_rank": _labels_by_rank(seed_labels, pool_labels, eligible, top, parents),
        "balance": label_balance(seed_labels, pool_labels, seeds.embedded, chosen, eligible, ontology),
        "rates": _rates(splits, top, eligible),
        "agreement_by_seed": agreement_by_seed(seed_labels, pool_labels, top),
    }


def saturation(neighbours: Neighbours, num_eligible: int) -> dict[str, Any]:
    """Share of the eligible pool in the union at each K, beside uniform picks; thinned to about 80 values of K."""
    sizes = union_sizes(neighbours)
    ks = np.unique(np.round(np.geomspace(1, neighbours.k, 80)).astype(int))
    num_seeds = len(neighbours.seed_rows)
    return {
        "k": ks,
        "union": sizes[ks - 1],
        "share": sizes[ks - 1] / num_eligible,
        "uniform": np.array([uniform_share(num_seeds, num_eligible, int(k)) for k in ks]),
    }


def _hubs(union: Union, top: Neighbours, num_eligible: int, pool: Split, ontology: Mapping[str, str]) -> dict[str, Any]:
    times = union.num_seeds
    order = np.lexsort((union.pool_rows, -times))[:NUM_HUBS]
    values, clips = np.unique(times, return_counts=True)
    mean = top.pool_rows.size / num_eligible
    spread = math.sqrt((float((times.astype(np.float64) ** 2).sum()) / num_eligible) - mean**2)
    third = (float(((times - mean) ** 3).sum()) - (num_eligible - len(times)) * mean**3) / num_eligible
    sorted_times = np.sort(times)[::-1]
    return {
        "times": values,
        "clips": clips,
        "mean": mean,
        "skewness": third / spread**3 if spread > 0 else 0.0,
        "never": num_eligible - len(union),
        "chosen": len(union) / num_eligible,
        "top_percent_share": float(sorted_times[: max(1, num_eligible // 100)].sum() / max(times.sum(), 1)),
        "top": [
            {
                "id": pool.index.ids[int(union.pool_rows[i])].as_py(),
                "times": int(times[i]),
                "share_of_seeds": float(times[i] / max(len(top.seed_rows), 1)),
                "labels": named(pool.index.labels[int(union.pool_rows[i])], ontology),
                "similarity": float(union.best_similarity[i]),
            }
            for i in order.tolist()
        ],
    }


def _similarity(top: Neighbours) -> dict[str, Any]:
    ranks = np.unique(np.round(np.geomspace(1, top.k, 120)).astype(int))
    return {"rank": ranks, "quantiles": np.quantile(top.similarities[:, ranks - 1], _QUANTILES, axis=0)}


def _labels_by_rank(
    seed_labels: Labels, pool_labels: Labels, eligible: Int64, top: Neighbours, parents: Mapping[str, list[str]]
) -> dict[str, Any]:
    out: dict[str, Any] = {"rank": np.arange(1, top.k + 1)}
    kinds = {"raw": (seed_labels, pool_labels)}
    if parents:
        a, b = with_ancestors(seed_labels, parents), with_ancestors(pool_labels, parents)
        kinds["ancestors"] = (a, b)
    for kind, (a, b) in kinds.items():
        sizes = a.sizes()[top.seed_rows]
        some = sizes > 0
        found = overlaps(a, b, top)[some]
        out[kind] = (found / sizes[some, None]).mean(axis=0) if some.any() else np.full(top.k, np.nan)
        out[f"{kind}_random"] = label_agreement_random(a.take(top.seed_rows), b.take(eligible))
    seeds_with = seed_labels.take(top.seed_rows).counts()
    share = pool_labels.take(eligible).counts() / max(len(eligible), 1)
    judged = np.flatnonzero((seeds_with > 0) & (share > 0))
    hits = hits_by_rank(seed_labels, pool_labels, top)[:, judged]
    out["lift"] = (hits / seeds_with[judged] / share[judged]).mean(axis=1) if len(judged) else np.full(top.k, np.nan)
    out["num_judged"] = len(judged)
    return out


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
) -> dict[str, Any]:
    """Label counts before (seeds) and after (seeds and neighbours), what they say, and the labels that gain nothing."""
    before = seed_labels.take(seed_rows).counts()
    after = before + pool_labels.take(chosen).counts()
    there = pool_labels.take(eligible).counts()
    entropies = [entropy_of(x, len(before)) for x in (before, after)]
    effective = [None if h is None else math.exp(h * math.log(len(before))) for h in entropies]
    order = np.lexsort((np.arange(len(after)), -after))
    rows = [
        {
            "id": seed_labels.names[i],
            "name": ontology.get(seed_labels.names[i], seed_labels.names[i]),
            "before": int(before[i]),
            "after": int(after[i]),
            "pool": int(there[i]),
        }
        for i in order.tolist()
    ]
    return {
        "rows": rows,
        "entropy": entropies,
        "effective": effective,
        "gini": [gini(before), gini(after)],
        "nothing": [row for row in rows if row["after"] == row["before"]],
    }


def _rates(splits: Mapping[str, Split], top: Neighbours, eligible: Int64) -> dict[str, Any] | None:
    """Sample rates and silence by split, and how often a neighbour has its seed's rate; None without media."""
    seeds, pool = splits["seeds"], splits["pool"]
    if seeds.facts is None or pool.facts is None:
        return None
    table = []
    for split in SPLITS:
        facts = splits[split].facts if split in splits else None
        if facts is not None:
            counted = dict(sorted(Counter(facts.sample_rate.tolist()).items()))
            silent = int(facts.silent().sum())
            table.append({"split": split, "rates": counted, "silent": silent, "clips": len(facts.sample_rate)})
    seed_rate = seeds.facts.sample_rate
    pool_rate = pool.facts.sample_rate
    at = np.searchsorted(pool.embedded, top.pool_rows.reshape(-1)).reshape(top.pool_rows.shape)
    same = float((pool_rate[at] == seed_rate[:, None]).mean())
    may_be = pool_rate[np.searchsorted(pool.embedded, eligible)]
    rates = np.unique(np.concatenate([seed_rate, may_be]))
    of_seeds, of_pool = (_shares(x, rates) for x in (seed_rate, may_be))
    return {
        "table": table,
        "same": same,
        "chance": float((of_seeds * of_pool).sum()),
        "differ": float(np.abs(of_seeds - of_pool).sum() / 2),
    }


def _shares(values: Any, of: Any) -> Float64:
    counts = np.bincount(np.searchsorted(of, values), minlength=len(of))
    return np.asarray(counts / max(len(values), 1))


def named(labels: tuple[str, ...], ontology: Mapping[str, str]) -> list[str]:
    """Label names where the ontology has them, else ids."""
    return [ontology.get(label, label) for label in labels]

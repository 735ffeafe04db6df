"""What two runs' augmented sets share, and which labels gain or lose.

In: two runs' files alone. Out: lines for a person: sizes, overlap of the sets and of the neighbours of shared seeds,
labels that only one has, and the labels whose counts change most (by ratio, then by count).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.results.read_run import Run

NUM_SHOWN = 10


def compare(folder_a: str, folder_b: str) -> list[str]:
    """The comparison's lines; A is the first run."""
    a, b = Run.read(folder_a), Run.read(folder_b)
    return [_shared(a, b, "seed"), _shared(a, b, "neighbour"), _clusters(a, b), *_label_changes(_labels(a), _labels(b))]


def _shared(a: Run, b: Run, source: str) -> str:
    mine, theirs = _ids(a, source), _ids(b, source)
    both = int(pc.sum(pc.is_in(mine, value_set=theirs)).as_py() or 0)
    either = len(mine) + len(theirs) - both
    share = f", {both / either:.1%} of all" if either else ""
    return (
        f"{source}s: {len(mine):,} in A, {len(theirs):,} in B, {both:,} in both{share}; "
        f"only A {len(mine) - both:,}, only B {len(theirs) - both:,}"
    )


def _label_changes(before: Counter[str], after: Counter[str]) -> list[str]:
    gained, lost = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    lines = [f"labels only in B: {', '.join(gained) or 'none'}", f"labels only in A: {', '.join(lost) or 'none'}"]
    changes = [(x, before[x], after[x]) for x in sorted(before.keys() & after.keys()) if before[x] != after[x]]
    for title, up in (("gain", True), ("lose", False)):
        some = [c for c in changes if (c[2] > c[1]) == up]
        some.sort(key=lambda c: (-abs(np.log(c[2] / c[1])), -abs(c[2] - c[1]), c[0]))
        shown = ", ".join(f"{x} {m:,} → {n:,}" for x, m, n in some[:NUM_SHOWN])
        lines.append(f"labels that {title} from A to B: {len(some):,}{': ' + shown if some else ''}")
    return lines


def _ids(run: Run, source: str) -> pa.Array:
    return run.augmented.filter(pc.equal(run.augmented["source"], source))["id"].combine_chunks()


def _labels(run: Run) -> Counter[str]:
    split = pc.split_pattern(run.augmented["labels"], ";")
    counted = pc.value_counts(pc.list_flatten(split)).to_pylist()
    return Counter({row["values"]: row["counts"] for row in counted if row["values"]})


def _clusters(a: Run, b: Run) -> str:
    """The mean share of a shared seed's neighbours that both runs have, at the smaller K."""
    k = min(a.k, b.k)
    tables = [run.neighbours.filter(pc.less_equal(run.neighbours["rank"], k)) for run in (a, b)]
    seeds = [pc.unique(t["seed_id"]) for t in tables]
    num_shared = int(pc.sum(pc.is_in(seeds[0], value_set=seeds[1])).as_py() or 0)
    if not num_shared:
        return "no seed is in both"
    columns = ["seed_id", "neighbour_id"]
    both = tables[0].select(columns).join(tables[1].select(columns), keys=columns, join_type="inner")
    return f"neighbours of the {num_shared:,} seeds in both: overlap@{k} {len(both) / (num_shared * k):.3f}"

"""The files that curation adds to a run: who was taken out or included and why, the label file, the baselines.

In: what was kept out before the search, and `Curated`. Out: `decisions.parquet`, VIP-ANT's `{label: [ids]}` file where
labels were balanced, and an index of each baseline (seeds first, like the augmented set). A clip is named once: what is
excluded before the search meets no curation step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance.curation.curate import Curated
from balance.curation.removed import Removals
from balance.data import vipant_index
from balance.records import Index, Int64
from balance.runtime import files

SCHEMA = pa.schema([("id", pa.string()), ("rule", pa.string()), ("by", pa.string()), ("value", pa.float64())])


def write_curation(
    folder: Path, k: int, seeds: Index, seed_rows: Int64, pool: Index, kept_out: Removals, curated: Curated
) -> list[Path]:
    """`decisions.parquet` (id, rule, by, value: see `Removals`), `labels_k{K}_{n}.k`, `src_random_k{K}_{i}.csv`
    and `src_stratified_k{K}_{i}.csv` (i from 1), with their weights; where the index has no lines `ids_random_…`."""
    written = [folder / "decisions.parquet"]
    out = Removals.join(kept_out, curated.included, curated.removals)
    columns = [pool.ids.take(pa.array(out.rows)).cast(pa.string()), out.rule, out.because_of, out.value]
    with files.atomic(written[0]) as file:
        pq.write_table(pa.table(columns, schema=SCHEMA), file)
    if curated.per_label is not None:
        written.append(write_label_file(folder / f"labels_k{k}_{curated.per_label}.k", pool, curated.union.pool_rows))
    chosen = seeds.take(seed_rows)
    for name, draws in (("random", curated.baselines.random), ("stratified", curated.baselines.stratified)):
        for i, rows in enumerate(draws, start=1):
            written += _write_baseline(folder, f"{name}_k{k}_{i}.csv", chosen, pool.take(rows))
    return written


def write_label_file(path: Path, pool: Index, rows: Int64) -> Path:
    """VIP-ANT's per-label selection: one JSON object, label -> ids in pool order; labels sorted, none of them empty."""
    labels = pool.labels.take(rows)
    ids = np.array(pool.ids.take(pa.array(rows)).to_pylist(), dtype=object)[
        np.repeat(np.arange(len(rows)), labels.sizes())
    ]
    order = np.argsort(labels.codes, kind="stable")
    ends = np.cumsum(labels.counts())
    with files.atomic_text(path) as file:
        by_label: dict[str, Any] = (
            {
                name: part.tolist()
                for name, part in zip(labels.names, np.split(ids[order], ends[:-1]), strict=True)
                if len(part)
            }
            if len(labels.names)
            else {}
        )
        json.dump(by_label, file, ensure_ascii=False)
        file.write("\n")
    return path


def _write_baseline(folder: Path, name: str, seeds: Index, drawn: Index) -> list[Path]:
    if seeds.lines is not None and drawn.lines is not None:
        return vipant_index.write_index(folder / f"src_{name}", [seeds, drawn])
    path = folder / f"ids_{name}"
    with files.atomic_text(path) as file:
        file.writelines(f"{x}\n" for part in (seeds, drawn) for x in part.ids.to_pylist())
    return [path]

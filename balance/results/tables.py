"""The tables of a run, each complete under its name or not there at all.

In: what the search and the curation chose. Out: `neighbours_*`, `augmented_*` to read, `ids_*`, `failures.jsonl` and
`warnings.jsonl`, byte for byte the same from the same inputs: no times, no absolute paths.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance.records import Failure, Float32, Index, Int64, Neighbours, Partial
from balance.runtime import files
from balance.stats.union import Union

NEIGHBOURS = pa.schema(
    [("seed_id", pa.string()), ("rank", pa.int32()), ("neighbour_id", pa.string()), ("similarity", pa.float32())]
)
_SEEDS_PER_BLOCK = 1024
COLUMNS = ("id", "source", "num_seeds", "best_seed_id", "best_rank", "best_similarity", "labels", "audio")


def write_neighbours(folder: Path, k: int, seeds: Index, pool: Index, neighbours: Neighbours) -> list[Path]:
    """`neighbours_k{K}.jsonl` (VIP-ANT's k-NN file) and `.parquet` (a table). neighbours: at K exactly."""
    lines, table = folder / f"neighbours_k{k}.jsonl", folder / f"neighbours_k{k}.parquet"
    seed_ids = seeds.ids.take(pa.array(neighbours.seed_rows))
    quoted_pool = np.array([json.dumps(x, ensure_ascii=False) for x in pool.ids.to_pylist()], dtype=object)
    with files.atomic_text(lines) as file:
        for row, seed_id in enumerate(seed_ids.to_pylist()):
            names = quoted_pool[neighbours.pool_rows[row]].tolist()
            values = (neighbours.similarities[row] + np.float32(0)).tolist()
            pairs = ", ".join(f"[{n}, {v:.6f}]" for n, v in zip(names, values, strict=True))
            file.write(
                f"{{{json.dumps(seed_id, ensure_ascii=False)}: [{pairs}]}}\n".replace(" -0.000000]", " 0.000000]")
            )
    with files.atomic(table) as binary, pq.ParquetWriter(binary, NEIGHBOURS) as writer:
        for first in range(0, len(seed_ids), _SEEDS_PER_BLOCK):
            block = slice(first, first + _SEEDS_PER_BLOCK)
            rows = neighbours.pool_rows[block]
            count = len(rows)
            writer.write_table(
                pa.table(
                    [
                        seed_ids[block].take(pa.array(np.repeat(np.arange(count), k))),
                        pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
                        pool.ids.take(pa.array(rows.reshape(-1))),
                        pa.array(neighbours.similarities[block].reshape(-1)),
                    ],
                    schema=NEIGHBOURS,
                )
            )
    return [lines, table]


def write_augmented(folder: Path, k: int, seeds: Index, seed_rows: Int64, pool: Index, union: Union) -> list[Path]:
    """`augmented_k{K}.csv`, to read, and `ids_k{K}.csv`.

    seed_rows: the seeds with an embedding, in order; union: the chosen pool clips, in pool order.
    """
    table, ids = folder / f"augmented_k{k}.csv", folder / f"ids_k{k}.csv"
    chosen_seeds, chosen = seeds.take(seed_rows), pool.take(union.pool_rows)
    seed_ids = chosen_seeds.ids.to_pylist()
    with files.atomic_text(table) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for clip_id, labels, path in _rows(chosen_seeds):
            writer.writerow((clip_id, "seed", "", "", "", "", labels, path))
        columns = (
            union.num_seeds.tolist(),
            [seed_ids[s] for s in union.best_seed.tolist()],
            union.best_rank.tolist(),
            shortest(union.best_similarity),
        )
        for (clip_id, labels, path), *best in zip(_rows(chosen), *columns, strict=True):
            writer.writerow((clip_id, "neighbour", *best, labels, path))
    with files.atomic_text(ids) as file:
        file.writelines(f"{x}\n" for part in (chosen_seeds, chosen) for x in part.ids.to_pylist())
    return [table, ids]


def _rows(index: Index) -> Iterator[tuple[str, str, str]]:
    """(id, labels joined by ;, path) of each clip."""
    offsets, names = index.labels.offsets.tolist(), np.array(index.labels.names, dtype=object)
    labels = names[index.labels.codes].tolist() if len(names) else []
    for row, (clip_id, path) in enumerate(zip(index.ids.to_pylist(), index.paths.to_pylist(), strict=True)):
        yield clip_id, ";".join(labels[offsets[row] : offsets[row + 1]]), path


def shortest(values: Float32) -> list[str]:
    """The shortest decimal of each float32 that reads back as the same float32; 0 for −0."""
    return [str(x) for x in (values + np.float32(0))]


def write_failures(folder: Path, failures: Sequence[Failure]) -> Path:
    """`failures.jsonl`: a line per clip without embedding, by split, then index order."""
    path = folder / "failures.jsonl"
    with files.atomic_text(path) as file:
        for f in failures:
            record = {"id": f.id, "split": f.split, "path": f.path, "reason": f.reason, "detail": f.detail}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def write_warnings(folder: Path, partial: Sequence[Partial]) -> Path:
    """`warnings.jsonl`: a line per clip that has an embedding, but of a part of it; by split, then index order."""
    path = folder / "warnings.jsonl"
    with files.atomic_text(path) as file:
        for p in partial:
            record = {"id": p.id, "split": p.split, "path": p.path, "warning": "partial", "detail": p.detail}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path

"""The tables of a run, each complete under its name or not there at all.

In: what the search and the curation chose. Out: `neighbours_*`, `augmented_*` to read, `ids_*`, `failures.jsonl` and
`warnings.jsonl`, byte for byte the same from the same inputs: no times, no absolute paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.records import QUALITY, Failure, Float32, Index, Int64, Neighbours, Partial, Strings
from balance.runtime import files
from balance.runtime.files import write_lines
from balance.stats.union import Union

NEIGHBOURS = pa.schema(
    [("seed_id", pa.string()), ("rank", pa.int32()), ("neighbour_id", pa.string()), ("similarity", pa.float32())]
)
_SEEDS_PER_BLOCK = 1024
_CLIPS_PER_BLOCK = 65_536
COLUMNS = ("id", "source", "num_seeds", "best_seed_id", "best_rank", "best_similarity", "labels", "audio")


def write_neighbours(folder: Path, k: int, seeds: Index, pool: Index, neighbours: Neighbours) -> list[Path]:
    """`neighbours_k{K}.jsonl` (VIP-ANT's k-NN file) and `.parquet` (a table). neighbours: at K exactly."""
    lines, table = folder / f"neighbours_k{k}.jsonl", folder / f"neighbours_k{k}.parquet"
    seed_ids = seeds.ids.take(pa.array(neighbours.seed_rows))
    with (
        files.atomic(lines) as text,
        files.atomic(table) as binary,
        pq.ParquetWriter(binary, NEIGHBOURS) as writer,
    ):
        for first in range(0, len(seed_ids), _SEEDS_PER_BLOCK):
            block = slice(first, first + _SEEDS_PER_BLOCK)
            count = len(neighbours.pool_rows[block])
            ids = pool.ids.take(pa.array(neighbours.pool_rows[block].reshape(-1)))
            similarities = neighbours.similarities[block].reshape(-1)
            writer.write_table(
                pa.table(
                    [
                        seed_ids[block].take(pa.array(np.repeat(np.arange(count), k))),
                        pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), count)),
                        ids,
                        pa.array(similarities),
                    ],
                    schema=NEIGHBOURS,
                )
            )
            pairs = pc.binary_join_element_wise("[", _quoted(ids), ", ", _six_decimals(similarities), "]", "")
            of_seed = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * k), pairs)
            joined = pc.binary_join(of_seed, ", ")
            write_lines(text, pc.binary_join_element_wise("{", _quoted(seed_ids[block]), ": [", joined, "]}", ""))
    return [lines, table]


def _quoted(ids: Strings) -> Strings:
    """Each id as a JSON string, as `json.dumps(id, ensure_ascii=False)` writes it."""
    escaped = pc.match_substring_regex(ids, r'["\\\x00-\x1f]')
    plain = pc.binary_join_element_wise('"', ids, '"', "")
    if not pc.any(escaped).as_py():
        return plain
    texts = [json.dumps(text, ensure_ascii=False) for text in ids.filter(escaped).to_pylist()]
    return pc.replace_with_mask(plain, escaped, pa.array(texts, pa.string()))


def _six_decimals(values: Float32) -> Strings:
    """Each value as `f"{value:.6f}"` writes it, 0 for −0. A float32 times a million is exact as a float64, so that
    rounding it half to even is what the formatting does; equal texts are made once."""
    millionths, at = np.unique(np.rint(values.astype(np.float64) * 1e6).astype(np.int64), return_inverse=True)
    texts = pa.array([f"{'-' * (x < 0)}{abs(x) // 10**6}.{abs(x) % 10**6:06d}" for x in millionths.tolist()])
    return texts.take(pa.array(at))


def write_augmented(
    folder: Path,
    k: int,
    seeds: Index,
    seed_rows: Int64,
    pool: Index,
    union: Union,
    *,
    quality: tuple[Float32, Float32] | None = None,
) -> list[Path]:
    """`augmented_k{K}.csv`, to read, and `ids_k{K}.csv`.

    seed_rows: the seeds with an embedding, in order; union: the chosen pool clips, in pool order; quality: of these
    seeds and clips, (n, len(QUALITY)) each, for as many columns more, empty where it is not known.
    """
    table, ids = folder / f"augmented_k{k}.csv", folder / f"ids_k{k}.csv"
    chosen_seeds = seeds.take(seed_rows)
    with files.atomic(table) as rows, files.atomic(ids) as names:
        rows.write(",".join(COLUMNS if quality is None else (*COLUMNS, *QUALITY)).encode() + b"\n")
        of_seeds, of_chosen = quality or (None, None)
        for part, best, measured in ((chosen_seeds, None, of_seeds), (pool.take(union.pool_rows), union, of_chosen)):
            for first in range(0, len(part), _CLIPS_PER_BLOCK):
                at = np.arange(first, min(first + _CLIPS_PER_BLOCK, len(part)))
                clips = part.take(at)
                columns = ["seed", "", "", "", ""] if best is None else _best(best.take(at), chosen_seeds.ids)
                audio = clips.paths.cast(pa.string())
                fields = [_field(column) for column in (clips.ids, *columns, _joined_labels(clips), audio)]
                fields += [] if measured is None else [_seven_digits(column) for column in measured[at].T]
                write_lines(rows, pc.binary_join_element_wise(*fields, ","))
                write_lines(names, clips.ids)
    return [table, ids]


def _best(union: Union, seed_ids: Strings) -> list[Any]:
    """The columns `source` to `best_similarity` of neighbours."""
    has_seed = pa.array(union.num_seeds > 0)  # what the user included need not have one
    best_seed = seed_ids.take(pa.array(np.maximum(union.best_seed, 0)))
    numbers = (pa.array(column).cast(pa.string()) for column in (union.num_seeds, union.best_rank))
    num_seeds, best_rank = numbers
    best = (best_seed, best_rank, pa.array(shortest(union.best_similarity), pa.string()))
    return ["neighbour", num_seeds, *(pc.if_else(has_seed, column, "") for column in best)]


def _joined_labels(index: Index) -> Strings:
    """The labels of each clip, joined by semicolons."""
    names = pa.array(index.labels.names, pa.string()).take(pa.array(index.labels.codes))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(index.labels.offsets, pa.int32()), names), ";")


def _field(column: Any) -> Any:
    """A column of CSV fields: quoted where they hold a comma, a quote or a line end (RFC 4180)."""
    if isinstance(column, str):
        return column
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(column, '"', '""'), '"', "")
    return pc.if_else(pc.match_substring_regex(column, '[",\r\n]'), quoted, column)


def _seven_digits(values: Float32) -> Strings:
    """Each value, "" for NaN."""
    return pa.array(["" if math.isnan(value) else f"{value:.7g}" for value in values.tolist()], pa.string())


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

"""The files of a run, each complete under its name or not there at all.

In: what the search and the curation chose. Out: the tables of the README, byte for byte the same from the same inputs.
Times and absolute paths go into `manifest.json` alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance import __version__
from balance.data import formats
from balance.data.config import ColumnsConfig, Format
from balance.data.vipant_index import index_weights
from balance.prepared import Embedded, Prepared
from balance.records import SPLITS, Failure, Float32, Index, Int64, Labels, Neighbours, common_names
from balance.runtime import files
from balance.stats.labels import (
    Union,
    label_agreement,
    label_agreement_random,
    label_entropy,
    label_recall,
    label_recall_random,
    uniform_share,
)

SILENT_DB = -60.0
_SEEDS_A_BLOCK = 1024
_COLUMNS = ("id", "source", "num_seeds", "best_seed_id", "best_rank", "best_similarity", "labels", "audio")
_LIBRARIES = ("torch", "numpy", "scipy", "pyarrow", "soundfile", "hydra-core", "omegaconf", "faiss-cpu", "faiss-gpu")


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
    schema = pa.schema(
        [("seed_id", pa.string()), ("rank", pa.int32()), ("neighbour_id", pa.string()), ("similarity", pa.float32())]
    )
    with files.atomic(table) as binary, pq.ParquetWriter(binary, schema) as writer:
        for first in range(0, len(seed_ids), _SEEDS_A_BLOCK):
            block = slice(first, first + _SEEDS_A_BLOCK)
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
                    schema=schema,
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
        writer.writerow(_COLUMNS)
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


def write_index(path: Path, parts: Sequence[Index]) -> list[Path]:
    """A VIP-ANT index of these clips, their original lines, and beside it the weight file over this index."""
    weights = path.with_name(f"{path.stem}_weight.csv")
    with files.atomic(path) as file:
        for part in parts:
            assert part.lines is not None
            for line in part.lines:
                file.write(line.as_buffer())
                file.write(b"\n")
    with files.atomic_text(weights) as text:
        text.writelines(
            f"{weight!r}\n" for weight in index_weights(Labels.join([part.labels for part in parts])).tolist()
        )
    return [path, weights]


def write_training_index(
    format: Format, parts: Sequence[Index], folder: Path, k: int, *, columns: ColumnsConfig
) -> list[Path]:
    """The index to train on: a VIP-ANT index where the clips have its lines, else one of the data set's own form."""
    if format not in (Format.vipant, Format.embeddings):
        return formats.write_index(format, parts, folder, k, columns=columns)
    if any(part.lines is None for part in parts):
        return []  # the user's own vectors without an index beside them
    return write_index(folder / f"src_augmented_k{k}.csv", parts)


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
    """`failures.jsonl`: a line a clip without embedding, by split, then index order."""
    path = folder / "failures.jsonl"
    with files.atomic_text(path) as file:
        for f in failures:
            record = {"id": f.id, "split": f.split, "path": f.path, "reason": f.reason, "detail": f.detail}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def summarise(prepared: Prepared, k: int, union: Union) -> dict[str, Any]:
    """The content of `summary.json`. union: the pool clips of the augmented set (after curation)."""
    seeds, pool = prepared.seeds, prepared.pool
    names = common_names(seeds.index.labels, pool.index.labels)
    seed_labels = seeds.index.labels.recode(names).take(seeds.embedded)
    pool_labels = pool.index.labels.recode(names)
    eligible_labels = pool_labels.take(prepared.eligible)
    neighbours = prepared.neighbours.top(k)
    at_seeds = Neighbours(np.arange(len(seeds.embedded)), neighbours.pool_rows, neighbours.similarities)
    after = Labels.join([seed_labels, pool_labels.take(union.pool_rows)])
    num_eligible = len(prepared.eligible)
    return {
        "k": k,
        "num_seeds": len(seeds.index),
        "num_seeds_without_embedding": len(seeds.index) - len(seeds.embedded),
        "num_pool": len(pool.index),
        "num_pool_embedded": len(pool.embedded),
        "num_pool_eligible": num_eligible,
        "num_leaks": len(prepared.leaks.rows),
        "num_neighbours": len(union),
        "pool_share": len(union) / num_eligible,
        "pool_share_uniform": uniform_share(len(seeds.embedded), num_eligible, k),
        "label_agreement": label_agreement(seed_labels, pool_labels, at_seeds),
        "label_agreement_random": label_agreement_random(seed_labels, eligible_labels),
        "label_recall": label_recall(seed_labels, pool_labels, at_seeds),
        "label_recall_random": label_recall_random(seed_labels, eligible_labels, k),
        "label_entropy_before": label_entropy(seed_labels, len(names)),
        "label_entropy_after": label_entropy(after, len(names)),
        "failures": {
            split: dict(sorted(Counter(f.reason for f in prepared.embedded.failures if f.split == split).items()))
            for split in SPLITS
            if split in prepared.embedded.splits
        },
        "num_silent": sum(
            int((split.facts.rms_db < SILENT_DB).sum())
            for split in prepared.embedded.splits.values()
            if split.facts is not None
        ),
        "sample_rates": {
            name: {
                str(hz): count
                for hz, count in sorted(Counter(split.facts.sample_rate.tolist() if split.facts else []).items())
            }
            for name, split in prepared.embedded.splits.items()
        },
        "fingerprint": prepared.embedded.fingerprint,
    }


def _plain(value: Any) -> Any:
    """A dataclass as JSON values: enums by their names."""
    return json.loads(json.dumps(asdict(value), default=lambda member: member.value))


def write_manifest(
    folder: Path,
    *,
    config: Mapping[str, Any],
    embedded: Embedded,
    outputs: Sequence[Path],
    times_s: dict[str, float],
    ids: Path,
) -> Path:
    """`manifest.json`: everything that a reader needs to make this run again, and to trust its files."""
    path = folder / "manifest.json"
    lines = sorted(ids.read_text("utf-8").split("\n")[:-1])
    files.write_json(
        path,
        {
            "version": __version__,
            "git_commit": git_commit(),
            "config": dict(config),
            "inputs": dict(embedded.inputs),
            "outputs": {p.relative_to(folder).as_posix(): files.sha256_file(p) for p in sorted(outputs)},
            "ids_sha256": _sha256("\n".join(lines)),
            "libraries": versions(),
            "device": embedded.device,
            "precision": embedded.precision,
            "precision_report": None if embedded.precision_report is None else _plain(embedded.precision_report),
            "fingerprint": embedded.fingerprint,
            "times_s": {name: round(seconds, 3) for name, seconds in times_s.items()},
        },
    )
    return path


def versions() -> dict[str, str]:
    """Library -> installed version, of those that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this program's checkout, with `-dirty` where it was changed; None outside one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie in somebody else's checkout
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

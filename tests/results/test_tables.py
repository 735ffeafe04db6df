"""The tables of a run against the csv and json modules, on names that need quotes."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.records import Index, Labels, Neighbours
from balance.results import tables
from balance.stats.union import union_of

NASTY = ["plain", 'say "a"', "a,b", "back\\slash", "é ü", "line\u2028end", " blank ", "'", "a;b", "x" * 300]


def index(prefix: str, num: int) -> Index:
    ids = [f"{prefix}{number}{NASTY[number % len(NASTY)]}" for number in range(num)]
    labels = Labels.of([[f"/m/{n}" for n in NASTY[: number % 4]] for number in range(num)])
    return Index("x.csv", pa.array(ids), pa.array([f"all/{id}.wav" for id in ids]), labels)


def test_tables_are_those_of_the_csv_and_json_modules(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "_SEEDS_PER_BLOCK", 4)
    monkeypatch.setattr(tables, "_CLIPS_PER_BLOCK", 7)
    rng = np.random.default_rng(0)
    seeds, pool, k = index("s", 23), index("p", 60), 5
    rows = np.stack([rng.permutation(60)[:k] for _ in range(20)]).astype(np.int32)
    similarities = rng.uniform(-1, 1, rows.shape).astype(np.float32)
    similarities[0] = [1, 3e-6, 2.5e-7, -0.0, -1e-9]
    similarities[1] = np.float32([0.5, -0.5, 15, 1, 1.9]) * 2**-20  # halves of the last digit
    neighbours = Neighbours(np.sort(rng.permutation(23)[:20]).astype(np.int64), rows, similarities)
    tables.write_neighbours(tmp_path, k, seeds, pool, neighbours)
    union = union_of(neighbours)
    tables.write_augmented(tmp_path, k, seeds, neighbours.seed_rows, pool, union)

    ids, pool_ids = seeds.ids.to_pylist(), pool.ids.to_pylist()
    lines = []
    for row, of_seed, values in zip(neighbours.seed_rows.tolist(), rows, similarities + np.float32(0), strict=True):
        names = [json.dumps(pool_ids[at], ensure_ascii=False) for at in of_seed]
        pairs = [f"[{name}, {value:.6f}]" for name, value in zip(names, values, strict=True)]
        lines.append(f"{{{json.dumps(ids[row], ensure_ascii=False)}: [{', '.join(pairs)}]}}\n")
    expected = "".join(lines).replace(" -0.000000]", " 0.000000]")
    assert (tmp_path / "neighbours_k5.jsonl").read_bytes() == expected.encode()

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(tables.COLUMNS)
    for row in neighbours.seed_rows.tolist():
        writer.writerow([ids[row], "seed", "", "", "", "", ";".join(seeds.labels[row]), seeds.paths[row].as_py()])
    for at, row in enumerate(union.pool_rows.tolist()):
        best = neighbours.seed_rows[union.best_seed[at]]
        value = str(union.best_similarity[at] + np.float32(0))
        fields = [union.num_seeds[at], ids[best], union.best_rank[at], value]
        writer.writerow([pool_ids[row], "neighbour", *fields, ";".join(pool.labels[row]), pool.paths[row].as_py()])
    assert (tmp_path / "augmented_k5.csv").read_bytes() == text.getvalue().encode()
    chosen = [ids[row] for row in neighbours.seed_rows] + [pool_ids[row] for row in union.pool_rows]
    assert (tmp_path / "ids_k5.csv").read_text("utf-8") == "".join(f"{x}\n" for x in chosen)


def test_six_decimals_are_those_of_the_formatting() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [
            rng.uniform(-1, 1, 100_000).astype(np.float32),
            (np.arange(-4096, 4096) * 2.0**-13).astype(np.float32),
            (np.arange(-4096, 4096) * 2.0**-21).astype(np.float32),
        ]
    )
    expected = [f"{value:.6f}".replace("-0.000000", "0.000000") for value in values.tolist()]
    assert tables._six_decimals(values).to_pylist() == expected

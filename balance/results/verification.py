"""Are a run's files what it wrote, and do they follow from the embeddings?

In: a run's folder and the store that its manifest names. Out: lines for a person, exit status 1 at a mismatch. Every
file of the manifest is hashed again, and 1,000 random rows of `neighbours_*.parquet` are recomputed by the definition
(three sums by `math.fsum`), not by the search's own code: equal to the last bit, or it is an error.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data import precomputed
from balance.embed.store import Store
from balance.errors import UserError
from balance.records import Float32, Vectors
from balance.results.read_run import Run
from balance.runtime import files

NUM_ROWS = 1000
_NAMED = 5  # mismatches that a message names
_SPLITS = {"balanced": "seeds", "unbalanced": "pool"}


def verify(folder: str) -> list[str]:
    """What was found right. UserError naming the first of what is not."""
    run = Run.read(folder)
    wrong = [
        name
        for name, sha256 in sorted(run.manifest["outputs"].items())
        if not (run.path / name).is_file() or files.sha256_file(run.path / name) != sha256
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} files are not what the run wrote (or are gone): {', '.join(wrong[:_NAMED])}"
            f"{', …' if len(wrong) > _NAMED else ''}. Do not use them; run the job again"
        )
    table = run.neighbours
    rng = np.random.default_rng(run.manifest["config"]["seed"])
    rows = np.sort(rng.choice(len(table), min(NUM_ROWS, len(table)), replace=False))
    some = table.take(pa.array(rows))
    store = None if run.manifest["config"]["dataset"]["format"] == "embeddings" else _store_of(run)
    seeds = _embeddings(run, store, "balanced", some["seed_id"])
    found = _embeddings(run, store, "unbalanced", some["neighbour_id"])
    bad = []
    for row in some.to_pylist():
        values = {similarity(a, b) for a in seeds[row["seed_id"]] for b in found[row["neighbour_id"]]}
        if np.float32(row["similarity"]) not in values:
            bad.append(f"{row['seed_id']} – {row['neighbour_id']}")
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} neighbour rows do not follow from the stored embeddings: "
            f"{', '.join(bad[:_NAMED])}{', …' if len(bad) > _NAMED else ''}. Run the job again, with refresh=true"
        )
    return [f"{len(run.manifest['outputs'])} files as written, {len(rows):,} neighbour rows follow from the embeddings"]


def similarity(a: Float32, b: Float32) -> np.float32:
    """The exact cosine of two float32 vectors by the definition, rounded to float32; 0 if either is all zeros."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    squares = math.fsum((x * x).tolist()), math.fsum((y * y).tolist())
    if not all(squares):
        return np.float32(0)
    return np.float32(math.fsum((x * y).tolist()) / (math.sqrt(squares[0]) * math.sqrt(squares[1])))


def _store_of(run: Run) -> Store:
    config = run.manifest["config"]
    where = Path(config["cache_dir"]).expanduser() / "embeddings"
    directory = where / f"{config['dataset']['name']}-{run.manifest['fingerprint']}"
    if not directory.is_dir():
        raise UserError(f"{directory} is not there: the run's embeddings are needed to verify its neighbours")
    return Store(directory)


def _embeddings(run: Run, store: Store | None, key: str, ids: Any) -> dict[str, list[Float32]]:
    """Id -> its embeddings (one id may lie in two folders: the store's key is the path). store: None where the vectors
    are the user's own; key: of `dataset`."""
    config = run.manifest["config"]
    wanted = pc.unique(ids)
    vectors: Vectors
    if store is None:
        given = precomputed.read_vectors(Path(config["dataset"]["root"]).expanduser(), config["dataset"][key])
        if given.sha256 != run.manifest["inputs"][f"{_SPLITS[key]}.vectors"]:
            raise UserError(
                f"the vectors of dataset.{key}={config['dataset'][key]} are no longer those that the run searched: put "
                "those back, or run the job again"
            )
        names, vectors = given.index.ids, given.vectors
    else:
        names, vectors = store.ids, store.vectors(np.arange(len(store), dtype=np.int64))
    rows = np.flatnonzero(pc.is_in(names, value_set=wanted).to_numpy(zero_copy_only=False))
    data = vectors.take(rows)
    found: dict[str, list[Float32]] = {name: [] for name in wanted.to_pylist()}
    for name, vector in zip(names.take(pa.array(rows)).to_pylist(), data, strict=True):
        found[name].append(vector)
    return found

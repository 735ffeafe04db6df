"""Are a run's files what it wrote, and do they follow from the embeddings?

In: a run's folder and the store that its manifest names. Out: lines for a person, exit status 1 at a mismatch. Every
file of the manifest is hashed again, and 1,000 random rows of `neighbours_*.parquet` are recomputed by the definition
(three sums by `math.fsum`), not by the search's own code: equal to the last bit, or it is an error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data.config import Format
from balance.embed.store import Store
from balance.errors import UserError
from balance.records import Float32, Vectors
from balance.results.read_run import Run
from balance.results.run_splits import open_store, own_vectors
from balance.runtime import files
from balance.runtime.wording import listed

NUM_ROWS = 1000


def verify(folder: str) -> list[str]:
    """What was found right. UserError naming the first of what is not."""
    run = Run.read(folder)
    wrong = [
        name
        for name, sha256 in sorted(run.facts.outputs.items())
        if not (run.path / name).is_file() or files.sha256_file(run.path / name) != sha256
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} files are not what the run wrote (or are gone): {listed(wrong)}. Do not use them; run the "
            "job again"
        )
    table = run.neighbours
    rng = np.random.default_rng(run.facts.rng_seed)
    rows = np.sort(rng.choice(len(table), min(NUM_ROWS, len(table)), replace=False))
    some = table.take(pa.array(rows))
    held = None if run.facts.source.format is Format.embeddings else open_store(run)
    seeds = _embeddings(run, held, "seeds", some["seed_id"])
    found = _embeddings(run, held, "pool", some["neighbour_id"])
    bad = []
    for row in some.to_pylist():
        values = {similarity(a, b) for a in seeds[row["seed_id"]] for b in found[row["neighbour_id"]]}
        if np.float32(row["similarity"]) not in values:
            bad.append(f"{row['seed_id']} – {row['neighbour_id']}")
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} neighbour rows do not follow from the stored embeddings: "
            f"{listed(bad)}. Run the job again, with refresh=true"
        )
    return [f"{len(run.facts.outputs)} files as written, {len(rows):,} neighbour rows follow from the embeddings"]


def similarity(a: Float32, b: Float32) -> np.float32:
    """The exact cosine of two float32 vectors by the definition, rounded to float32; 0 if either is all zeros."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    squares = math.fsum((x * x).tolist()), math.fsum((y * y).tolist())
    if not all(squares):
        return np.float32(0)
    return np.float32(math.fsum((x * y).tolist()) / (math.sqrt(squares[0]) * math.sqrt(squares[1])))


def _embeddings(run: Run, held: Store | None, split: str, ids: Any) -> dict[str, list[Float32]]:
    """Id -> its embeddings (one id may lie in two folders: the store's key is the path).

    held: the run's store; None where the vectors are the user's own.
    """
    wanted = pc.unique(ids)
    vectors: Vectors
    if held is None:
        given = own_vectors(run, split)
        names, vectors = given.index.ids, given.vectors
    else:
        names, vectors = held.ids, held.vectors(np.arange(len(held), dtype=np.int64))
    rows = np.flatnonzero(pc.is_in(names, value_set=wanted.cast(names.type)).to_numpy(zero_copy_only=False))
    found: dict[str, list[Float32]] = {name: [] for name in wanted.to_pylist()}
    for name, vector in zip(names.take(pa.array(rows)).to_pylist(), vectors.take(rows), strict=True):
        found[name].append(vector)
    return found

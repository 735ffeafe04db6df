"""A run's k-NN file and id list as filters for an index, read strictly.

In: `neighbours_k{K}.jsonl` or `.parquet`, or `ids_k{K}.csv`. Out: plain dicts and lists of ids, for
`balance.training.dataset.select`. A missing file, a malformed line or a seed with too few neighbours is an error here,
never "no filter", as it is in the published loader. The price: the whole file is held as Python objects, about 100
bytes per pair.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance.data.clip_ids import read_id_file
from balance.errors import UserError


def load_neighbours(path: str | os.PathLike[str], *, top: int) -> dict[str, list[tuple[str, float]]]:
    """Each seed's `top` nearest (id, similarity), best first, of `neighbours_k{K}.jsonl` or `.parquet`.

    UserError for a missing or malformed file, a seed named twice or one with fewer neighbours than `top`.
    """
    path = Path(path)
    if not isinstance(top, int) or top < 1:
        raise UserError(f"top={top}: the number of neighbours per seed is a whole number, at least 1")
    if not path.is_file():
        raise UserError(f"{path}: no such k-NN file; a run writes neighbours_k{{K}}.jsonl and .parquet")
    found: dict[str, list[tuple[str, float]]] = {}
    for where, seed, pairs in _read_table(path) if path.suffix == ".parquet" else _read_lines(path):
        if seed in found:
            raise UserError(f"{where}: the seed {seed!r} occurs twice")
        if len(pairs) < top:
            raise UserError(f"{where}: the seed {seed!r} has {len(pairs)} neighbours, {top} are asked for")
        found[seed] = pairs[:top]
    if not found:
        raise UserError(f"{path}: empty k-NN file")
    return found


def _read_lines(path: Path) -> Iterator[tuple[str, str, list[tuple[str, float]]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                record = json.loads(line, object_pairs_hook=tuple)  # not a dict: it would swallow a repeated key
                if not isinstance(record, tuple):
                    raise TypeError
                ((seed, pairs),) = record
                yield where, _text(seed), _pairs(pairs)
            except (ValueError, TypeError, AttributeError):
                raise UserError(f'{where}: not {{"<seed id>": [["<id>", similarity], …]}}: {line[:60]!r}') from None


def _pairs(pairs: Sequence[tuple[object, object]]) -> list[tuple[str, float]]:
    """Checked (id, similarity) pairs of one seed; TypeError, ValueError for anything else."""
    checked = []
    for clip_id, similarity in pairs:
        if isinstance(similarity, bool) or not isinstance(similarity, (int, float)) or not math.isfinite(similarity):
            raise TypeError
        checked.append((_text(clip_id), float(similarity)))
    if len({clip_id for clip_id, _ in checked}) < len(checked):
        raise ValueError
    return checked


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_table(path: Path) -> Iterator[tuple[str, str, list[tuple[str, float]]]]:
    try:
        table = pq.read_table(path, columns=["seed_id", "rank", "neighbour_id", "similarity"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise UserError(f"{path}: not a neighbours_k{{K}}.parquet ({str(error).splitlines()[0]})") from None
    table = table.combine_chunks()
    names, similarities = table["neighbour_id"].to_pylist(), table["similarity"].to_pylist()
    ranks, seeds = table["rank"].to_numpy(), table["seed_id"].to_pylist()
    starts = np.flatnonzero(ranks == 1).tolist()
    if len(ranks) and (not starts or starts[0]):
        raise UserError(f"{path} row 0: ranks of a seed must be 1, 2, 3, …")
    for start, stop in zip(starts, [*starts[1:], len(ranks)], strict=True):
        if (ranks[start:stop] != np.arange(1, stop - start + 1)).any() or len(set(seeds[start:stop])) > 1:
            raise UserError(f"{path} row {start}: ranks of a seed must be 1, 2, 3, …")
        try:
            pairs = _pairs(list(zip(names[start:stop], similarities[start:stop], strict=True)))
            yield f"{path} row {start}", _text(seeds[start]), pairs
        except (TypeError, ValueError):
            raise UserError(f"{path} row {start}: ids must be text, each once per seed, similarities numbers") from None


def load_ids(path: str | os.PathLike[str]) -> list[str]:
    """The ids of `ids_k{K}.csv`, one a line. UserError if the file is missing, empty or has empty lines."""
    ids: list[str] = read_id_file(Path(path)).to_pylist()
    if not ids:
        raise UserError(f"{path}: empty id list")
    return ids

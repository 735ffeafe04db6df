"""Why a clip is in a run's augmented set, or why not.

In: a run's files alone, so that the answer is about what was written. Out: lines for a person: in as a seed, or chosen
by which seeds at which ranks; out by which rule and because of which clip; without embedding; in no seed's top K.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow.compute as pc

from balance.curation.removed import Rule
from balance.data.config import ColumnsConfig, Format
from balance.data.formats import read_split
from balance.errors import UserError
from balance.results.read_run import Run

NUM_SHOWN = 20


def why(folder: str, clip_id: str) -> list[str]:
    """The answer's lines. UserError for an id that the run does not know."""
    run = Run.read(folder)
    found = run.augmented.filter(pc.equal(run.augmented["id"], clip_id)).to_pylist()
    choices = run.neighbours.filter(pc.equal(run.neighbours["neighbour_id"], clip_id)).to_pylist()
    removed = run.decisions.filter(pc.equal(run.decisions["id"], clip_id)).to_pylist()
    failed = [f for f in run.failures() if f["id"] == clip_id]
    lines: list[str] = []
    for row in found:
        if row["source"] == "seed":
            lines += [f"in: {clip_id} is a seed", *_cluster(run, clip_id)]
        else:
            lines += [
                f"in: {clip_id} is a neighbour of {row['num_seeds']} seeds; best: rank {row['best_rank']} of "
                f"{row['best_seed_id']}, similarity {row['best_similarity']}"
            ]
    for row in removed:
        sentence = Rule[row["rule"]].sentence(row["by"], row["value"])
        lines.append(f"out: {clip_id} {sentence} (rule {row['rule']})")
    for failure in failed:
        lines.append(
            f"without embedding: {clip_id} of the {failure['split']} ({failure['reason']}: {failure['detail']}), "
            f"{failure['path']}"
        )
    if choices:
        lines.append(f"chosen by {len(choices):,} seeds in the search's result:")
        best_first = sorted(choices, key=lambda row: (-row["similarity"], row["rank"]))
        lines += [
            f"  rank {row['rank']:>4} of {row['seed_id']}, similarity {row['similarity']:.6f}"
            for row in best_first[:NUM_SHOWN]
        ]
        if len(choices) > NUM_SHOWN:
            lines.append(f"  … and {len(choices) - NUM_SHOWN:,} more")
    if lines:
        return lines
    split = _listed(run, clip_id)
    if split is None:
        raise UserError(
            f"{clip_id}: no clip of this run has this id (looked in the files of {folder}, and in its index files, "
            "where they are still there); ids are compared whole, and case counts"
        )
    if split == "eval":
        return [f"out: {clip_id} is listed for evaluation only"]
    return [f"out: {clip_id} is in the pool, but in no seed's top {run.k}"]


def _cluster(run: Run, seed_id: str) -> list[str]:
    mine = run.neighbours.filter(pc.equal(run.neighbours["seed_id"], seed_id)).to_pylist()
    shown = ", ".join(f"{row['neighbour_id']} ({row['similarity']:.4f})" for row in mine[:5])
    return [f"  its neighbours: {shown}{', …' if len(mine) > 5 else ''}"]


def _listed(run: Run, clip_id: str) -> str | None:
    """The split whose index lists the clip, of the indexes that are still where the run read them."""
    dataset = run.manifest["config"]["dataset"]
    root, media = Path(dataset["root"]), Path(dataset["media"] or dataset["root"])
    format, columns = Format(dataset["format"]), ColumnsConfig(**dataset["columns"])
    for split, key in (("pool", "unbalanced"), ("eval", "eval")):
        if dataset[key]:
            with contextlib.suppress(UserError, OSError):
                index = read_split(format, dataset[key], root=root, media=media, columns=columns)
                if pc.any(pc.equal(index.ids, clip_id)).as_py():
                    return split
    return None

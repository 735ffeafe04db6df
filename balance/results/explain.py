"""Why a clip is in a run's augmented set, or why not.

In: a run's files alone, so that the answer is about what was written. Out: lines for a person: in as a seed, or chosen
by which seeds at which ranks; out by which rule and because of which clip; without embedding; in no seed's top K.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pyarrow.compute as pc

from balance.curation.removed import Rule
from balance.errors import UserError
from balance.records import RandomSimilarity
from balance.results.read_run import Run
from balance.runtime.wording import counted, listed

NUM_SHOWN = 20


def why(folder: str, clip_id: str) -> list[str]:
    """The answer's lines. UserError for an id that the run does not know."""
    run = Run.read(folder)
    try:
        clip_id.encode()
    except UnicodeEncodeError:  # bytes of the command line that no file of a run can hold
        raise _unknown(run, clip_id) from None
    lines = [*_chosen(run, clip_id), *_decided(run, clip_id), *_failed(run, clip_id), *_choices(run, clip_id)]
    if lines:
        return lines
    split = _listed(run, clip_id)
    if split is None:
        raise _unknown(run, clip_id)
    if split == "eval":
        return [of_eval(clip_id)]
    return [of_pool(clip_id, run.k)]


def of_seed(clip_id: str) -> str:
    """The first line of the answer for a seed; those below likewise for other clips."""
    return f"in: {clip_id} is a seed"


def of_neighbour(clip_id: str, num_seeds: str | int, best_rank: str | int, best_seed_id: str, similarity: str) -> str:
    """similarity: the shortest decimal, as augmented_k{K}.csv has it."""
    return (
        f"in: {clip_id} is a neighbour of {counted(int(num_seeds), 'seed')}; best: rank {best_rank} of {best_seed_id}, "
        f"similarity {similarity}"
    )


def of_dropped(clip_id: str, rule: Rule, because_of: str | None, value: float | None) -> str:
    """because_of, value: as decisions.parquet has them."""
    return f"out: {clip_id} {rule.sentence(because_of, value)} (rule {rule.name})"


def of_included(clip_id: str) -> str:
    return f"in: {clip_id} {Rule.included.sentence(None, None)} (rule {Rule.included.name})"


def of_pool(clip_id: str, k: int) -> str:
    return f"out: {clip_id} is in the pool, but in no seed's top {k}"


def of_eval(clip_id: str) -> str:
    return f"out: {clip_id} is listed for evaluation only"


def _unknown(run: Run, clip_id: str) -> UserError:
    return UserError(
        f"{clip_id}: no clip of this run has this id (looked in the files of {run.path}, and in its index files, "
        "where they are still there); ids are compared whole, and case counts"
    )


def _chosen(run: Run, clip_id: str) -> list[str]:
    lines: list[str] = []
    for row in _rows(run.augmented, "id", clip_id):
        if row["source"] == "seed":
            lines += [of_seed(clip_id), *_cluster(run, clip_id)]
        elif row["num_seeds"] != "0":  # else it was included by hand, as decisions.parquet says
            best = (row[name] for name in ("num_seeds", "best_rank", "best_seed_id", "best_similarity"))
            lines.append(of_neighbour(clip_id, *best) + beside(run))
    return lines


def _cluster(run: Run, seed_id: str) -> list[str]:
    mine = _rows(run.neighbours, "seed_id", seed_id)
    shown = [f"{row['neighbour_id']} ({row['similarity']:.4f})" for row in mine]
    return [f"  its neighbours: {listed(shown)}{beside(run)}"]


def beside(run: Run) -> str:
    """What random pairs have, said after a similarity; nothing for a run that did not measure it."""
    found = run.summary.get("similarity_random")
    if not isinstance(found, dict):
        return ""
    return f" (random pairs: {RandomSimilarity(**found)})"


def _decided(run: Run, clip_id: str) -> list[str]:
    return [
        of_included(clip_id)
        if row["rule"] == Rule.included.name
        else of_dropped(clip_id, Rule[row["rule"]], row["by"], row["value"])
        for row in _rows(run.decisions, "id", clip_id)
    ]


def _failed(run: Run, clip_id: str) -> list[str]:
    return [
        f"without embedding: {clip_id} of the {failure['split']} ({failure['reason']}: {failure['detail']}), "
        f"{failure['path']}"
        for failure in run.failures()
        if failure["id"] == clip_id
    ]


def _choices(run: Run, clip_id: str) -> list[str]:
    choices = _rows(run.neighbours, "neighbour_id", clip_id)
    if not choices:
        return []
    best_first = sorted(choices, key=lambda row: (-row["similarity"], row["rank"]))
    lines = [f"chosen by {counted(len(choices), 'seed')} in the search's result:"]
    lines += [
        f"  rank {row['rank']:>4} of {row['seed_id']}, similarity {row['similarity']:.6f}"
        for row in best_first[:NUM_SHOWN]
    ]
    if len(choices) > NUM_SHOWN:
        lines.append(f"  … and {len(choices) - NUM_SHOWN:,} more")
    return lines


def _rows(table: Any, column: str, value: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.filter(pc.equal(table[column], value)).to_pylist()
    return found


def _listed(run: Run, clip_id: str) -> str | None:
    """The split whose index lists the clip, of the indexes that are still where the run read them."""
    source = run.facts.source
    for split, value in (("pool", source.unbalanced), ("eval", source.eval)):
        if value:
            with contextlib.suppress(UserError, OSError):
                index = source.read_split(value)
                if pc.any(pc.equal(index.ids, clip_id)).as_py():
                    return split
    return None

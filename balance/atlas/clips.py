"""The clips of the map as columns: which are shown, in which role, and what the run says of each.

In: a finished run and its splits, found again. Out: `Shown`. All seeds are shown, all neighbours and dropped clips,
then a seeded sample of the rest of the pool and of the evaluation clips, together at most `max_clips`; where even the
first do not fit, a seeded sample of the neighbours and dropped clips (and last of the seeds) is shown, and counted. A
clip without an embedding has no place on a map. A clip is shown once: a pool clip with a seed's id is that seed, an
evaluation clip that was dropped from the pool is the dropped one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.curation.removed import Rule
from balance.records import Float32, Int32, Int64, Split, Strings
from balance.results import explain
from balance.results.read_run import Run
from balance.results.run_splits import rows_of
from balance.results.tables import shortest

ROLES = ("seed", "neighbour", "dropped", "pool", "eval")
SEED, NEIGHBOUR, DROPPED, POOL, EVAL = range(5)
_FIRST_SHOWN = ((SEED,), (NEIGHBOUR, DROPPED), (POOL, EVAL))
_SPLITS = ("seeds", "pool", "eval")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shown:
    """n clips: seeds, pool, evaluation clips, each in the order of its index.

    split: (n,) place in `splits`; row: (n,) int64 of its index; role: (n,) place in ROLES; vectors: (n, dim) float32;
    rate_hz: (n,) int32, 0 where it is not known; rule: Arrow strings, null where none dropped the clip; num_seeds: (n,)
    seeds that have it in their top K; best_seed_id, best_similarity, null or NaN where there is none; why: the sentence
    of `balance.why`; there: role -> clips that could be shown.
    """

    splits: tuple[Split, ...]
    split: Int64
    row: Int64
    role: Int64
    vectors: Float32
    rate_hz: Int32
    ids: Strings
    labels: tuple[tuple[str, ...], ...]
    audio: Strings
    rule: Strings
    num_seeds: Int64
    best_seed_id: Strings
    best_similarity: Float32
    why: tuple[str, ...]
    there: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.row)


def choose(role: Int64, max_clips: int, rng_seed: int) -> Int64:
    """The places, ascending, of the clips that are shown: (min(n, max_clips),) int64."""
    rng = np.random.default_rng(rng_seed)
    left, taken = max_clips, []
    for roles in _FIRST_SHOWN:
        at = np.flatnonzero(np.isin(role, roles))
        taken.append(at if len(at) <= left else rng.choice(at, left, replace=False))
        left -= len(taken[-1])
    return np.sort(np.concatenate(taken))


def shown(run: Run, splits: Mapping[str, Split], max_clips: int) -> Shown:
    """The clips of the map. UserError where an index is no longer the run's."""
    there = [splits[name] for name in _SPLITS if name in splits]
    roles = [_roles(run, name, splits) for name in _SPLITS if name in splits]
    split = np.repeat(np.arange(len(there)), [len(one.embedded) for one in there])
    role = np.concatenate(roles)
    counted = {name: int((role == number).sum()) for number, name in enumerate(ROLES)}
    can_be = np.flatnonzero(role >= 0)
    at = can_be[choose(role[can_be], max_clips, run.facts.rng_seed)]
    split, role = split[at], role[at]
    first = np.cumsum([0] + [len(one.embedded) for one in there])
    places = [at[split == number] - first[number] for number in range(len(there))]  # among the embedded clips
    indexes = [one.index.take(one.embedded[place]) for one, place in zip(there, places, strict=True)]
    ids = pa.concat_arrays([index.ids.cast(pa.string()) for index in indexes])
    choices = _choices(run, ids)
    rule, removed = _removed(run, ids)
    return Shown(
        splits=tuple(there),
        split=split,
        row=np.concatenate([one.embedded[place] for one, place in zip(there, places, strict=True)]),
        role=role,
        vectors=np.concatenate([one.vectors.take(place) for one, place in zip(there, places, strict=True)]),
        rate_hz=np.concatenate([_rates(one, place) for one, place in zip(there, places, strict=True)]),
        ids=ids,
        labels=tuple(index.labels[row] for index in indexes for row in range(len(index))),
        audio=pa.concat_arrays([index.paths.cast(pa.string()) for index in indexes]),
        rule=rule,
        num_seeds=choices.num_seeds,
        best_seed_id=choices.seed_id,
        best_similarity=choices.similarity,
        why=tuple(_why(run, ids, role, choices, rule, removed)),
        there=counted,
    )


def _roles(run: Run, name: str, splits: Mapping[str, Split]) -> Int64:
    """Of each embedded clip of a split its role; −1 where it is not shown."""
    augmented, split = run.augmented, splits[name]
    of_source = {
        source: augmented.filter(pc.equal(augmented["source"], source))["id"].combine_chunks()
        for source in ("seed", "neighbour")
    }
    dropped = run.dropped["id"].combine_chunks()
    if name == "eval":
        ids = split.index.ids.take(pa.array(split.embedded))
        known = pa.concat_arrays([of_source["seed"], dropped])
        return np.where(_is_in(ids, known), -1, EVAL)
    role = np.full(len(split.index), -1, dtype=np.int64)
    if name == "seeds":
        role[rows_of(of_source["seed"], split.index, "seeds")] = SEED
    else:
        role[~_is_in(split.index.ids, splits["seeds"].index.ids)] = POOL
        role[rows_of(of_source["neighbour"], split.index, "neighbours")] = NEIGHBOUR
        role[rows_of(dropped, split.index, "dropped clips")] = DROPPED
    return role[split.embedded]


def _is_in(ids: Strings, known: Strings) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(pc.is_in(ids, value_set=known.cast(ids.type)).to_numpy(zero_copy_only=False), dtype=bool)


def _rates(split: Split, place: Int64) -> Int32:
    return np.zeros(len(place), np.int32) if split.facts is None else split.facts.sample_rate[place].astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class _Choices:
    """Of n clips the seeds that have them in their top K, and the best pair: highest similarity, then lower rank, then
    seed order."""

    num_seeds: Int64
    seed_id: Strings
    rank: Int64
    similarity: Float32


def _choices(run: Run, ids: Strings) -> _Choices:
    table = run.neighbours
    place = pc.index_in(table["neighbour_id"].combine_chunks(), value_set=ids)
    pairs = np.flatnonzero(np.asarray(place.is_valid()))
    at = np.asarray(place.drop_null().to_numpy(), dtype=np.int64)
    rank, similarity = table["rank"].to_numpy(), table["similarity"].to_numpy()
    order = np.lexsort((rank[pairs], -similarity[pairs], at))  # stable: the table is in seed order
    chosen, first = np.unique(at[order], return_index=True)
    best = np.full(len(ids), -1, dtype=np.int64)
    best[chosen] = pairs[order[first]]
    mask = best >= 0
    return _Choices(
        num_seeds=np.bincount(at, minlength=len(ids)).astype(np.int64),
        seed_id=table["seed_id"].combine_chunks().take(pa.array(np.maximum(best, 0), mask=~mask)),
        rank=np.where(mask, rank[best], 0).astype(np.int64),
        similarity=np.where(mask, similarity[best], np.nan).astype(np.float32),
    )


def _removed(run: Run, ids: Strings) -> tuple[Strings, list[tuple[str | None, float | None]]]:
    """Rule, and (because of whom, value), of each clip; null where it was not dropped."""
    table = run.dropped
    at = pc.index_in(ids, value_set=table["id"].combine_chunks())
    because_of, value = (table[name].combine_chunks().take(at).to_pylist() for name in ("by", "value"))
    return table["rule"].combine_chunks().take(at), list(zip(because_of, value, strict=True))


def _why(
    run: Run,
    ids: Strings,
    role: Int64,
    choices: _Choices,
    rule: Strings,
    removed: list[tuple[str | None, float | None]],
) -> list[str]:
    """The sentence of each clip."""
    similarity, beside = shortest(choices.similarity), explain.beside(run)
    columns = (ids.to_pylist(), role.tolist(), rule.to_pylist(), choices.seed_id.to_pylist())
    said = []
    for i, (clip_id, its_role, its_rule, seed_id) in enumerate(zip(*columns, strict=True)):
        if its_role == SEED:
            said.append(explain.of_seed(clip_id))
        elif its_role == NEIGHBOUR and not choices.num_seeds[i]:
            said.append(explain.of_included(clip_id))
        elif its_role == NEIGHBOUR:
            best = (choices.num_seeds[i], choices.rank[i], seed_id, similarity[i])
            said.append(explain.of_neighbour(clip_id, *best) + beside)
        elif its_role == DROPPED:
            said.append(explain.of_dropped(clip_id, Rule[its_rule], *removed[i]))
        else:
            said.append(explain.of_pool(clip_id, run.k) if its_role == POOL else explain.of_eval(clip_id))
    return said

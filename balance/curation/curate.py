"""The curated set: what of the search's result stays after per-seed K, copies, label balance and budget, in turn.

In: splits, the eligible pool rows, the neighbours at K. Out: `Curated`: the clips that stay; of each clip that goes the
rule, the clip it copies and a value; baselines of the same size. Each step sees the clips that those before it left.
Every random choice has a stream of its own, so that switching one step on does not change another's draws. What a
reader may question: a clip's rank is here the lowest that any seed gives it, not the rank in its most similar pair,
since the budget takes clips rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from balance.curation import per_seed
from balance.curation.balance import metaclip_chances, within_budget
from balance.curation.baselines import BaselineFigures, Baselines, draw_baselines
from balance.curation.config import AugmentConfig, Balance, Copies
from balance.curation.dedup import Dropped, FindCopies, drop_copies, largest_group, need_sound
from balance.curation.label_cap import Capped, cap
from balance.curation.removed import Removals, Rule, one_chunk
from balance.errors import UserError
from balance.records import Bool, Float64, Int32, Int64, Labels, Neighbours, Split, Strings, common_names
from balance.stats.union import Union, union_of

_METACLIP, _BUDGET, _RANDOM, _STRATIFIED = range(4)  # streams of random numbers under one rng_seed
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PerSeedFigures:
    """seeds_by_k: K, in digits and ascending -> seeds that take so many; num_beyond: neighbours that no seed takes."""

    seeds_by_k: Mapping[str, int]
    num_beyond: int


@dataclass(frozen=True, slots=True)
class CopyFigures:
    """num_dropped: neighbours; largest_group: clips, the one that stays included."""

    num_dropped: int
    largest_group: int


@dataclass(frozen=True, slots=True)
class CapFigures:
    """clips: neighbours that stay; bound: of the linear programme; labels_left_empty: labels with candidates."""

    clips: int
    bound: int
    labels_left_empty: int


@dataclass(frozen=True, slots=True)
class BudgetFigures:
    """clips: of the augmented set, seeds included; rank: the last that was reached."""

    clips: int
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationFigures:
    """`curation` of summary.json, which names the steps that were on. excluded: pool clips, out before the search;
    included: by hand."""

    excluded: int | None = None
    included: int | None = None
    per_seed_k: PerSeedFigures | None = None
    copies: CopyFigures | None = None
    cap: CapFigures | None = None
    budget: BudgetFigures | None = None
    controls: BaselineFigures | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curated:
    """What stays and why.

    union: the neighbours of the augmented set (their columns are of the search's result, of each seed the neighbours
    that it takes), and what was included by hand; included: these, as recorded; removals: the clips of the search's
    result that a step took out, in the steps' order; num_found: the distinct neighbours of the search; notes, warnings:
    lines to print; per_label: where the `{label: [ids]}` file is due.
    """

    union: Union
    included: Removals
    removals: Removals
    num_found: int
    baselines: Baselines
    figures: CurationFigures
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    per_label: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The neighbours that seeds take, which steps choose from; lowest: (U,) int32, the lowest rank that any of these
    seeds gives each clip of the union, 0 of what was included by hand; is_included: (U,) these, which always stay."""

    seeds: Split
    pool: Split
    union: Union
    lowest: Int32
    is_included: Bool

    def labels(self, at: Int64) -> tuple[Int64, Labels]:
        """How many seeds and included clips have each label, (L,) int64, and the label sets of these places of the
        union, over all labels of seeds and pool."""
        seeds, pool = self.seeds.index.labels, self.pool.index.labels
        names = common_names(seeds, pool)
        seed_counts = seeds.recode(names).take(self.seeds.embedded).counts()
        of_pool = pool.recode(names)
        fixed_counts = seed_counts + of_pool.take(self.union.pool_rows[self.is_included]).counts()
        return fixed_counts, of_pool.take(self.union.pool_rows[at])

    def free(self, at: Int64) -> Int64:
        """Of these places those that a step may take out."""
        return at[~self.is_included[at]]

    def remove(self, at: Int64, rule: Rule, because_of: Strings = None, value: Float64 | None = None) -> Removals:
        return Removals.of(self.union.pool_rows[at], rule, because_of, value)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Done:
    """What a step did. out: places of the union that go; removals: the same clips, as recorded."""

    out: Int64
    removals: Removals
    note: str
    figures: PerSeedFigures | CopyFigures | CapFigures | BudgetFigures | None = None
    warnings: tuple[str, ...] = ()


_Step: TypeAlias = Callable[[_Found, Int64], _Done]  # of the places of the union that are still in, ascending


def curate(
    config: AugmentConfig,
    *,
    rng_seed: int,
    seeds: Split,
    pool: Split,
    eligible: Int64,
    neighbours: Neighbours,
    acoustic: FindCopies | None = None,
    included: Int64 | None = None,
) -> Curated:
    """The curation steps after the top K. neighbours: at K; eligible: (e,) pool rows that may be neighbours, ascending;
    included: (i,) those of them that enter whatever the steps say.

    Raises UserError: a probe.json that gives no K per seed, copies by sound without sound, a group of copies that is
    too large, a budget below the seeds, an unknown label in cap_exempt, metaclip where no neighbour
    has a label.
    """
    ks: Int64 | None = None
    included = np.empty(0, dtype=np.int64) if included is None else included
    done: list[_Done] = []
    if config.per_seed_k is not None:
        ks, warnings = per_seed.choose(config.per_seed_k, neighbours.k, seeds.index.labels.take(seeds.embedded))
        done.append(_beyond_k(ks, neighbours, included, warnings))
    union = union_of(neighbours, ks).with_rows(included)
    is_included = np.isin(union.pool_rows, included)
    lowest = np.where(is_included, np.int32(0), lowest_ranks(neighbours, union, ks))
    found = _Found(seeds, pool, union, lowest, is_included)
    stays = np.ones(len(union), dtype=np.bool_)
    for step in _steps(config, rng_seed, acoustic):
        done.append(step(found, np.flatnonzero(stays)))
        stays[done[-1].out] = False
    kept = union.take(np.flatnonzero(stays))
    baselines = _baselines(config.controls, rng_seed, pool.index.labels, eligible, kept.pool_rows)
    return Curated(
        union=kept,
        included=Removals.of(included, Rule.included),
        removals=Removals.join(*(one.removals for one in done)),
        num_found=int(np.count_nonzero(np.bincount(neighbours.pool_rows.reshape(-1)))),
        baselines=baselines,
        figures=CurationFigures(
            included=len(included) or None,
            per_seed_k=_of_kind(PerSeedFigures, (one.figures for one in done)),
            copies=_of_kind(CopyFigures, (one.figures for one in done)),
            cap=_of_kind(CapFigures, (one.figures for one in done)),
            budget=_of_kind(BudgetFigures, (one.figures for one in done)),
            controls=baselines.figures,
        ),
        notes=(*_included_notes(len(included), kept), *_notes(done, baselines)),
        warnings=tuple(warning for one in done for warning in one.warnings),
        per_label=config.per_label,
    )


def lowest_ranks(neighbours: Neighbours, union: Union, ks: Int64 | None = None) -> Int32:
    """The lowest rank (from 1) that any seed gives each clip of the union, (U,) int32. ks: as of `union_of`."""
    size = int(union.pool_rows.max(initial=-1)) + 1
    lowest = np.zeros(size, dtype=np.int32)
    for rank in range(neighbours.k, 0, -1):  # the lowest is written last
        rows = neighbours.pool_rows[:, rank - 1]
        lowest[rows if ks is None else rows[ks >= rank]] = rank
    return lowest[union.pool_rows]


def _steps(config: AugmentConfig, rng_seed: int, acoustic: FindCopies | None) -> list[_Step]:
    """The steps that are on, in their order."""
    steps: list[_Step] = []
    if config.copies is not Copies.none:
        steps.append(partial(_drop_copies, config.copies, acoustic))
    if config.balance is not Balance.none:
        assert config.per_label is not None
        if config.balance is Balance.cap:
            steps.append(partial(_cap, config.per_label, config.cap_exempt))
        else:
            steps.append(partial(_metaclip, config.per_label, np.random.default_rng([rng_seed, _METACLIP])))
    if config.budget is not None:
        steps.append(partial(_keep_budget, config.budget, np.random.default_rng([rng_seed, _BUDGET])))
    return steps


def _beyond_k(ks: Int64, neighbours: Neighbours, included: Int64, warnings: tuple[str, ...]) -> _Done:
    """Before the steps: the neighbours that no seed takes, which the union of the others does not hold."""
    union = union_of(neighbours)
    beyond = np.flatnonzero(~np.isin(union.pool_rows, union_of(neighbours, ks).with_rows(included).pool_rows))
    ranks = lowest_ranks(neighbours, union)[beyond].astype(np.float64)
    by_k = {str(k): int(num) for k, num in zip(*np.unique(ks, return_counts=True), strict=True)}
    each = ", ".join(f"{k} for {num:,} seeds" for k, num in by_k.items())
    return _Done(
        out=np.empty(0, dtype=np.int64),
        removals=Removals.of(union.pool_rows[beyond], Rule.per_seed_k, value=ranks),
        figures=PerSeedFigures(by_k, len(beyond)),
        note=f"K per seed: {each}; {len(beyond):,} of {len(union):,} neighbours lie beyond",
        warnings=warnings,
    )


def _drop_copies(kind: Copies, acoustic: FindCopies | None, found: _Found, at: Int64) -> _Done:
    given = f"augment.copies={kind.value}"
    need_sound(found.seeds, found.pool, given, "augment.copies=none")
    pool_rows = found.union.pool_rows[at]
    pairs = None
    if kind is Copies.acoustic:
        assert acoustic is not None
        pairs = acoustic.within(found.seeds, found.pool, pool_rows)
    dropped = drop_copies(found.seeds, found.pool, pool_rows, found.lowest[at], pairs)
    dropped = dropped.take(np.flatnonzero(~found.is_included[at[dropped.at]]))
    of_seeds = found.seeds.index.ids.take(pa.array(found.seeds.embedded))
    ids = pa.concat_arrays([one_chunk(of_seeds), one_chunk(found.pool.index.ids.take(pa.array(pool_rows)))])
    num_clips = _refuse_large_group(given, dropped, ids)
    removals = [
        found.remove(at[dropped.at[mask]], rule, ids.take(pa.array(dropped.because_of[mask])), dropped.value[mask])
        for rule, mask in ((Rule.copy_exact, dropped.exact), (Rule.copy_acoustic, ~dropped.exact))
    ]
    return _Done(
        out=at[dropped.at],
        removals=Removals.join(*removals),
        figures=CopyFigures(len(dropped.at), num_clips),
        note=f"copies: {len(dropped.at):,} neighbours dropped; the largest group has {num_clips:,} clips",
    )


def _refuse_large_group(given: str, dropped: Dropped, ids: Strings) -> int:
    """The clips of the largest group of copies; UserError where they are more than 100 and 1 % of what is kept."""
    num_clips, keeper = largest_group(dropped)
    limit = max(100, (len(ids) - len(dropped.at)) // 100)
    if num_clips > limit:
        raise UserError(
            f"{given}: {num_clips:,} clips are copies of {ids[keeper].as_py()} (more than {limit:,}). "
            "Look at it; if it is no mistake take it out of the index, or type augment.copies=none"
        )
    return num_clips


def _cap(per_label: int, exempt: Sequence[str], found: _Found, at: Int64) -> _Done:
    at = found.free(at)
    at = at[np.lexsort((at, found.lowest[at]))]  # of equal label sets the lowest ranks are preferred
    seed_counts, candidates = found.labels(at)
    unknown = sorted(set(exempt) - set(candidates.names))
    if unknown:
        raise UserError(
            f"augment.cap_exempt={','.join(unknown)}: no clip has such a label; give label ids of the index, such as "
            f"{candidates.names[0] if candidates.names else '/m/04rlf'}"
        )
    capped = cap(candidates, seed_counts, per_label, np.isin(np.array(candidates.names, dtype=object), list(exempt)))
    out = np.sort(at[~capped.kept])
    kept = len(at) - len(out)
    return _Done(
        out=out,
        removals=found.remove(out, Rule.cap, value=np.full(len(out), float(per_label))),
        figures=CapFigures(kept, capped.bound, capped.num_empty),
        note=_cap_note(per_label, kept, len(at), capped),
    )


def _cap_note(per_label: int, kept: int, of: int, capped: Capped) -> str:
    return (
        f"cap at {per_label:,}: {kept:,} of {of:,} neighbours stay, {capped.bound - kept:,} below the bound of the "
        f"linear programme ({capped.bound:,}); {capped.num_empty} labels with candidates left empty"
    )


def _metaclip(per_label: int, rng: np.random.Generator, found: _Found, at: Int64) -> _Done:
    at = found.free(at)
    _, candidates = found.labels(at)
    if len(at) and not len(candidates.codes):
        raise UserError("augment.balance=metaclip draws by labels, and no neighbour has any: leave augment.balance out")
    chances = metaclip_chances(candidates, per_label)
    kept = rng.random(len(at)) < chances
    return _Done(
        out=at[~kept],
        removals=found.remove(at[~kept], Rule.metaclip, value=chances[~kept]),
        note=f"metaclip at {per_label:,}: {int(kept.sum()):,} of {len(at):,} neighbours stay",
    )


def _keep_budget(budget: int, rng: np.random.Generator, found: _Found, at: Int64) -> _Done:
    num_fixed, at = len(found.seeds.embedded) + int(found.is_included.sum()), found.free(at)
    if budget < num_fixed:
        included = " and included clips" if found.is_included.any() else ""
        raise UserError(
            f"augment.budget={budget} is below the {num_fixed:,} seeds{included}, which always stay: "
            f"type augment.budget={num_fixed} or more"
        )
    chosen, rank = within_budget(found.lowest[at], budget - num_fixed, rng)
    num_clips = num_fixed + int(chosen.sum())
    short = f"augment.budget={budget}: only {num_clips:,} clips are there, all kept"
    out = at[~chosen]
    return _Done(
        out=out,
        removals=found.remove(out, Rule.budget, value=found.lowest[out].astype(np.float64)),
        figures=BudgetFigures(num_clips, rank),
        note=f"budget: {num_clips:,} clips, reached at rank {rank}",
        warnings=(short,) if num_clips < budget else (),
    )


def _baselines(num_draws: int, rng_seed: int, labels: Labels, eligible: Int64, chosen: Int64) -> Baselines:
    if not num_draws:
        return Baselines()

    def streams(number: int) -> list[np.random.Generator]:
        return [np.random.default_rng([rng_seed, number, i]) for i in range(num_draws)]

    return draw_baselines(labels, eligible, chosen, random=streams(_RANDOM), stratified=streams(_STRATIFIED))


def _included_notes(num_included: int, kept: Union) -> tuple[str, ...]:
    if not num_included:
        return ()
    return (f"included by hand: {num_included:,} clips; no seed has {int((kept.num_seeds == 0).sum()):,} of them",)


def _notes(done: Sequence[_Done], baselines: Baselines) -> tuple[str, ...]:
    notes = [one.note for one in done]
    if done:
        notes.append("train on augmented_*, src_augmented_* or ids_*: neighbours_* is the search's result, uncurated")
    figures = baselines.figures
    if figures is not None:
        notes.append(
            f"baselines: {figures.draws} random and {figures.draws} stratified draws of as many clips as were chosen; "
            f"stratified ones lack {figures.stratified_residual:,} clips, {figures.shared:.1%} of a draw are "
            "neighbours too"
        )
    return tuple(notes)


def _of_kind(kind: type[T], values: Iterable[object]) -> T | None:
    return next((value for value in values if isinstance(value, kind)), None)

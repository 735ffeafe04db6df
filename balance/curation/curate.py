"""The curated set: after the search copies, label balance and budget, in this order; and draws to compare with.

In: what the pipeline has (splits, eligible pool rows, neighbours at K). Out: `Curated`: the clips that stay, and of
each that goes the rule, the clip it copies and a value. Controls work on columns over the union of the neighbours;
random choices have a stream a control, so that switching one on does not change another's draws. What a reader may
question: "best rank" is here the lowest rank that any seed gives a clip, not the rank in its most similar pair, since
the budget takes clips rank by rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from balance.curation import dedup
from balance.curation.config import AugmentConfig, Balance, Copies
from balance.curation.decontaminate import FindCopies, Removed, need_sound
from balance.curation.label_cap import cap
from balance.errors import UserError
from balance.records import Bool, Float64, Int32, Int64, Labels, Neighbours, Split, common_names
from balance.stats.labels import Union, union_of

_METACLIP, _BUDGET, _RANDOM, _STRATIFIED = range(4)  # streams of random numbers under one seed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curated:
    """What stays and why.

    union: the neighbours of the augmented set (their columns are of the search's result); removed: the clips of the
    search's result that a control took out, in the controls' order; random, stratified: (d,) int64 pool rows,
    ascending, of each size-matched draw; figures: for summary and page, of the controls that were on; notes, warnings:
    lines to print; per_label: where the `{label: [ids]}` file is due.
    """

    union: Union
    removed: Removed
    random: tuple[Int64, ...]
    stratified: tuple[Int64, ...]
    figures: Mapping[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    per_label: int | None


def curate(
    config: AugmentConfig,
    *,
    seed: int,
    seeds: Split,
    pool: Split,
    eligible: Int64,
    neighbours: Neighbours,
    acoustic: FindCopies | None = None,
) -> Curated:
    """The controls after the top K. neighbours: at K; eligible: (e,) pool rows that may be neighbours, ascending.

    Raises UserError: copies by sound without sound, a group of copies that is too large, a budget below the seeds, an
    unknown label in cap_exempt.
    """
    union = union_of(neighbours)
    work = _Work(
        config=config,
        seed=seed,
        seeds=seeds,
        pool=pool,
        union=union,
        lowest=dedup.lowest_ranks(neighbours, union),
        stays=np.ones(len(union), dtype=np.bool_),
    )
    if config.copies is not Copies.none:
        work.drop_copies(acoustic)
    if config.balance is not Balance.none:
        work.balance()
    if config.budget is not None:
        work.keep_budget(config.budget)
    if work.removed:
        work.notes.append(
            "train on augmented_*, src_augmented_* or ids_*: neighbours_* is the search's result, uncurated"
        )
    kept = dedup.take_union(union, np.flatnonzero(work.stays))
    random, stratified = work.draws(eligible, kept.pool_rows) if config.controls else ((), ())
    return Curated(
        union=kept,
        removed=Removed.join(*work.removed),
        random=random,
        stratified=stratified,
        figures=work.figures,
        notes=tuple(work.notes),
        warnings=tuple(work.warnings),
        per_label=config.per_label,
    )


@dataclass(kw_only=True, slots=True)
class _Work:
    """A curation under way: `stays` says which clips of the union are still in; each control takes some out of it.

    lowest: (U,) int32, the lowest rank that any seed gives each clip.
    """

    config: AugmentConfig
    seed: int
    seeds: Split
    pool: Split
    union: Union
    lowest: Int32
    stays: Bool
    removed: list[Removed] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def take_out(self, at: Int64, rule: str, by: Any = None, value: Float64 | None = None) -> None:
        """Remove the clips at these places of the union, ascending."""
        self.stays[at] = False
        self.removed.append(Removed.of(self.union.pool_rows[at], rule, by, value))

    def drop_copies(self, acoustic: FindCopies | None) -> None:
        given = f"augment.copies={self.config.copies.value}"
        need_sound(self.seeds, self.pool, given, "augment.copies=none")
        pairs = None
        if self.config.copies is Copies.acoustic:
            assert acoustic is not None
            pairs = acoustic.within(self.seeds, self.pool, self.union.pool_rows)
        dropped = dedup.drop_copies(self.seeds, self.pool, self.union.pool_rows, self.lowest, pairs)
        ids = pa.concat_arrays([_ids(self.seeds, self.seeds.embedded), _ids(self.pool, self.union.pool_rows)])
        for rule, mask in (("copy_exact", dropped.exact), ("copy_acoustic", ~dropped.exact)):
            self.take_out(dropped.at[mask], rule, ids.take(pa.array(dropped.by[mask])), dropped.value[mask])
        num_clips, keeper = dedup.largest_group(dropped)
        self.figures["copies"] = {"num_dropped": len(dropped.at), "largest_group": num_clips}
        self.notes.append(f"copies: {len(dropped.at):,} neighbours dropped; the largest group has {num_clips:,} clips")
        limit = max(100, (len(self.seeds.embedded) + int(self.stays.sum())) // 100)
        if num_clips > limit:
            raise UserError(
                f"{given}: {num_clips:,} clips are copies of {ids[keeper].as_py()} (more than {limit:,}). "
                "Look at it; if it is no mistake take it out of the index, or type augment.copies=none"
            )

    def balance(self) -> None:
        names = common_names(self.seeds.index.labels, self.pool.index.labels)
        labels = self.pool.index.labels.recode(names)
        at = np.flatnonzero(self.stays)
        per_label = self.config.per_label
        assert per_label is not None
        if self.config.balance is Balance.cap:
            at = at[np.lexsort((at, self.lowest[at]))]  # of equal label sets the lowest ranks are preferred
            kept = self._cap(names, labels.take(self.union.pool_rows[at]), per_label)
            out = np.sort(at[~kept])
            self.take_out(out, "cap", value=np.full(len(out), float(per_label)))
        else:
            chances = dedup.metaclip_chances(labels.take(self.union.pool_rows[at]), per_label)
            kept = np.random.default_rng([self.seed, _METACLIP]).random(len(at)) < chances
            self.notes.append(f"metaclip at {per_label:,}: {int(kept.sum()):,} of {len(at):,} neighbours stay")
            self.take_out(at[~kept], "metaclip", value=chances[~kept])

    def _cap(self, names: tuple[str, ...], candidates: Labels, per_label: int) -> Bool:
        unknown = sorted(set(self.config.cap_exempt) - set(names))
        if unknown:
            raise UserError(
                f"augment.cap_exempt={','.join(unknown)}: no clip has such a label; give label ids of the index, such "
                f"as {names[0] if names else '/m/04rlf'}"
            )
        seed_counts = self.seeds.index.labels.recode(names).take(self.seeds.embedded).counts()
        capped = cap(candidates, seed_counts, per_label, np.isin(np.array(names, dtype=object), self.config.cap_exempt))
        kept = int(capped.kept.sum())
        self.figures["cap"] = {"clips": kept, "bound": capped.bound, "labels_left_empty": capped.num_empty}
        self.notes.append(
            f"cap at {per_label:,}: {kept:,} of {len(candidates):,} neighbours stay, {capped.bound - kept:,} below the "
            f"bound of the linear programme ({capped.bound:,}); {capped.num_empty} labels with candidates left empty"
        )
        return capped.kept

    def keep_budget(self, budget: int) -> None:
        num_seeds = len(self.seeds.embedded)
        if budget < num_seeds:
            raise UserError(
                f"augment.budget={budget} is below the {num_seeds:,} seeds, which always stay: "
                f"type augment.budget={num_seeds} or more"
            )
        at = np.flatnonzero(self.stays)
        rng = np.random.default_rng([self.seed, _BUDGET])
        chosen, rank = dedup.within_budget(self.lowest[at], budget - num_seeds, rng)
        num_clips = num_seeds + int(chosen.sum())
        self.figures["budget"] = {"clips": num_clips, "rank": rank}
        self.notes.append(f"budget: {num_clips:,} clips, reached at rank {rank}")
        if num_clips < budget:
            self.warnings.append(f"augment.budget={budget}: only {num_clips:,} clips are there, all kept")
        out = at[~chosen]
        self.take_out(out, "budget", value=self.lowest[out].astype(np.float64))

    def draws(self, eligible: Int64, chosen: Int64) -> tuple[tuple[Int64, ...], tuple[Int64, ...]]:
        """(random, stratified): draws of as many eligible clips as were chosen."""
        num_draws = self.config.controls

        def streams(number: int) -> list[np.random.Generator]:
            return [np.random.default_rng([self.seed, number, i]) for i in range(num_draws)]

        random = tuple(dedup.random_draw(eligible, len(chosen), rng) for rng in streams(_RANDOM))
        stratify = dedup.Stratified(self.pool.index.labels, eligible, chosen)
        stratified = tuple(stratify.draw(rng) for rng in streams(_STRATIFIED))
        shared = float(np.mean([np.isin(rows, chosen).mean() if len(rows) else 0.0 for rows in stratified]))
        self.figures["controls"] = {"draws": num_draws, "stratified_residual": stratify.residual, "shared": shared}
        self.notes.append(
            f"controls: {num_draws} random and {num_draws} stratified draws of {len(chosen):,} clips; stratified "
            f"residual {stratify.residual:,} clips, {shared:.1%} of a draw are neighbours too"
        )
        return random, stratified


def _ids(split: Split, rows: Int64) -> Any:
    ids = split.index.ids.take(pa.array(rows))
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

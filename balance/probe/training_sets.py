"""The training sets that the probe compares, and what each of them excludes with a held-out seed.

In: label sets, each seed's neighbours, fold numbers; out: `Arm`s, pool rows beside the seeds. Every selection rule has
size-matched draws: uniform, and (asked for) with the same label sets. A fold excludes a pool row from its training side
if only seeds of that fold chose it; of a draw it excludes as many rows as of the arm that the draw is matched to, so
that the sizes match in every fold too. Price: those rows of a draw have nothing to do with the fold's seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from balance.curation import rivals
from balance.curation.baselines import Stratified
from balance.records import Int32, Int64, Labels

Int8 = npt.NDArray[np.int8]

SEEDS, NEIGHBOURS, RANDOM, STRATIFIED = "seeds", "neighbours", "random", "stratified"
RIVALS = tuple(rivals.RULES)
POOL, POOL_WEIGHTED, RUN = "pool", "pool_weighted", "run"
PER_SEED = "per-seed K"


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One training set: all seeds and these pool rows.

    rule: SEEDS … RUN; name: of a run, or of the arm that a draw is matched to, else the rule; k: neighbours per seed
    (of the matched arm too); rows: (m,) int64 ascending; excluded_fold: (m,) int8 fold whose training side lacks the
    row, −1: none; draw: number of a draw; weighted: rows and seeds weigh by the rarity of their labels.
    """

    rule: str
    name: str
    k: int | None
    rows: Int64
    excluded_fold: Int8
    draw: int | None = None
    weighted: bool = False

    @property
    def title(self) -> str:
        """For tables and progress: `neighbours k=10`, `random k=10 draw 2`."""
        words = [self.name if self.rule == RUN else self.rule.replace("_", " " if self.rule in RIVALS else ", ")]
        if self.rule in (RANDOM, STRATIFIED, *RIVALS) and self.name != NEIGHBOURS:
            words.append(f"as {self.name}")
        if self.k is not None:
            words.append(f"k={self.k}")
        if self.draw is not None:
            words.append(f"draw {self.draw + 1}")
        return " ".join(words)


def fold_seeds(labels: Labels, groups: Int64, num_folds: int, rng: np.random.Generator) -> Int64:
    """The fold of each seed, (S,) int64: clips of one group together, rare labels spread over the folds.

    Groups are dealt out in turn, ordered by their rarest label (then at random), so that a label of m ≥ num_folds
    groups is in every fold wherever it is the rarest of its clips.
    """
    counts = labels.counts()
    sizes = labels.sizes()
    rarest = np.full(len(labels), len(counts), dtype=np.int64)  # clips without labels: last
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(counts), dtype=np.int64)
    rank[order] = np.arange(len(counts))
    if len(labels.codes):
        filled = np.flatnonzero(sizes)
        rarest[filled] = np.minimum.reduceat(rank[labels.codes], labels.offsets[filled])
    num_groups = int(groups.max()) + 1
    group_rarest = np.full(num_groups, len(counts), dtype=np.int64)
    np.minimum.at(group_rarest, groups, rarest)
    dealt = np.lexsort((rng.permutation(num_groups), group_rarest))
    fold = np.empty(num_groups, dtype=np.int64)
    fold[dealt] = np.arange(num_groups) % num_folds
    return fold[groups]


def excluded_folds(chosen: Int32 | Int64, folds: Int64, rows: Int64) -> Int8:
    """The fold that excludes each of `rows`: the one that holds all seeds which chose it; −1 where there is none.

    chosen: (S, K) pool rows of each seed's neighbours (−1: none); folds: (S,) → (len(rows),) int8.
    """
    fold_of = np.repeat(folds, chosen.shape[1])
    flat = chosen.ravel()
    fold_of, flat = fold_of[flat >= 0], flat[flat >= 0]
    size = int(max(rows.max(initial=-1), flat.max(initial=-1))) + 1
    first, last = np.full(size, 127, dtype=np.int8), np.full(size, -1, dtype=np.int8)
    np.minimum.at(first, flat, fold_of.astype(np.int8))
    np.maximum.at(last, flat, fold_of.astype(np.int8))
    return np.where(first[rows] == last[rows], last[rows], -1).astype(np.int8)


def neighbours(chosen: Int32 | Int64, folds: Int64, k: int) -> Arm:
    """Seeds + the union of the first k neighbours of every seed; chosen: (S, K ≥ k) pool rows, best first, −1: none."""
    top = chosen[:, :k]
    rows = np.unique(top[top >= 0]).astype(np.int64)
    return Arm(NEIGHBOURS, NEIGHBOURS, k, rows, excluded_folds(top, folds, rows))


def per_seed(chosen: Int32 | Int64, folds: Int64, ks: Int64) -> Arm:
    """Seeds + the union of the first ks[i] neighbours of seed i, ks: (S,); chosen: as of `neighbours`."""
    taken = np.where(np.arange(chosen.shape[1]) < ks[:, None], chosen, -1)
    return dataclasses.replace(neighbours(taken, folds, chosen.shape[1]), rule=PER_SEED, name=PER_SEED, k=None)


def _draw(rule: str, like: Arm, rows: Int64, number: int, rng: np.random.Generator) -> Arm:
    """A draw of these rows, of which every fold excludes as many as of `like`'s."""
    excluded = rng.permutation(like.excluded_fold)
    order = np.argsort(rows, kind="stable")
    return Arm(rule, like.name, like.k, rows[order], excluded[order], number)


def random_draws(like: Arm, num_pool: int, num_draws: int, seed: int) -> Iterator[Arm]:
    """As many pool rows as `like` has, uniformly without replacement, `num_draws` times.

    Draw d takes the head of one permutation whatever the size: the draws of different k are nested, so that their
    differences are not noise of the drawing.
    """
    for draw in range(num_draws):
        permutation = np.random.default_rng([seed, 1, draw]).permutation(num_pool)
        rng = np.random.default_rng([seed, 2, draw, len(like.rows)])
        yield _draw(RANDOM, like, permutation[: len(like.rows)].astype(np.int64), draw, rng)


def stratified_draws(like: Arm, pool_labels: Labels, num_draws: int, seed: int) -> Iterator[Arm]:
    """As many pool rows as `like` has of every label set: what is left of its gain is not the choice of labels.

    Clips of `like` may be drawn again (where it holds all clips of a label set they must be).
    """
    num_pool = len(pool_labels)
    matched = Stratified(pool_labels, np.arange(num_pool), like.rows)
    for draw in range(num_draws):
        rng = np.random.default_rng([seed, 3, draw, len(like.rows)])
        yield _draw(STRATIFIED, like, matched.draw(rng.permutation(num_pool)), draw, rng)


def rival(rule: str, like: Arm, pool: rivals.Pool, seed: int) -> Arm:
    """As many pool rows as `like` has, by a rule that does not look at the seeds (`curation.rivals.RULES`)."""
    rng = np.random.default_rng([seed, 4, RIVALS.index(rule), len(like.rows)])
    chosen = rivals.RULES[rule](pool, len(like.rows), rng)
    arm = _draw(rule, like, chosen, 0, rng)
    return dataclasses.replace(arm, draw=None)


def whole_pool(num_pool: int, *, weighted: bool) -> Arm:
    """Seeds + every pool clip; weighted: the mean over the clips is weighted by VIP-ANT's sampling weights."""
    rule = POOL_WEIGHTED if weighted else POOL
    rows = np.arange(num_pool, dtype=np.int64)
    return Arm(rule, rule, None, rows, np.full(num_pool, -1, dtype=np.int8), weighted=weighted)


def seeds_alone() -> Arm:
    return Arm(SEEDS, SEEDS, None, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8))

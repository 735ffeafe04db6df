"""The label cap: which neighbours to take so that no label exceeds n, as many clips as possible, evenly spread.

In: the candidates' label sets, what the seeds have. Out: a mask. Clips with the same label set are interchangeable, so
the unknowns are counts per distinct set (6,300 for 20,371 AudioSet clips) under at most one constraint per label: a
linear programme that HiGHS solves in a second, nearly integral in practice, where the usual greedy (rarest label first)
leaves clips and labels behind. Three goals in order (no label left empty, then clips, then entropy) are three solves:
the bound on clips; the most clips; the best entropy at that many clips (each label's −c ln c as a concave piecewise
linear function). A branch-and-bound of few nodes over the columns the relaxations use makes counts whole. Everything
stops by counts of nodes and rounds, never by the clock, so that the result is deterministic; the price is a
time that depends on the labels (2 M candidates: see benchmarks/results).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from balance.records import Bool, Float64, Int64, Labels

COVER_REWARD = 1000.0  # clips that a label's first clip is worth: more than it can displace
MAX_ROUNDS = 30  # of column generation
MAX_COLUMNS = 10_000  # new columns a round, and columns that the whole-number solve may take as they are
MAX_NODES = 20
NUM_PIECES = 20  # of −c ln c beyond the first 11 counts
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Capped:
    """What the cap keeps.

    kept: (n,) bool beside the candidates; bound: the linear programme's upper bound on the number of clips under the
    caps alone (no choice of candidates can keep more); num_empty: labels with candidates and no seed that stay empty.
    """

    kept: Bool
    bound: int
    num_empty: int


@dataclass(frozen=True, slots=True, eq=False)
class LabelSets:
    """Distinct label sets: sets[g] is one (CSR (G, L) of ones), size[g] clips have it, of[i] is candidate i's set."""

    sets: Any
    size: Int64
    of: Int64


@dataclass(frozen=True, slots=True, eq=False)
class _Goal:
    """Maximise clip · Σx + Σ over pieces of reward · d, with Σx ≥ at_least; the pieces of a label sum to its count.

    label, width, reward, floor: (P,) one row per piece; a label's rewards fall, so pieces fill in their order, and its
    widths add up to what it may still take: the caps need no rows of their own.
    """

    clip: float
    at_least: float
    label: Int64
    width: Float64
    reward: Float64
    floor: Float64


def cap(candidates: Labels, seed_counts: Int64, per_label: int, exempt: Bool) -> Capped:
    """Choose candidates so that no label goes above max(per_label, what the seeds have).

    candidates: in order of preference (of equal label sets the first are taken); seed_counts: (L,) int64 over the same
    vocabulary; exempt: (L,) bool, labels that do not count. Clips without a label that counts are all kept.
    """
    room = np.where(exempt, np.iinfo(np.int64).max, np.maximum(per_label - seed_counts, 0))
    limited = _smallest(candidates, room) < np.iinfo(np.int64).max
    possible = np.flatnonzero(limited & (_smallest(candidates, room) > 0))
    kept = ~limited
    if not len(possible):
        return Capped(kept, int(kept.sum()), _num_empty(candidates, kept, seed_counts))
    counted = candidates.take(possible)
    base = seed_counts + candidates.take(np.flatnonzero(kept)).counts()
    groups = label_sets(counted)
    room = np.minimum(room, counted.counts())
    whole, bound = _solve(groups, room, base)
    order = np.argsort(groups.of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(groups.size)])[:-1]
    place = np.arange(len(order)) - starts[groups.of[order]]  # nth of its set
    kept[possible[order[place < whole[groups.of[order]]]]] = True
    return Capped(kept, bound + int((~limited).sum()), _num_empty(candidates, kept, seed_counts))


def _num_empty(candidates: Labels, kept: Bool, seed_counts: Int64) -> int:
    after = seed_counts + candidates.take(np.flatnonzero(kept)).counts()
    return int(((after == 0) & (candidates.counts() > 0)).sum())


def _smallest(labels: Labels, room: Int64) -> Int64:
    """The least room among each clip's labels (int64's largest without labels), (n,)."""
    out = np.full(len(labels), np.iinfo(np.int64).max)
    some = np.flatnonzero(labels.sizes())
    if len(some):
        out[some] = np.minimum.reduceat(room[labels.codes], labels.offsets[some])
    return out


def label_sets(labels: Labels) -> LabelSets:
    """The distinct label sets of n clips, in order of (number of labels, codes)."""
    sizes = labels.sizes()
    row = np.repeat(np.arange(len(labels)), sizes)
    codes = labels.codes[np.lexsort((labels.codes, row))].astype(np.int64)
    width = int(sizes.max(initial=1))
    table = np.full((len(labels), width), -1, dtype=np.int32)
    table[row, np.arange(len(codes)) - np.repeat(labels.offsets[:-1], sizes)] = codes
    order = np.lexsort((*table.T[::-1], sizes))
    new = np.concatenate([[True], (np.diff(table[order], axis=0) != 0).any(axis=1)])
    of = np.empty(len(labels), dtype=np.int64)
    of[order] = np.cumsum(new) - 1
    sets = labels.take(order[new]).matrix().astype(np.float64)
    sets.sort_indices()
    return LabelSets(sets, np.bincount(of).astype(np.int64), of)


def _solve(groups: LabelSets, room: Int64, base: Int64) -> tuple[Int64, int]:
    """How many clips of each set, (G,) int64, and the bound on their sum."""
    columns = _first_columns(groups, room)
    plain = _goal(room, np.zeros(len(room), dtype=np.bool_))
    x, columns, bound = _relax(groups, plain, columns)
    empty = (base == 0) & (room > 0)
    if empty.any():
        x, columns, _ = _relax(groups, _goal(room, empty), columns)
    counts = groups.sets.T @ x
    needed = empty & (counts >= 1.0 - TOLERANCE)
    at_least = float(np.floor(x.sum() + TOLERANCE))
    for _ in range(2):  # the entropy depends on the total number of labels, which the first round finds
        x, columns, _ = _relax(groups, _entropy_goal(room, base, counts, needed, at_least), columns)
        counts = groups.sets.T @ x
    most = _whole(groups, _with_floor(_goal(room, empty), needed), columns, x)
    if most is None:  # the needed labels cannot all be had with whole clips
        most = _whole(groups, _goal(room, empty), columns, x)
    most = _fill(groups, room, np.floor(x + TOLERANCE).astype(np.int64) if most is None else most)
    covered = (groups.sets.T @ most > 0) & empty
    best = _whole(groups, _entropy_goal(room, base, counts, covered, float(most.sum())), columns, x)
    return (most if best is None else _fill(groups, room, best)), bound


def _first_columns(groups: LabelSets, room: Int64) -> Int64:
    """Sets to begin with: for each label its smallest sets, until they hold as many clips as it has room for."""
    if len(groups.size) <= MAX_COLUMNS:
        return np.arange(len(groups.size))
    by_label = groups.sets.tocsc()
    first = []
    for label in np.flatnonzero(room > 0):
        mine = by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]  # ascending: smallest sets first
        before = np.cumsum(groups.size[mine]) - groups.size[mine]
        first.append(mine[(before < room[label]) & (np.arange(len(mine)) < MAX_COLUMNS // 100)])
    return np.unique(np.concatenate(first)).astype(np.int64)


def _goal(room: Int64, cover: Bool) -> _Goal:
    """As many clips as possible; a label of `cover` is rewarded for its first clip."""
    label = np.flatnonzero(room > 0)
    first = np.flatnonzero(cover & (room > 0))
    width = room[label] - np.isin(label, first)
    return _Goal(
        clip=1.0,
        at_least=0.0,
        label=np.concatenate([first, label]),
        width=np.concatenate([np.ones(len(first)), width]).astype(np.float64),
        reward=np.concatenate([np.full(len(first), COVER_REWARD), np.zeros(len(label))]),
        floor=np.zeros(len(first) + len(label)),
    )


def _with_floor(goal: _Goal, needed: Bool) -> _Goal:
    """The same goal where the first clip of a needed label is a bound instead of a reward."""
    must = (goal.reward > 0) & needed[goal.label]
    return _Goal(goal.clip, 0.0, goal.label, goal.width, np.where(must, 0.0, goal.reward), must.astype(np.float64))


def _entropy_goal(room: Int64, base: Int64, counts: Float64, needed: Bool, at_least: float) -> _Goal:
    """The entropy of base + counts, to first order in its total, at `at_least` clips or more.

    With T = Σc and S = −Σ c ln c, H = ln T + S / T: maximise S / T0 + (1/T0 − S0/T0²) · T, here times T0.
    """
    now = base + counts
    total = now.sum()
    log = np.log(np.maximum(now, 1.0))
    slope_of_total = 1.0 + (now * log).sum() / total
    label, width, reward, floor = [], [], [], []
    for code in np.flatnonzero(room > 0):
        steps = np.geomspace(12, max(room[code], 12), NUM_PIECES).round()
        ends = np.unique(np.minimum(np.concatenate([np.arange(12), steps]), room[code]))
        at = base[code] + ends
        wide = np.diff(ends)
        label.append(np.full(len(wide), code))
        width.append(wide)
        reward.append(slope_of_total - np.diff(at * np.log(np.maximum(at, 1.0))) / wide)
        floor.append((np.arange(len(wide)) == 0) & needed[code])
    joined = [np.concatenate(part) for part in (label, width, reward, floor)]
    return _Goal(0.0, at_least, joined[0], joined[1], joined[2], joined[3].astype(np.float64))


def _program(groups: LabelSets, goal: _Goal, columns: Int64) -> tuple[Float64, Any, Float64, Float64]:
    """Costs, equality rows (one per label), lower and upper bounds of [x of the columns, d of the pieces]."""
    pieces = len(goal.label)
    gather = scipy.sparse.csr_matrix(
        (-np.ones(pieces), (goal.label, np.arange(pieces))), shape=(groups.sets.shape[1], pieces)
    )
    rows = scipy.sparse.hstack([groups.sets[columns].T, gather]).tocsr()
    costs = -np.concatenate([np.full(len(columns), goal.clip), goal.reward])
    low = np.concatenate([np.zeros(len(columns)), goal.floor])
    high = np.concatenate([groups.size[columns], goal.width]).astype(np.float64)
    return costs, rows, low, high


def _relax(groups: LabelSets, goal: _Goal, columns: Int64) -> tuple[Float64, Int64, int]:
    """Solve the relaxation over all sets, by columns: (x (G,), the columns used, bound on the clips for a plain goal).

    A set outside the columns joins when the labels' prices say that it would help. The bound is Lagrange's and holds
    in every round: the value plus, for each set left out, its clips times what one of them could still add.
    """
    for _ in range(MAX_ROUNDS):
        costs, rows, low, high = _program(groups, goal, columns)
        atleast = np.concatenate([-np.ones(len(columns)), np.zeros(len(goal.label))])[None]
        found = linprog(
            costs,
            A_ub=scipy.sparse.csr_matrix(atleast),
            b_ub=[-goal.at_least],
            A_eq=rows,
            b_eq=np.zeros(rows.shape[0]),
            bounds=np.column_stack([low, high]),
            method="highs",
        )
        assert found.status == 0, f"HiGHS: {found.message}"
        gain = goal.clip + groups.sets @ found.eqlin.marginals - float(found.ineqlin.marginals[0])
        gain[columns] = 0.0
        helpful = np.flatnonzero(gain > TOLERANCE)
        bound = int(np.floor(-found.fun + (gain[helpful] * groups.size[helpful]).sum() + 1e-6))
        x = np.zeros(len(groups.size))
        x[columns] = found.x[: len(columns)]
        if not len(helpful):
            break
        columns = np.union1d(columns, helpful[np.argsort(-gain[helpful], kind="stable")[:MAX_COLUMNS]])
    return x, columns, bound


def _whole(groups: LabelSets, goal: _Goal, columns: Int64, near: Float64) -> Int64 | None:
    """Whole counts for a goal, (G,) int64; None where the few nodes found none.

    Of more than MAX_COLUMNS columns only those with a fraction in the relaxation `near`, and the smallest sets, are
    free; the others stay as they are there.
    """
    costs, rows, low, high = _program(groups, goal, columns)
    if len(columns) > MAX_COLUMNS:
        still = np.abs(near[columns] - np.round(near[columns])) <= TOLERANCE
        still[: MAX_COLUMNS // 10] = False
        fixed = np.flatnonzero(still)
        low[fixed] = high[fixed] = np.round(near[columns[fixed]])
    count = np.concatenate([np.ones(len(columns)), np.zeros(len(goal.label))])[None]
    found = milp(
        costs,
        constraints=[LinearConstraint(rows, 0, 0), LinearConstraint(scipy.sparse.csr_matrix(count), goal.at_least)],
        bounds=Bounds(low, high),
        integrality=count[0],
        options={"node_limit": MAX_NODES, "mip_rel_gap": 1e-5},
    )
    if found.x is None:
        return None
    x = np.zeros(len(groups.size), dtype=np.int64)
    x[columns] = np.round(found.x[: len(columns)])
    return x


def _fill(groups: LabelSets, room: Int64, x: Int64) -> Int64:
    """Take what still fits, fewest labels first: nothing that could be added is left out."""
    x = x.copy()
    left = room - (groups.sets.T @ x).astype(np.int64)
    assert (left >= 0).all(), "above the cap"
    open_sets = np.arange(len(groups.size))
    while True:
        open_sets = open_sets[x[open_sets] < groups.size[open_sets]]
        sets = groups.sets[open_sets]
        fits = np.minimum.reduceat(left[sets.indices], sets.indptr[:-1]) if len(open_sets) else left[:0]
        open_sets = open_sets[fits > 0]
        if not len(open_sets):
            return x
        one = open_sets[0]
        labels = groups.sets[one].indices
        more = min(int(left[labels].min()), int(groups.size[one] - x[one]))
        x[one] += more
        left[labels] -= more

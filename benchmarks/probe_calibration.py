"""Does the probe say what is so? Known ground, over and over: its intervals, equivalence, labels and verdicts.

    python benchmarks/probe_calibration.py FILE [--repeats 1000] [--worlds abcdef] [--penalties] [--processes 2]

Worlds, each drawn anew in every repeat; the rule that picks neighbours is the same, what its picks are worth differs:
(a) they carry label information (in-domain clips of a pool that is mostly not), (b) none (they are picked at random),
(c) they hurt (hubs: clips that sound like any class and carry one label); (d), (e) as b in a pool so good, with so many
evaluation clips, that equivalence can be said: in d the picks hold a little more noise, which costs most of the margin,
in e they do not; (f) half of the pool has classes 0 to 3 mistaken for each other, and the rule avoids that half: it is
worth something for those labels and exactly nothing for classes 4 to 7.

The truth of a repeat is what the rule is worth with its seeds, its pool and its λ: the mean mAP of PICKS_OF_TRUTH
further picks by the rule, minus that of as many random picks, on a very large evaluation set, by exact Newton steps
that share no code with the probe; 0 in b and e. Every repeat is a line of FILE as soon as its chunk is done, and lines
that are there are not made again. --penalties also makes the fits of other rules for λ, `RULES`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch

from balance.probe import training_sets
from balance.probe.config import Judge, ProbeConfig, Reading
from balance.probe.data import ProbeData, Side
from balance.probe.fitting import RANKED
from balance.probe.intervals import (
    EQUIVALENCE,
    Estimate,
    Verdict,
    against_draws,
    benjamini_hochberg,
    by_group,
    difference,
    p_values,
    variance,
)
from balance.probe.logistic import Solver
from balance.probe.ranking_metrics import Ranking
from balance.probe.results import FitResult, matched
from balance.probe.runner import Probe
from balance.probe.sentences import FALSE_DISCOVERIES
from balance.probe.training_sets import Arm
from balance.records import Labels
from balance.search.top_k import ArrayVectors

WORLDS = {
    "a": "carry label information",
    "b": "carry none",
    "c": "hurt",
    "d": "cost most of the margin, many evaluation clips",
    "e": "carry none, many evaluation clips",
    "f": "are worth something for half of the labels",
}
NUM_LABELS, DIM, NUM_PICKS = 8, 16, 20
SIZES = {"seeds": 60, "pool": 8000, "eval": 400, "population": 20_000}
MANY = {"seeds": 60, "pool": 8000, "eval": 4000, "population": 40_000}
# Pool: in-domain up to here, hubs up to here, foreign.
SHARES = {"a": (0.3, 0.5), "b": (0.5, 0.7), "c": (0.5, 0.7), "d": (0.9, 0.9), "e": (0.9, 0.9), "f": (1.0, 1.0)}
NOISE_FROM = 0.5  # world d: the rule picks from this share of the pool on, which holds all of its foreign clips
PICKS_OF_TRUTH = 16
PICKS_BY_ALL = 4  # of these, judged by the whole population at once too
MISTAKEN = 4  # world f: classes below this are mistaken for each other
CHUNK = 10  # repeats between two writes


@dataclass(frozen=True)
class Clips:
    vectors: np.ndarray
    labels: list[list[str]]

    def side(self) -> Side:
        return Side(ArrayVectors(self.vectors), coded(self.labels), np.arange(len(self.labels)))


def coded(sets: list[list[str]]) -> Labels:
    return Labels.of(sets).recode([f"/m/{i}" for i in range(NUM_LABELS)])


def in_domain(centres: np.ndarray, num: int, rng: np.random.Generator) -> Clips:
    """Clips that sound like their one or two classes; class c has share ∝ 1 / (c + 2)."""
    share = 1.0 / (np.arange(NUM_LABELS) + 2)
    first = rng.choice(NUM_LABELS, num, p=share / share.sum())
    second = rng.choice(NUM_LABELS, num)
    two = rng.random(num) < 0.3
    sound = centres[first] + np.where(two[:, None], centres[second], 0.0)
    vectors = sound + rng.standard_normal((num, DIM)) * 1.6
    return Clips(
        vectors.astype(np.float32),
        [[f"/m/{a}", f"/m/{b}"] if t and a != b else [f"/m/{a}"] for a, b, t in zip(first, second, two, strict=True)],
    )


def foreign(num: int, rng: np.random.Generator) -> Clips:
    """Clips whose sound has nothing to do with their label."""
    labels = rng.choice(NUM_LABELS, num)
    return Clips((rng.standard_normal((num, DIM)) * 2.2).astype(np.float32), [[f"/m/{x}"] for x in labels])


def hubs(centres: np.ndarray, num: int, rng: np.random.Generator) -> Clips:
    """Clips that sound like some class, labelled with class 0 alone."""
    return Clips(in_domain(centres, num, rng).vectors, [["/m/0"]] * num)


def mistaken(clips: Clips) -> Clips:
    """The same clips, with each class below MISTAKEN called the next one of these."""
    other = {f"/m/{i}": f"/m/{(i + 1) % MISTAKEN}" for i in range(MISTAKEN)}
    return Clips(clips.vectors, [[other.get(x, x) for x in labels] for labels in clips.labels])


def draw(world: str, repeat: int, sizes: dict[str, int] | None = None) -> tuple[ProbeData, Clips, list[np.ndarray]]:
    """One problem, the population that its figures are about, and further picks by the same rule."""
    sizes = sizes or (MANY if world in "de" else SIZES)
    centres = np.random.default_rng(99).standard_normal((NUM_LABELS, DIM)) * 0.9  # the same classes in every repeat
    rng = np.random.default_rng([ord(world), repeat])
    seeds, evaluation, population = (in_domain(centres, sizes[x], rng) for x in ("seeds", "eval", "population"))
    good, bad = (int(share * sizes["pool"]) for share in SHARES[world])
    parts = [in_domain(centres, good, rng), hubs(centres, bad - good, rng), foreign(sizes["pool"] - bad, rng)]
    parts += [mistaken(parts[0])] if world == "f" else []
    pool = Clips(np.concatenate([p.vectors for p in parts]), [x for p in parts for x in p.labels])
    candidates = {
        "a": np.arange(good),
        "b": np.arange(sizes["pool"]),
        "c": np.arange(good, bad),
        "d": np.arange(int(NOISE_FROM * sizes["pool"]), sizes["pool"]),
        "e": np.arange(sizes["pool"]),
        "f": np.arange(good),
    }[world]

    def pick() -> np.ndarray:
        num = 50 if world in "de" else NUM_PICKS
        return np.stack([rng.choice(candidates, num, replace=False) for _ in range(sizes["seeds"])])

    problem = ProbeData(
        seeds=seeds.side(),
        pool=pool.side(),
        evaluation=evaluation.side(),
        chosen=pick().astype(np.int32),
        same_space=False,
        fingerprint=f"{world} {repeat}",
        names={},
        missing={},
        clips={},
        choosing=ArrayVectors(pool.vectors),
    )
    return problem, population, [np.unique(pick()) for _ in range(PICKS_OF_TRUTH)]


def optimum(rows: np.ndarray, truth: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """The minimum of mean BCE + λ‖w‖²/2 for every label, by exact Newton steps from a fit of other clips.

    rows: (n, DIM + 1) float64, the last column 1; truth: (n, L) of ones → (DIM + 1, L).
    """
    ridge = np.diag(np.append(np.full(DIM, penalty), 1e-9))
    at = start.copy()
    for _ in range(60):
        chance = scipy.special.expit(rows @ at)
        gradient = rows.T @ (chance - truth) / len(rows) + ridge @ at
        bend = (chance * (1.0 - chance)).T[:, None, :] * rows.T / len(rows)  # (L, DIM + 1, n)
        step = np.linalg.solve(bend @ rows + ridge, gradient.T[:, :, None])[:, :, 0].T
        size = np.abs(step).max(axis=0)
        at -= step / np.maximum(size, 1.0)  # no longer than 1: from far away Newton's steps are wild
        if size.max() < 1e-4:
            return at
    raise ArithmeticError("Newton's steps do not settle")


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(sets, L, n) scores without ties, (sets, L, n) of ones → (L,), the mean over the sets."""
    order = np.argsort(-scores.astype(np.float32), axis=2)
    hits = np.take_along_axis(truth, order, axis=2)
    found = np.cumsum(hits, axis=2)
    each = (hits * found / np.arange(1, scores.shape[2] + 1)).sum(axis=2) / np.maximum(found[:, :, -1], 1.0)
    return each.mean(axis=0)


class Ground:
    """What is known of one repeat: the mAP of any set of pool clips, on the population."""

    def __init__(self, probe: Probe, population: Clips) -> None:
        self.data, self._standardise = probe.data, probe.fitter.space.standardise
        self._seeds = self._ready(self.data.seeds.vectors.read(0, len(self.data.seeds)))
        self._pool = self._ready(self.data.pool.vectors.read(0, len(self.data.pool)))
        self._population = self._ready(population.vectors)
        self._truth = coded(population.labels).matrix().toarray().astype(np.float32).T.copy()
        of_seeds, of_pool = (self.data.targets(side).toarray() for side in (self.data.seeds, self.data.pool))
        self._of_seeds, self._of_pool = of_seeds.astype(np.float32), of_pool.astype(np.float32)

    def _ready(self, vectors: np.ndarray) -> np.ndarray:
        return np.hstack([self._standardise(vectors), np.ones((len(vectors), 1))])

    def fit(self, rows: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
        """(DIM + 1, L): the model of the seeds and these pool clips."""
        features = np.concatenate([self._seeds, self._pool[rows]])
        return optimum(features, np.concatenate([self._of_seeds, self._of_pool[rows]]), penalty, start)

    def ap(self, rows: np.ndarray, penalty: float, start: np.ndarray, *, at_once: bool = False) -> np.ndarray:
        """(L,) on the population: the mean over sets of as many clips as the evaluation has, or of all at once."""
        scores = self.fit(rows, penalty, start).T @ self._population.T
        size = scores.shape[1] if at_once else len(self.data.evaluation)
        sets = [x.reshape(NUM_LABELS, -1, size).transpose(1, 0, 2) for x in (scores, self._truth)]
        return average_precision(*sets)

    def evaluate(self, rows: np.ndarray, penalty: float, start: np.ndarray) -> tuple[float, np.ndarray]:
        """mAP on the evaluation clips, and its deviations."""
        side = self.data.evaluation
        scores = self._ready(side.vectors.read(0, len(side))) @ self.fit(rows, penalty, start)
        _, means, deviations = Ranking(scores.astype(np.float32), side.labels.matrix()).evaluate(
            {"": np.arange(NUM_LABELS)}
        )
        return means["map"], deviations["map"]


def theta(fit: FitResult) -> np.ndarray:
    return np.concatenate([fit.weight, fit.bias[None]]).astype(np.float64)


def one(job: tuple[str, int, bool]) -> dict[str, Any]:
    """One repeat: the estimate, its verdict, and what is true."""
    world, repeat, penalties = job
    torch.set_num_threads(1)
    problem, population, picks = draw(world, repeat)
    config = ProbeConfig(k=[problem.chosen.shape[1]], readings=[Reading.logistic], rivals=[])
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(problem, config, seed=repeat, device=torch.device("cpu"), cache=Path(folder))
        table = probe.run([arm for arm in probe.arms() if arm.rule in (training_sets.NEIGHBOURS, training_sets.RANDOM)])
    arm, draws = matched(table.fits, problem.chosen.shape[1])
    maps = {id(fit): of["logistic"].summary("map") for fit, of in zip(table.fits, table.evaluations, strict=True)}
    got = estimate_of([maps[id(fit)] for fit in (arm, *draws)])
    out = {
        "world": world,
        "repeat": repeat,
        "value": got.value,
        "error": got.error,
        "freedom": got.freedom,
        "of_draws": got.of_draws,
        "recommended": table.recommended is not None,
        "label_claims": label_claims(probe, [arm, *draws]),
    }
    ground = Ground(probe, population)
    pairs = [(rows, at_random(len(rows), problem, repeat, i)) for i, rows in enumerate(picks)]
    if world in "acd":
        starts = [theta(fit) for fit in (arm, draws[0])]

        def known(num: int, *, at_once: bool) -> np.ndarray:
            """(num, 2, L): AP of picks by the rule and at random."""
            each = [zip(pair, starts, strict=True) for pair in pairs[:num]]
            return np.array([[ground.ap(rows, arm.penalty, at, at_once=at_once) for rows, at in pair] for pair in each])

        ap = known(PICKS_OF_TRUTH, at_once=False)
        worth, few = (-np.diff(x.mean(axis=0), axis=0)[0] for x in (ap, ap[:PICKS_BY_ALL]))
        whole = -np.diff(known(PICKS_BY_ALL, at_once=True).mean(axis=0), axis=0)[0]
        out["label_truth"] = worth.tolist()
        out["at_once"] = float((worth + whole - few).mean())
        out["luck"] = ap.mean(axis=2).var(axis=0, ddof=1).tolist()
    if penalties:
        out["rules"] = other_penalties(probe, [arm, *draws], ground, pairs)
    return out


def at_random(num: int, problem: ProbeData, repeat: int, i: int) -> np.ndarray:
    return np.random.default_rng([7, repeat, i]).choice(len(problem.pool), num, replace=False)


def estimate_of(figures: list[tuple[float, np.ndarray]]) -> Estimate:
    """An arm's and its draws' (mAP, deviations) → the difference."""
    own, *others = figures
    return difference(*own, np.array([x[0] for x in others]), np.stack([x[1] for x in others]))


def label_claims(probe: Probe, fits: list[FitResult]) -> list[int]:
    """For each label the sign of the gain that is claimed, 0 where none is."""
    rankings = [probe.ranking(fit) for fit in fits]
    ap = np.stack([ranking.figures().ap for ranking in rankings])
    each = np.stack([ranking.without_each_clip(np.arange(NUM_LABELS)) for ranking in rankings])
    gain, spread, freedom, _ = against_draws(ap[0], each[0], ap[1:], each[1:])
    claimed = benjamini_hochberg(p_values(gain, spread, freedom), FALSE_DISCOVERIES)
    return np.where(claimed, np.sign(gain), 0).astype(int).tolist()


RULES = ("one λ, the best", "one λ, one standard error", "each its own, the best", "each its own, one standard error")
GRID = [1.0, 0.1, 0.01, 0.001, 0.0001]
PICKS_WITH_OWN = 6  # further picks of either kind whose own λ is found


def other_penalties(
    probe: Probe, fits: list[FitResult], ground: Ground, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """The same repeat with λ by each of RULES, all of them on GRID: estimate, truth and λ's.

    What a rule with own λ's is worth is what the shared one is, plus the mean change that own λ's bring to the first
    PICKS_WITH_OWN picks.
    """
    start = theta(fits[0])
    arms = [fit.arm for fit in fits]
    further = [Arm("", "", None, np.sort(rows), np.full(len(rows), -1, np.int8)) for x in pairs for rows in x]
    paths = [path_of(probe, arm) for arm in [*arms, *further[: 2 * PICKS_WITH_OWN]]]
    both = tuple(np.mean([path[i] for path in paths[:2]], axis=0) for i in range(2))  # as the probe: arm, first draw
    ap: dict[tuple[int, float], float] = {}

    def worth(i: int, penalty: float) -> float:
        if (i, penalty) not in ap:
            ap[i, penalty] = float(ground.ap(further[i].rows, penalty, start).mean())
        return ap[i, penalty]

    def gain(num: int, penalty: Callable[[int], float]) -> float:
        return float(np.mean([worth(i, penalty(i)) - worth(i + 1, penalty(i + 1)) for i in range(0, 2 * num, 2)]))

    out = {}
    for rule in RULES:
        wide = rule.endswith("error")
        shared = chosen(*both, wide)
        own = [chosen(*path, wide) if "own" in rule else shared for path in paths]
        truth = gain(PICKS_OF_TRUTH // 2, lambda i, at=shared: at)
        if "own" in rule:
            at = own[len(arms) :]
            truth += gain(PICKS_WITH_OWN, lambda i, at=at: at[i]) - gain(PICKS_WITH_OWN, lambda i, at=shared: at)
        of_arms = [ground.evaluate(arm.rows, penalty, start) for arm, penalty in zip(arms, own, strict=False)]
        got = estimate_of(of_arms)
        out[rule] = {**dataclasses.asdict(got), "truth": truth, "penalties": own[: len(arms)]}
        out[rule].pop("bounds")
    return out


def path_of(probe: Probe, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Held-out mAP at each λ of GRID, (p,), and its deviations (p, G)."""
    fitter = probe.fitter
    columns = fitter.heldout_columns(Judge.all)
    solver = Solver(fitter.training_set(arm), columns, fitter._watched, device=torch.device("cpu"))
    values, deviations = [], []
    for penalty in GRID:
        solver.settle(penalty, probe.config.steps, enough=RANKED)
        ranking = fitter._heldout_ranking(solver.result(), columns)
        _, means, each = ranking.evaluate({"": np.arange(NUM_LABELS)})
        values.append(means["map"])
        deviations.append(by_group(each["map"], probe.data.seeds.groups))
    return np.array(values), np.array(deviations)


def chosen(values: np.ndarray, deviations: np.ndarray, wide: bool) -> float:
    """The λ of the best value; wide: the largest whose value is within the best one's standard error of it."""
    best = int(np.argmax(values))
    error = np.sqrt(variance(deviations[best][:, None])[0][0]) if wide else 0.0
    return GRID[int(np.flatnonzero(values >= values[best] - error)[0])]


def share(true: np.ndarray) -> str:
    """A share in per cent with its 95 % interval (Clopper and Pearson 1934)."""
    num, hits = len(true), int(np.sum(true))
    low = scipy.special.betaincinv(hits, num - hits + 1, 0.025) if hits else 0.0
    high = scipy.special.betaincinv(hits + 1, num - hits, 0.975) if hits < num else 1.0
    return f"{100 * hits / num:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def estimates(lines: list[dict[str, Any]]) -> list[Estimate]:
    return [Estimate(x["value"], x["error"], x["freedom"]) for x in lines]


def intervals_and_verdicts(lines: list[dict[str, Any]], truth: np.ndarray) -> None:
    each = estimates(lines)
    value, error = np.array([(x.value, x.error) for x in each]).T
    low, high = np.array([x.interval() for x in each]).T
    verdicts = np.array([x.verdict() for x in each])
    resolved = np.isin(verdicts, [Verdict.gain, Verdict.loss])
    moved = value - truth
    print(f"  the 95 % interval covers the truth in {share((low <= truth) & (truth <= high))}")
    print(f"    truth above it in {share(truth > high)}, below it in {share(truth < low)}")
    print(
        f"    half width {np.mean((high - low) / 2):.4f}; standard error claimed {np.sqrt(np.mean(error**2)):.4f}",
        end="",
    )
    print(f", deviation from the truth {np.sqrt(np.mean(moved**2)):.4f} (mean {moved.mean():+.4f})")
    for verdict in sorted(set(verdicts)):
        print(f"  verdict '{verdict}' in {share(verdicts == verdict)}")
    if truth.any():
        print(f"  resolved with the wrong sign: {share(resolved & (value * truth < 0))}")
    else:
        print(f"  resolved although the truth is 0: {share(resolved)}")


def equivalence(lines: list[dict[str, Any]], truth: np.ndarray) -> None:
    """The two one-sided tests alone, whatever the 95 % interval says."""
    low, high = np.array([x.interval(0.9) for x in estimates(lines)]).T

    def passed(margin: np.ndarray | float) -> str:
        return share((low > -margin) & (high < margin))

    print(f"  two one-sided tests pass at ± {EQUIVALENCE} in {passed(EQUIVALENCE)}")
    if truth.any():
        print(f"    at ± |truth|, a margin that the truth lies on, in {passed(np.abs(truth))}")


def labels(lines: list[dict[str, Any]], sign: np.ndarray) -> None:
    """sign: (repeats, L) of what is true."""
    claims = np.array([x["label_claims"] for x in lines])
    false = ((claims != 0) & (claims != sign)).sum(axis=1) / np.maximum((claims != 0).sum(axis=1), 1)
    print(f"  labels: false among claimed {100 * false.mean():.1f} %", end="")
    print(f" ± {196 * false.std() / np.sqrt(len(false)):.1f}; any false in {share(false > 0)}", end="")
    print(f"; found of those that differ {100 * np.mean((claims == sign)[sign != 0]):.0f} %" if sign.any() else "")


def penalties(lines: list[dict[str, Any]]) -> None:
    for rule in RULES:
        of_rule = [x["rules"][rule] for x in lines]
        print(f"  λ: {rule}")
        intervals_and_verdicts(of_rule, np.array([x["truth"] for x in of_rule]))
        powers = np.log10([x["penalties"] for x in of_rule])
        print(f"  log10 λ: mean {powers.mean():.2f}, deviation within a repeat {powers.std(axis=1, ddof=1).mean():.2f}")


def summary(world: str, lines: list[dict[str, Any]]) -> None:
    truth = np.array([np.mean(x.get("label_truth", 0.0)) for x in lines])
    known = "by label alone" if world == "f" else f"{truth.mean():+.4f}"
    print(f"\n({world}) neighbours {WORLDS[world]}: {len(lines)} repeats, truth {known}")
    if "rules" in lines[0]:
        return penalties(lines)
    if world != "f":
        intervals_and_verdicts(lines, truth)
        equivalence(lines, truth)
    if truth.any():
        of_rule, of_chance = np.sqrt(np.mean([x["luck"] for x in lines], axis=0))
        print(f"  deviation between sets: of the rule {of_rule:.4f}, at random {of_chance:.4f}")
        print(f"  the truth on all clips of the population at once: {np.mean([x['at_once'] for x in lines]):+.4f}")
    print(f"  a K is recommended in {share(np.array([x['recommended'] for x in lines]))}")
    sign = np.zeros((len(lines), NUM_LABELS))
    sign[:, :MISTAKEN] += world == "f"
    if world in "ac":
        sign = np.sign([x["label_truth"] for x in lines])
    if world != "d":
        labels(lines, sign)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--worlds", default="".join(WORLDS))
    parser.add_argument("--penalties", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.file.read_text().splitlines()] if given.file.exists() else []
    done = {(x["world"], x["repeat"]) for x in lines if not given.penalties or "rules" in x}
    # Every world gets its chunks in turn: what is there when it is stopped says something of all of them.
    wanted = [(world, r, given.penalties) for r in range(given.repeats) for world in given.worlds]
    wanted = [job for job in wanted if job[:2] not in done]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool, given.file.open("a") as file:
        for made in pool.imap_unordered(one, wanted, chunksize=CHUNK):
            lines.append(made)
            file.write(json.dumps(made) + "\n")
            file.flush()
    for world in given.worlds:
        of_world = [x for x in lines if x["world"] == world and x["repeat"] < given.repeats]
        summary(world, sorted(of_world, key=lambda x: x["repeat"]))


if __name__ == "__main__":
    main()

"""Does the probe say what is so? Known ground, over and over: coverage of its intervals and its verdicts.

    python benchmarks/probe_calibration.py [--repeats 200] [--processes 2]

Three worlds, each drawn anew in every repeat; the rule that picks neighbours is the same, what its picks are worth
differs: (a) they carry label information (in-domain clips of a pool that is mostly not), (b) none (they are
picked at random), (c) they hurt (hubs: clips that sound like any class and carry one label). The truth of a repeat is
what the rule is worth with its seeds and its pool: the mean mAP of PICKS_OF_TRUTH further picks by the rule, minus that
of as many random picks, on a very large evaluation set. Last line: JSON with, for each world, how often the 95 %
interval covers the truth, the shares of verdicts, and how often a K was recommended.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from balance.probe import training_sets
from balance.probe.config import ProbeConfig, Reading
from balance.probe.data import ProbeData, Side
from balance.probe.intervals import EQUIVALENCE, against_draws, benjamini_hochberg, difference, p_values
from balance.probe.logistic import Columns, fit
from balance.probe.ranking_metrics import Ranking, mean
from balance.probe.results import matched
from balance.probe.runner import Probe
from balance.records import Labels
from balance.search.top_k import ArrayVectors

WORLDS = {"a": "neighbours carry label information", "b": "none", "c": "hurt"}
NUM_LABELS, DIM, NUM_PICKS = 8, 16, 20
SIZES = {"seeds": 120, "pool": 8000, "eval": 500, "population": 20_000}
SHARES = {"a": (0.3, 0.5), "b": (0.5, 0.7), "c": (0.5, 0.7)}  # pool: in-domain up to here, hubs up to here, foreign
PICKS_OF_TRUTH = 16


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


def draw(world: str, repeat: int, sizes: dict[str, int] = SIZES) -> tuple[ProbeData, Clips, list[np.ndarray]]:
    """One problem, the population that its figures are about, and further picks by the same rule."""
    centres = np.random.default_rng(99).standard_normal((NUM_LABELS, DIM)) * 0.9  # the same classes in every repeat
    rng = np.random.default_rng([ord(world), repeat])
    seeds, evaluation, population = (in_domain(centres, sizes[x], rng) for x in ("seeds", "eval", "population"))
    good, bad = (int(share * sizes["pool"]) for share in SHARES[world])
    parts = [in_domain(centres, good, rng), hubs(centres, bad - good, rng), foreign(sizes["pool"] - bad, rng)]
    pool = Clips(np.concatenate([p.vectors for p in parts]), [x for p in parts for x in p.labels])
    candidates = {"a": np.arange(good), "b": np.arange(sizes["pool"]), "c": np.arange(good, bad)}[world]

    def pick() -> np.ndarray:
        return np.stack([rng.choice(candidates, NUM_PICKS, replace=False) for _ in range(sizes["seeds"])])

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


def one(job: tuple[str, int]) -> dict[str, float | str | bool]:
    """One repeat: the interval, and the differences on the population."""
    world, repeat = job
    torch.set_num_threads(1)
    problem, population, picks = draw(world, repeat)
    config = ProbeConfig(k=[NUM_PICKS], readings=[Reading.logistic], rivals=[], penalties=[1.0, 0.1, 0.01, 0.001])
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(problem, config, seed=repeat, device=torch.device("cpu"), cache=Path(folder))
        table = probe.run([arm for arm in probe.arms() if arm.rule in (training_sets.NEIGHBOURS, training_sets.RANDOM)])
    arm, draws = matched(table.fits, NUM_PICKS)
    features = torch.from_numpy(probe.fitter.space.standardise(population.vectors))
    truth = coded(population.labels).matrix()
    columns = Columns(np.arange(NUM_LABELS), np.full(NUM_LABELS, -1))

    def population_map(rows: np.ndarray, penalty: float) -> float:
        examples = probe.fitter.training_set(
            training_sets.Arm("", "", None, rows, np.full(len(rows), -1, dtype=np.int8))
        )
        model = fit(examples, columns, penalty, features[:1000], passes=config.steps, device=torch.device("cpu"))
        return mean(Ranking(model.scores(features).numpy(), truth).figures().ap)

    if world == "b":
        picks = []  # its truth is 0: random picks against random picks
    by_rule = [population_map(rows, arm.penalty) for rows in picks]
    rng = np.random.default_rng([7, repeat])
    num_pool = len(problem.pool)
    at_random = [
        population_map(np.sort(rng.choice(num_pool, len(rows), replace=False)), draws[0].penalty) for rows in picks
    ]
    maps = {id(one): of["logistic"].summary("map") for one, of in zip(table.fits, table.evaluations, strict=True)}
    own, others = maps[id(arm)], [maps[id(draw)] for draw in draws]
    got = difference(*own, np.array([x[0] for x in others]), np.stack([x[1] for x in others]))
    rankings = [probe.ranking(fit) for fit in (arm, *draws)]
    ap = np.stack([ranking.figures().ap for ranking in rankings])
    each = np.stack([ranking.without_each_clip(np.arange(NUM_LABELS)) for ranking in rankings])
    gain, spread, freedom, _ = against_draws(ap[0], each[0], ap[1:], each[1:])
    return {
        "rejected": int(benjamini_hochberg(p_values(gain, spread, freedom), 0.1).sum()),
        "low": got.interval()[0],
        "high": got.interval()[1],
        "error": got.error,
        "freedom": got.freedom,
        "value": got.value,
        "verdict": got.verdict(),
        "truth": float(np.mean(by_rule) - np.mean(at_random)) if world != "b" else 0.0,
        "recommended": table.recommended is not None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    results = {}
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for world, words in WORLDS.items():
            got = pool.map(one, [(world, r) for r in range(given.repeats)], chunksize=4)
            truths = np.array([x["truth"] for x in got])
            covered = np.mean([x["low"] <= x["truth"] <= x["high"] for x in got])
            verdicts = {v: np.mean([x["verdict"] == v for x in got]) for v in sorted({str(x["verdict"]) for x in got})}
            results[world] = {
                "truth": round(float(truths.mean()), 5),
                "coverage": round(float(covered), 4),
                "bias": round(float(np.mean([x["value"] - x["truth"] for x in got])), 5),
                "deviation": round(float(np.std([x["value"] - x["truth"] for x in got], ddof=1)), 5),
                "half_width": round(float(np.mean([(x["high"] - x["low"]) / 2 for x in got])), 5),
                "verdicts": {v: round(float(x), 4) for v, x in verdicts.items()},
                # TOST: equivalent although the truth is not within the margin; labels found although none differs (b)
                "false_equivalence": round(
                    float(np.mean([x["verdict"] == "equivalent" and abs(x["truth"]) >= EQUIVALENCE for x in got])), 4
                ),
                "repeats_with_labels_found": round(float(np.mean([x["rejected"] > 0 for x in got])), 4),
                "recommended": round(float(np.mean([x["recommended"] for x in got])), 4),
            }
            print(f"({world}) {words}: {json.dumps(results[world])}", flush=True)
    print(json.dumps({"repeats": given.repeats, **results}))


if __name__ == "__main__":
    main()

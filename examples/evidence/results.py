"""What the commands found, on one page: `results.json` and, written from it, `results.md`.

In: summary.json of the runs, probe.json, finetune.json. Out: the figures that answer the experiment's questions, no
paths. A difference counts as a gain or a loss only where all readings of the probe agree on it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = dict[str, Any]
LINEAR, MAP = "logistic", "map"
READINGS = {"logistic": "linear", "knn": "k-NN vote", "prototype": "prototypes", "mlp": "small network"}
RULES = {
    "neighbours": "**neighbours**",
    "random": "random",
    "stratified": "same label sets",
    "class_balanced": "class-balanced",
    "metaclip": "MetaCLIP's caps",
    "hierarchical_kmeans": "k-means-balanced",
    "easy_prototypes": "easy prototypes",
    "hard_prototypes": "hard prototypes",
    "k_center": "k-center greedy",
    "seeds": "the seeds alone",
    "pool": "the whole pool",
    "pool_weighted": "the whole pool, weighted",
}


def _name(reading: str) -> str:
    """`knn, selecting space` -> `k-NN vote in the selecting space`, of the encoder that chose."""
    name, _, space = reading.partition(", ")
    return READINGS[name] + (f" in the {space}" if space else "")


def gather(
    out: Path,
    runs: Mapping[str, Sequence[int]],
    pairs: Sequence[tuple[str, str]],
    *,
    is_trained: bool,
    asked: Mapping[str, Any],
) -> Found:
    """All that the page needs. runs: encoder -> its K's; pairs: (who chose, who judged); asked: what was typed."""
    own = {encoder: [out / "runs" / encoder / f"k{k}" for k in ks] for encoder, ks in runs.items()}
    manifest = json.loads((next(iter(own.values()))[0] / "manifest.json").read_text("utf-8"))
    return {
        "name": out.name,
        "date": datetime.date.today().isoformat(),
        "commit": manifest["git_commit"],
        "libraries": manifest["libraries"],
        "asked": dict(asked),
        "runs": {encoder: [_run(folder) for folder in folders] for encoder, folders in own.items()},
        "probes": [_probe(out / "probes" / "-".join(pair), *pair) for pair in pairs],
        "finetunes": [_finetune(out / "finetunes" / "-".join(pair), *pair) for pair in pairs if is_trained],
    }


def _run(folder: Path) -> Found:
    names = ("k", "num_neighbours", "pool_share", "label_agreement", "label_agreement_random")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    return {name: summary[name] for name in names}


def _probe(folder: Path, chooser: str, judge: str) -> Found:
    found = json.loads((folder / "probe.json").read_text("utf-8"))
    rows = [row for row in found["comparisons"] if row["figure"] == MAP and row["reading"] == LINEAR]
    names = ("against_rule", "k", "value", "low", "high", "detectable")
    conclusions = [row for row in found["conclusions"] if _of_neighbours(row)]
    return {
        "chooser": chooser,
        "judge": judge,
        **{name: found[name] for name in ("counts", "guard", "recommended_k", "draws", "network_steps")},
        "arms": [
            {name: arm[name] for name in ("rule", "k", "num_clips", "penalty", "heldout_map")}
            | {MAP: {reading: figures[MAP]["value"] for reading, figures in arm["readings"].items()}}
            for arm in found["arms"]
        ],
        "differences": [{name: row[name] for name in names} for row in rows if _of_neighbours(row)],
        "conclusions": [
            {name: row[name] for name in ("against_rule", "k", "verdict", "by_reading")} for row in conclusions
        ],
        "warnings": found["warnings"],
    }


def _of_neighbours(row: Found) -> bool:
    return str(row["arm"]).startswith("neighbours")


def _finetune(folder: Path, chooser: str, judge: str) -> Found:
    found = json.loads((folder / "finetune.json").read_text("utf-8"))
    names = ("network", "steps", "batch_size", "repeats", "agreement", "arms")
    return {"chooser": chooser, "judge": judge, **{name: found[name] for name in names}}


def page(found: Found) -> str:
    """`results.md`."""
    return "\n".join([*_head(found), *_answers(found), *_chosen(found), *_probes(found), *_trained(found)]) + "\n"


def _head(found: Found) -> Iterator[str]:
    counts = found["probes"][0]["counts"]
    sizes = {
        f"seeds of {counts['seed_sources']:,} source{'s' * (counts['seed_sources'] != 1)}": counts["seeds"],
        "clips in the pool": counts["pool"],
        "evaluation clips": counts["evaluation"],
        "labels": counts["labels"],
    }
    yield f"# {found['name']}"
    yield ""
    yield (
        f"{found['date']}, commit {str(found['commit'])[:7]}. "
        f"{', '.join(f'{size:,} {what}' for what, size in sizes.items())}. Encoders: {', '.join(found['runs'])}."
    )
    yield ""


def _answers(found: Found) -> Iterator[str]:
    """How often neighbours gain and lose against each rule, over all K and pairs of encoders."""
    rules = [rule for rule in RULES if any(_verdicts(found, rule))]
    yield "## Neighbours against"
    yield ""
    yield (
        "mAP on the evaluation clips; each cell is a number of pairs of encoders and K. A gain or a loss counts where "
        "the linear fit, the k-NN vote, prototypes and a small network all give it."
    )
    yield ""
    columns = ("gain", "loss", "equivalent", "not resolved", "readings disagree", "cannot be judged")
    yield from _table(
        ["", *columns],
        ([RULES[rule], *(_count(list(_verdicts(found, rule)), name) for name in columns)] for rule in rules),
    )
    yield "By each reading alone, gains : losses."
    yield ""
    readings = list(found["probes"][0]["conclusions"][0]["by_reading"])
    yield from _table(
        ["", *(_name(reading) for reading in readings)],
        ([RULES[rule], *(_gains_and_losses(found, rule, reading) for reading in readings)] for rule in rules),
    )


def _count(said: Sequence[str], name: str) -> str:
    return str(said.count(name) or "")


def _gains_and_losses(found: Found, rule: str, reading: str) -> str:
    rows = [row for probe in found["probes"] for row in probe["conclusions"] if row["against_rule"] == rule]
    said = [row["by_reading"][reading] for row in rows]
    return f"{said.count('gain')} : {said.count('loss')}"


def _verdicts(found: Found, rule: str) -> Iterator[str]:
    for probe in found["probes"]:
        for row in probe["conclusions"]:
            if row["against_rule"] == rule:
                said = "readings disagree" if row["verdict"] is None else row["verdict"]
                known = said in ("gain", "loss", "equivalent", "not resolved", "readings disagree")
                yield said if known else "cannot be judged"


def _chosen(found: Found) -> Iterator[str]:
    yield "## What was chosen"
    yield ""
    yield "Distinct neighbours, and the share of a seed's labels that each of its neighbours has."
    yield ""
    yield from _table(
        ["chosen by", "K", "clips", "of the pool", "label agreement", "of random clips"],
        (
            [encoder, str(run["k"]), f"{run['num_neighbours']:,}", f"{run['pool_share']:.0%}",
             _number(run["label_agreement"]), _number(run["label_agreement_random"])]
            for encoder, runs in found["runs"].items()
            for run in runs
        ),
    )  # fmt: skip


def _probes(found: Found) -> Iterator[str]:
    for probe in found["probes"]:
        ks = sorted({arm["k"] for arm in probe["arms"] if arm["rule"] == "neighbours"})
        yield f"## {probe['chooser']} chose, {probe['judge']} judged"
        yield ""
        recommended = probe["recommended_k"]
        yield f"Recommended: {'no K' if recommended is None else f'K = {recommended}'}. mAP by the linear reading:"
        yield ""
        yield from _table(["", *(f"K = {k}" for k in ks)], _levels(probe["arms"], ks))
        yield (
            "Neighbours minus the others, with 95 % intervals, by the linear reading. Bold: all readings agree on a "
            "gain or a loss."
        )
        yield ""
        yield from _table(["", *(f"K = {k}" for k in ks)], _differences(probe, ks))
        for warning in probe["warnings"]:
            yield f"- {warning}"
        yield ""


def _levels(arms: Sequence[Found], ks: Sequence[int]) -> Iterator[list[str]]:
    of = {(arm["rule"], arm["k"]): arm[MAP][LINEAR] for arm in arms}
    yield ["clips to train on", *(f"{arm['num_clips']:,}" for arm in arms if arm["rule"] == "neighbours")]
    for rule, title in RULES.items():
        if (rule, None) in of:
            yield [f"{title} ({_number(of[rule, None])})", *("" for _ in ks)]
        elif any((rule, k) in of for k in ks):
            yield [title, *(_number(of.get((rule, k))) for k in ks)]


def _differences(probe: Found, ks: Sequence[int]) -> Iterator[list[str]]:
    rows = {(row["against_rule"], row["k"]): row for row in probe["differences"]}
    agreed = {(row["against_rule"], row["k"]): row["verdict"] in ("gain", "loss") for row in probe["conclusions"]}
    for rule, title in RULES.items():
        if any((rule, k) in rows for k in ks):
            yield [title, *(_difference(rows.get((rule, k)), agreed.get((rule, k), False)) for k in ks)]


def _difference(row: Found | None, agreed: bool) -> str:
    if row is None or row["value"] is None:
        return ""
    text = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]".replace("-", "−")
    return f"**{text}**" if agreed else text


def _trained(found: Found) -> Iterator[str]:
    for one in found["finetunes"]:
        yield f"## Trained on what {one['chooser']} chose"
        yield ""
        yield (
            f"{one['network']}, {one['steps']:,} steps of {one['batch_size']} clips, {one['repeats']} trainings of "
            f"each set, beside the probe in {one['judge']}'s space: {one['agreement']['words']}."
        )
        yield ""
        yield from _table(
            ["set", "mAP of the trainings", "95 %", "mAP of the probe"],
            (
                [arm["arm"], _number(arm["map"]["value"]),
                 f"{_number(arm['map']['low'])} … {_number(arm['map']['high'])}", _number(arm["probe_map"])]
                for arm in one["arms"]
            ),
        )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""

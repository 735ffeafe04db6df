"""The probe's three figures as inline SVG (see drawing.py).

In: what `findings.find` returns; out: SVG text, the same bytes for the same input.
"""

from __future__ import annotations

from typing import Any

import matplotlib.ticker
from matplotlib.axes import Axes

from balance.probe import training_sets
from balance.report.svg import CHOSEN, GAIN, INK, LOSS, OTHER, PAPER, POOL, QUIET, RANDOM, RULE, canvas, svg

LINES = {
    training_sets.NEIGHBOURS: (CHOSEN, "o", "seeds + neighbours"),
    training_sets.RANDOM: (RANDOM, "s", "seeds + as many random clips"),
    training_sets.STRATIFIED: (OTHER, "^", "seeds + same label sets"),
}
NUM_LABELS = 14  # in the figure of labels: the strongest gains and losses, so many in all


def _error(axes: Axes, x: float, y: dict[str, Any], colour: str, marker: str, *, size: float = 7) -> None:
    if y["low"] is not None:
        axes.plot([x, x], [y["low"], y["high"]], color=colour, linewidth=1.6, solid_capstyle="round", zorder=3)
    axes.plot([x], [y["value"]], marker=marker, color=colour, markersize=size, zorder=4, linestyle="none")


def size_curve(found: dict[str, Any], reading: str, figure: str = "map") -> str:
    """Metric against training-set size, log axis, with intervals; a line a selection rule."""
    rows = [r for r in found["arms"] if r["readings"][reading][figure]["value"] is not None]
    with canvas(8.6, 4.6) as (plot, (axes,)):
        seeds = next((r for r in rows if r["rule"] == training_sets.SEEDS), None)
        for rule, (colour, marker, title) in LINES.items():
            of_rule = [r for r in rows if r["rule"] == rule and " as " not in r["arm"]]
            if not of_rule:
                continue
            line = ([seeds] if seeds else []) + of_rule
            xs = [r["num_clips"] for r in line]
            values = [r["readings"][reading][figure] for r in line]
            axes.plot(xs, [v["value"] for v in values], color=colour, linewidth=2, zorder=2, label=title, marker=marker)
            lows = [v["value"] if v["low"] is None else v["low"] for v in values]
            highs = [v["value"] if v["high"] is None else v["high"] for v in values]
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=1)
            if rule == training_sets.NEIGHBOURS:
                above = True
                for at, (r, v) in enumerate(zip(of_rule, values[-len(of_rule) :], strict=True)):
                    # neighbouring sizes that nearly coincide: one label above, the next below
                    close = at > 0 and r["num_clips"] < 1.2 * of_rule[at - 1]["num_clips"]
                    above = not above if close else True
                    axes.annotate(
                        f"k={r['k']}", (r["num_clips"], v["value"]), xytext=(0, 10 if above else -19),
                        textcoords="offset points", ha="center", color=colour, fontsize=10, fontweight="bold",
                        bbox={"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 1.0}, zorder=5,
                    )  # fmt: skip
        for row in rows:
            value = row["readings"][reading][figure]
            if row["rule"] in (training_sets.POOL, training_sets.POOL_WEIGHTED):
                # beside each other and the largest k: they have one size
                shift = 1.05 if row["rule"] == training_sets.POOL else 1.12
                marker = "D" if row["rule"] == training_sets.POOL else "*"
                _error(axes, row["num_clips"] * shift, value, POOL, marker, size=8 if marker == "D" else 11)
                word = "whole pool" if row["rule"] == training_sets.POOL else "whole pool, weighted"
                axes.plot([], [], marker=marker, color=POOL, linestyle="none", label=word)
            elif row["rule"] == training_sets.RUN:
                _error(axes, row["num_clips"], value, INK, "P", size=9)
                axes.annotate(
                    row["arm"], (row["num_clips"], value["value"]), xytext=(6, -12), textcoords="offset points"
                )
        if seeds is not None:
            value = seeds["readings"][reading][figure]
            _error(axes, seeds["num_clips"], value, INK, "o", size=8)
            axes.annotate(
                "seeds", (seeds["num_clips"], value["value"]), xytext=(8, -14), textcoords="offset points", fontsize=10
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{int(x):,}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("training clips (log scale)")
        axes.set_ylabel({"map": "mAP", "map_prior": "mAP at the pool's shares", "d_prime": "d′"}[figure])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=10, frameon=True, facecolor=PAPER, framealpha=0.8, edgecolor="none")
        word = {"logistic": "logistic regression", "knn": "k-NN vote"}[reading]
        return svg(plot, f"{figure} against the number of training clips, {word}")


def gain_forest(found: dict[str, Any]) -> str:
    """The difference to as many random clips, by K and reading, with intervals; empty where there is none."""
    rows = [
        r
        for r in found["comparisons"]
        if r["figure"] == "map" and r["against_rule"] == training_sets.RANDOM and r["low"] is not None
    ]
    names = list(dict.fromkeys(r["arm"] for r in rows))
    if not names:
        return ""
    with canvas(8.6, 0.9 + 0.62 * len(names)) as (plot, (axes,)):
        axes.axvspan(-0.005, 0.005, color=RULE, alpha=0.7, linewidth=0, zorder=0)
        axes.axvline(0.0, color=INK, linewidth=1)
        for i, name in enumerate(names):
            for row in (r for r in rows if r["arm"] == name):
                y = i + (-0.14 if row["reading"] == "logistic" else 0.16)
                first = row["reading"] == "logistic"
                colour = {"gain": GAIN, "loss": LOSS}.get(row["verdict"], QUIET)
                axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.4 if first else 1.3)
                axes.plot(
                    [row["value"]], [y], marker="o" if first else "D", color=colour, markersize=8 if first else 5,
                    markerfacecolor=colour if first else PAPER, linestyle="none",
                )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("mAP above as many random pool clips (0: no difference)")
        return svg(plot, "Gain in mAP over random picks of the same number")


def label_gains(found: dict[str, Any]) -> str:
    """The labels with the strongest gains and losses, with intervals; empty where none is tested."""
    tested = sorted((x for x in found["labels"] if x["p"] is not None), key=lambda x: (-x["gain"], x["id"]))
    if not tested:
        return ""
    half = NUM_LABELS // 2
    shown = tested if len(tested) <= NUM_LABELS else tested[:half] + tested[-half:]
    with canvas(8.6, 0.9 + 0.33 * len(shown)) as (plot, (axes,)):
        axes.axvline(0.0, color=INK, linewidth=1)
        for i, row in enumerate(shown):
            colour = QUIET if not row["resolved"] else GAIN if row["gain"] > 0 else LOSS
            axes.plot([row["low"], row["high"]], [i, i], color=colour, linewidth=2)
            axes.plot([row["gain"]], [i], marker="o", color=colour, linestyle="none", markersize=7)
        if len(shown) < len(tested):
            axes.axhline(half - 0.5, color=RULE, linewidth=1, linestyle=(0, (4, 4)))
        axes.set_yticks(range(len(shown)), [f"{_short(x['name'])} ({x['num_evaluation']})" for x in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("AP above as many random pool clips")
        return svg(plot, "Gain in average precision by label")


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"

"""The figures of report.html: what `effect.measure` measured, drawn.

Each takes its part of the measurements and gives SVG text, the same bytes for the same numbers. Chance is dashed and
in its own colour everywhere; nothing is told by colour alone. Each figure's description says its main number, for those
who do not see it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from balance.report.svg import CHOSEN, INK, OTHER, QUIET, RANDOM, canvas, svg

NUM_LABELS = 12  # most and least frequent in the figure; all are in the table
_WIDE = (9.0, 3.6)


def _rank_axis(axes: Axes, highest: int, label: str, lowest: int = 1) -> None:
    axes.set_xscale("log")
    axes.set_xlim(lowest * 0.96, max(highest, 2 * lowest) * 1.04)
    axes.set_xlabel(label)
    ticks = [m * 10**e for e in range(8) for m in (1, 2, 5) if lowest <= m * 10**e <= highest]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")


def saturation(data: dict[str, Any], k: int) -> str:
    """Share of the eligible pool in the union, against K; beside uniform picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(data["k"], data["share"], color=CHOSEN, linewidth=2.2, label="neighbours")
        axes.plot(data["k"], data["uniform"], color=RANDOM, linewidth=1.6, linestyle="--", label="uniform picks")
        axes.axvline(k, color=QUIET, linewidth=1)
        axes.annotate(f"this run, K = {k}", (k, 1), xytext=(-5, -4), textcoords="offset points", ha="right", va="top")
        _rank_axis(axes, int(data["k"][-1]), "K, neighbours a seed")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel("of the pool chosen")
        axes.legend(loc="center left")
        share = float(np.interp(k, data["k"], data["share"]))
        return svg(figure, f"Saturation: share of the pool chosen against K; {share:.0%} at K = {k}")


def hubs(data: dict[str, Any], num_seeds: int, num_eligible: int, k: int) -> str:
    """How many clips are chosen how often, log-log; beside the binomial law of uniform picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(data["times"], data["clips"], "o", color=CHOSEN, markersize=4, label="pool clips")
        law = scipy.stats.binom(num_seeds, min(k / num_eligible, 1.0))
        times = np.unique(np.round(np.geomspace(1, max(int(data["times"][-1]), 2), 200)).astype(int))
        expected = num_eligible * law.pmf(times)
        seen = expected >= 0.5
        axes.plot(times[seen], expected[seen], "--", color=RANDOM, linewidth=1.6, label="uniform picks")
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _rank_axis(axes, int(data["times"][-1]), "seeds that have the clip among their neighbours")
        axes.set_ylabel("clips")
        axes.legend(loc="upper right")
        return svg(
            figure, f"Hubness: clips by how often they are chosen; the most chosen by {data['times'][-1]:,} seeds"
        )


def similarity(data: dict[str, Any]) -> str:
    """Quantiles over seeds of the similarity at each rank."""
    low, quarter, median, three_quarters, high = data["quantiles"]
    rank = data["rank"]
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.fill_between(rank, low, high, color=CHOSEN, alpha=0.15, linewidth=0, label="90 % of seeds")
        axes.fill_between(rank, quarter, three_quarters, color=CHOSEN, alpha=0.3, linewidth=0, label="50 % of seeds")
        axes.plot(rank, median, color=CHOSEN, linewidth=2.2, label="median")
        _rank_axis(axes, int(rank[-1]), "rank")
        axes.set_ylabel("cosine similarity")
        axes.legend(loc="lower left")
        return svg(figure, f"Similarity by rank: median {median[0]:.3f} at rank 1, {median[-1]:.3f} at rank {rank[-1]}")


def agreement(data: dict[str, Any]) -> str:
    """Label agreement by rank, raw and with ancestors, beside random picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        kinds = [("raw", CHOSEN, "labels as given", "-")]
        if "ancestors" in data:
            kinds.append(("ancestors", OTHER, "with the ontology's ancestors", "-."))
        for kind, colour, label, line in kinds:
            axes.plot(data["rank"], data[kind], color=colour, linewidth=2, linestyle=line, label=label)
            if data[f"{kind}_random"] is not None:
                axes.axhline(
                    data[f"{kind}_random"], color=colour, linewidth=1.3, linestyle=":", label=f"{label}: random"
                )
        _rank_axis(axes, int(data["rank"][-1]), "rank")
        axes.set_ylim(0, None)
        axes.set_ylabel("label agreement")
        axes.legend(loc="upper right", fontsize=10)
        return svg(
            figure, f"Label agreement by rank: {data['raw'][0]:.3f} at rank 1, {data['raw'][-1]:.3f} at the last"
        )


def lift(data: dict[str, Any]) -> str:
    """Precision lift by rank, macro over labels."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(data["rank"], data["lift"], color=CHOSEN, linewidth=2, label="neighbours")
        axes.axhline(1, color=RANDOM, linewidth=1.4, linestyle="--", label="random picks")
        _rank_axis(axes, int(data["rank"][-1]), "rank")
        axes.set_yscale("log")
        low, high = (float(f(data["lift"], initial=1)) for f in (np.nanmin, np.nanmax))
        ticks = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5) if low * 0.9 <= m * 10.0**e <= high * 1.1]
        axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("precision lift")
        axes.legend(loc="upper right")
        return svg(figure, f"Precision lift by rank: {data['lift'][0]:.1f} times chance at rank 1")


def labels(rows: list[dict[str, Any]]) -> str:
    """Clips a label before and after, log scale: the most and the least frequent labels."""
    shown = rows if len(rows) <= 2 * NUM_LABELS else rows[:NUM_LABELS] + rows[-NUM_LABELS:]
    with canvas(9.0, 1.1 + 0.27 * len(shown)) as (figure, (axes,)):
        place = np.arange(len(shown))[::-1]
        before, after = (np.array([row[key] for row in shown]) for key in ("before", "after"))
        axes.hlines(place, before, after, color=QUIET, linewidth=1.2)
        axes.plot(before, place, "o", color=RANDOM, markersize=5, markerfacecolor="none", label="seeds")
        axes.plot(after, place, "o", color=CHOSEN, markersize=6, label="seeds and neighbours")
        if len(shown) < len(rows):
            axes.axhline(NUM_LABELS - 0.5, color=INK, linewidth=0.8, linestyle=":")
        least, most = int(before.min()), max(int(after.max()), 1)
        if least:
            axes.set_xscale("log")
            axes.set_xlim(least / 1.5, most * 1.5)
        else:
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(-0.1, most * 1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(place, [_short(row["name"]) for row in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel("clips with the label")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return svg(figure, f"Labels before and after: {len(shown)} of {len(rows)} labels, clips on a log scale")


def _short(name: str) -> str:
    return (name if len(name) <= 34 else f"{name[:33]}…").replace("$", r"\$")


def sweep(rows: list[dict[str, Any]]) -> str:
    """Share of the pool and label agreement against K over the runs of a sweep."""
    with canvas(9.0, 3.6, columns=2) as (figure, (left, right)):
        ks = [row["k"] for row in rows]
        for axes, key, label in (
            (left, "pool_share", "of the pool chosen"),
            (right, "label_agreement", "label agreement"),
        ):
            chance = "pool_share_uniform" if key == "pool_share" else f"{key}_random"
            for column, colour, line, name in ((key, CHOSEN, "o-", "neighbours"), (chance, RANDOM, "s--", "chance")):
                values = [np.nan if row[column] is None else row[column] for row in rows]
                axes.plot(ks, values, line, color=colour, linewidth=1.8, markersize=5, label=name)
            _rank_axis(axes, max(ks), "K", min(ks))
            axes.set_xticks(sorted(set(ks)), [f"{k:,}" for k in sorted(set(ks))])
            axes.set_ylim(0, None)
            axes.set_ylabel(label)
            axes.legend(loc="best")
        left.yaxis.set_major_formatter(PercentFormatter(1.0))
        return svg(figure, f"Sweep over K: share of the pool and label agreement of {len(rows)} runs")

"""The figures of report.html: what `run_stats.measure` measured, drawn.

Each takes its part of the measurements and gives SVG, the same bytes for the same numbers. Chance is dashed and
in its own colour everywhere; nothing is told by colour alone. Each figure's description says its main number, for those
who do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from balance.records import Float64, Int64, RandomSimilarity
from balance.report.svg import CHOSEN, INK, OTHER, QUIET, RANDOM, canvas, legend, short_name, svg
from balance.stats.run_stats import Hubs, LabelCounts, LabelsByRank, Saturation, SimilarityByRank

NUM_LABELS = 12  # most and least frequent in the figure; all are in the table
_WIDE = (9.0, 3.6)


def _rank_axis(axes: Axes, highest: int, label: str, lowest: int = 1) -> None:
    axes.set_xscale("log")
    axes.set_xlim(lowest * 0.96, max(highest, 2 * lowest) * 1.04)
    axes.set_xlabel(label)
    digits = (1, 2, 5) if highest >= 10 else range(1, 10)
    ticks = [m * 10**e for e in range(8) for m in digits if lowest <= m * 10**e <= highest]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")


def _ranks(by_rank: Float64) -> Int64:
    return np.arange(1, len(by_rank) + 1)


def saturation(data: Saturation, k: int) -> Markup:
    """Share of the eligible pool in the union, against K; beside uniform picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(data.k, data.share, color=CHOSEN, linewidth=2.2, label="neighbours")
        axes.plot(data.k, data.uniform, color=RANDOM, linewidth=1.6, linestyle="--", label="uniform picks")
        highest = int(data.k[-1])
        low = k * k < highest  # this run stands in the left half of the axis
        axes.axvline(k, color=QUIET, linewidth=1)
        axes.annotate(
            f"this run, K = {k}", (k, 1), xytext=(0, 5), textcoords="offset points", ha="left" if low else "right",
            annotation_clip=False,
        )  # fmt: skip
        _rank_axis(axes, highest, "K, neighbours per seed")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel("of the pool chosen")
        legend(axes, columns=2, at_right=low)
        share = float(np.interp(k, data.k, data.share))
        return svg(figure, f"Saturation: share of the pool chosen against K; {share:.0%} at K = {k}")


def hubs(data: Hubs, num_seeds: int, num_eligible: int, k: int) -> Markup:
    """How many clips are chosen how often, log-log; beside the binomial law of uniform picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(data.times, data.clips, "o", color=CHOSEN, markersize=4, label="pool clips")
        law = scipy.stats.binom(num_seeds, min(k / num_eligible, 1.0))
        times = np.unique(np.round(np.geomspace(1, max(int(data.times[-1]), 2), 200)).astype(int))
        expected = num_eligible * law.pmf(times)
        seen = expected >= 0.5
        axes.plot(times[seen], expected[seen], "--", color=RANDOM, linewidth=1.6, label="uniform picks")
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _rank_axis(axes, int(data.times[-1]), "seeds that have the clip among their neighbours")
        axes.set_ylabel("clips")
        legend(axes, columns=2)
        return svg(figure, f"Hubness: clips by how often they are chosen; the most chosen by {data.times[-1]:,} seeds")


def similarity(data: SimilarityByRank, random: RandomSimilarity) -> Markup:
    """Quantiles over seeds of the similarity at each rank, beside random pairs."""
    low, quarter, median, three_quarters, high = data.quantiles
    rank = data.rank
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.fill_between(rank, low, high, color=CHOSEN, alpha=0.15, linewidth=0, label="90 % of seeds")
        axes.fill_between(rank, quarter, three_quarters, color=CHOSEN, alpha=0.3, linewidth=0, label="50 % of seeds")
        axes.plot(rank, median, color=CHOSEN, linewidth=2.2, label="median")
        axes.axhline(random.mean, color=RANDOM, linewidth=1.6, linestyle="--", label="random pairs")
        _rank_axis(axes, int(rank[-1]), "rank")
        axes.set_ylabel("cosine similarity")
        legend(axes, columns=4)
        return svg(figure, f"Similarity by rank: median {median[0]:.3f} at rank 1, {median[-1]:.3f} at rank {rank[-1]}")


def agreement(data: LabelsByRank) -> Markup:
    """Label agreement by rank, raw and with ancestors, beside random picks."""
    with canvas(*_WIDE) as (figure, (axes,)):
        kinds = [(data.raw, CHOSEN, "labels as given", "-")]
        if data.ancestors is not None:
            kinds.append((data.ancestors, OTHER, "with the ontology's ancestors", "-."))
        raw = data.raw.by_rank
        for kind, colour, label, line in kinds:
            axes.plot(_ranks(raw), kind.by_rank, color=colour, linewidth=2, linestyle=line, label=label)
            if kind.random is not None:
                axes.axhline(kind.random, color=colour, linewidth=1.3, linestyle=":", label=f"{label}: random")
        _rank_axis(axes, len(raw), "rank")
        axes.set_ylim(0, None)
        axes.set_ylabel("label agreement")
        legend(axes, columns=2)
        return svg(figure, f"Label agreement by rank: {raw[0]:.3f} at rank 1, {raw[-1]:.3f} at the last")


def lift(data: LabelsByRank) -> Markup:
    """Precision lift by rank, macro over labels."""
    with canvas(*_WIDE) as (figure, (axes,)):
        axes.plot(_ranks(data.lift), data.lift, color=CHOSEN, linewidth=2, label="neighbours")
        axes.axhline(1, color=RANDOM, linewidth=1.4, linestyle="--", label="random picks")
        _rank_axis(axes, len(data.lift), "rank")
        axes.set_yscale("log")
        low, high = (float(f(data.lift, initial=1)) for f in (np.nanmin, np.nanmax))
        ticks = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5) if low * 0.9 <= m * 10.0**e <= high * 1.1]
        axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("precision lift")
        legend(axes, columns=2)
        return svg(figure, f"Precision lift by rank: {data.lift[0]:.1f} times chance at rank 1")


def labels(rows: Sequence[LabelCounts]) -> Markup:
    """Clips per label before and after, log scale: the most and the least frequent labels."""
    shown = rows if len(rows) <= 2 * NUM_LABELS else (*rows[:NUM_LABELS], *rows[-NUM_LABELS:])
    with canvas(9.0, 1.1 + 0.27 * len(shown)) as (figure, (axes,)):
        place = np.arange(len(shown))[::-1]
        before, after = np.array([row.before for row in shown]), np.array([row.after for row in shown])
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
        axes.set_yticks(place, [short_name(row.name) for row in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel("clips with the label")
        legend(axes, columns=2)
        return svg(figure, f"Labels before and after: {len(shown)} of {len(rows)} labels, clips on a log scale")


@dataclass(frozen=True, slots=True)
class SweepPanel:
    """A figure of a sweep. title: what it shows; chosen, chance: columns of sweep.csv, of the runs and of what they are
    held against; beside: what `chance` is, in words."""

    title: str
    chosen: str
    chance: str
    beside: str


SWEEP_PANELS = (
    SweepPanel("share of the pool chosen", "pool_share", "pool_share_uniform", "uniform picks"),
    SweepPanel("label agreement at K", "label_agreement", "label_agreement_random", "random picks"),
    SweepPanel("label recall at K", "label_recall", "label_recall_random", "random picks"),
    SweepPanel("label entropy of the augmented set", "label_entropy_after", "label_entropy_before", "seeds alone"),
)


def sweep(table: Mapping[str, Float64]) -> list[tuple[SweepPanel, Markup]]:
    """A chart against K for each figure that any run has, with a mark for each K that the page shows or hides: the
    group whose id ends in `-k10`. table: columns of sweep.csv, (n,) each, NaN where a run has no such figure."""
    ks = [int(k) for k in table["k"]]
    drawn = []
    for panel in SWEEP_PANELS:
        chosen, chance = table[panel.chosen], table[panel.chance]
        if np.isnan(chosen).all():
            continue
        with canvas(4.6, 3.2) as (figure, (axes,)):
            axes.plot(ks, chosen, "o-", color=CHOSEN, linewidth=1.8, markersize=5, label="neighbours")
            axes.plot(ks, chance, "s--", color=RANDOM, linewidth=1.8, markersize=5, label=panel.beside)
            _rank_axis(axes, max(ks), "K, neighbours per seed", min(ks))
            axes.set_xticks(sorted(set(ks)), [f"{k:,}" for k in sorted(set(ks))])
            axes.set_ylim(0, 1.05 * max(np.nanmax(chosen), np.nanmax(chance, initial=0), 1e-9))
            if panel.chosen == "pool_share":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            for k in sorted(set(ks)):
                axes.axvline(k, color=OTHER, linewidth=2, gid=f"k{k}")
            legend(axes, columns=2)
            ends = f"{chosen[0]:.3f} at K = {ks[0]}, {chosen[-1]:.3f} at K = {ks[-1]}"
            drawn.append((panel, svg(figure, f"{panel.title} against K: {ends}")))
    return drawn

"""The probe's three figures as inline SVG (see `report.svg`).

In: `Findings`; out: SVG text, the same bytes for the same input; empty where there is nothing to draw.
"""

from __future__ import annotations

import matplotlib.ticker
from markupsafe import Markup
from matplotlib.axes import Axes

from balance.probe import training_sets
from balance.probe.findings import ArmFindings, Findings, Interval
from balance.probe.intervals import EQUIVALENCE, Verdict
from balance.probe.sentences import reading_name
from balance.report.svg import (
    CHOSEN,
    GAIN,
    INK,
    LOSS,
    OTHER,
    PAPER,
    POOL,
    QUIET,
    RANDOM,
    RULE,
    canvas,
    legend,
    short_name,
    svg,
)

LINES = {
    training_sets.NEIGHBOURS: (CHOSEN, "o", "seeds + neighbours"),
    training_sets.RANDOM: (RANDOM, "s", "seeds + as many random clips"),
    training_sets.STRATIFIED: (OTHER, "^", "seeds + same label sets"),
}
POOLS = {
    # beside each other and the largest k: they have one size
    training_sets.POOL: ("D", 8, 1.05, "whole pool"),
    training_sets.POOL_WEIGHTED: ("*", 11, 1.12, "whole pool, weighted"),
}
RIVAL_MARKERS = "hpHd<>"
MARKERS = "oDs^v<>P"  # of the readings
NUM_LABELS = 14  # in the figure of labels: the strongest gains and losses, so many in all


def size_curve(found: Findings, classifier: str) -> Markup:
    """mAP against training-set size, log axis, with intervals; one line per selection rule."""
    rows = [(arm, arm.readings[classifier]["map"]) for arm in found.arms]
    rows = [(arm, value) for arm, value in rows if value.value is not None]
    with canvas(8.6, 4.6) as (plot, (axes,)):
        seeds = [row for row in rows if row[0].rule == training_sets.SEEDS]
        words: dict[str, str] = {}  # of the rivals' markers
        for rule in LINES:
            of_rule = [row for row in rows if row[0].rule == rule and " as " not in row[0].arm]
            if of_rule:
                _line(axes, rule, seeds, of_rule)
        for arm, value in rows:
            if arm.rule in POOLS:
                marker, size, shift, word = POOLS[arm.rule]
                _point(axes, arm.num_clips * shift, value, POOL, marker, size=size)
                axes.plot([], [], marker=marker, color=POOL, linestyle="none", label=word)
            elif arm.rule == training_sets.RUN:
                _point(axes, arm.num_clips, value, INK, "P", size=9)
                _note(axes, short_name(arm.arm), arm.num_clips, value, at_left=True)
            elif arm.rule == training_sets.PER_SEED:
                _point(axes, arm.num_clips, value, INK, "P", size=8)
                axes.plot([], [], marker="P", color=INK, linestyle="none", label="seeds + K per seed")
            elif arm.rule in training_sets.RIVALS:
                marker = RIVAL_MARKERS[training_sets.RIVALS.index(arm.rule)]
                _point(axes, arm.num_clips, value, OTHER, marker, size=6)
                words[marker] = arm.rule.replace("_", " ")
            elif arm.rule == training_sets.SEEDS:
                _point(axes, arm.num_clips, value, INK, "o", size=8)
                _note(axes, "seeds", arm.num_clips, value)
        for marker, word in words.items():
            axes.plot([], [], marker=marker, color=OTHER, linestyle="none", label=word)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{int(x):,}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("training clips (log scale)")
        axes.set_ylabel("mAP")
        if axes.get_legend_handles_labels()[0]:
            legend(axes, columns=3)
        return svg(plot, f"mAP against the number of training clips, {reading_name(classifier)}")


def _line(
    axes: Axes, rule: str, seeds: list[tuple[ArmFindings, Interval]], of_rule: list[tuple[ArmFindings, Interval]]
) -> None:
    colour, marker, title = LINES[rule]
    line = [*seeds, *of_rule]
    xs = [arm.num_clips for arm, _ in line]
    ys = [_number(value.value) for _, value in line]
    axes.plot(xs, ys, color=colour, linewidth=2, zorder=2, label=title, marker=marker)
    lows, highs = zip(*(_ends(value) for _, value in line), strict=True)
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=1)
    if rule != training_sets.NEIGHBOURS:
        return
    above = True
    for at, (arm, value) in enumerate(of_rule):
        # neighbouring sizes that nearly coincide: one label above, the next below
        close = at > 0 and arm.num_clips < 1.2 * of_rule[at - 1][0].num_clips
        above = not above if close else True
        axes.annotate(
            f"k={arm.k}", (arm.num_clips, _number(value.value)), xytext=(0, 10 if above else -19),
            textcoords="offset points", ha="center", color=colour, fontsize=10, fontweight="bold",
            bbox={"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 1.0}, zorder=5,
        )  # fmt: skip


def _ends(value: Interval) -> tuple[float, float]:
    """The interval, or the value where there is none."""
    return (
        _number(value.value if value.low is None else value.low),
        _number(value.value if value.high is None else value.high),
    )


def _number(value: float | None) -> float:
    """What matplotlib draws; nothing for None."""
    return float("nan") if value is None else value


def _point(axes: Axes, x: float, value: Interval, colour: str, marker: str, *, size: float) -> None:
    axes.plot([x, x], _ends(value), color=colour, linewidth=1.6, solid_capstyle="round", zorder=3)
    axes.plot([x], [_number(value.value)], marker=marker, color=colour, markersize=size, zorder=6, linestyle="none")


def _note(axes: Axes, text: str, x: float, value: Interval, *, at_left: bool = False) -> None:
    axes.annotate(
        text, (x, _number(value.value)), xytext=(-8, 8) if at_left else (8, -14), textcoords="offset points",
        ha="right" if at_left else "left", fontsize=10,
        bbox={"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 1.0}, zorder=5,
    )  # fmt: skip


def gain_forest(found: Findings) -> Markup:
    """The difference to as many random clips, by K and classifier, with intervals."""
    rows = [
        r
        for r in found.comparisons
        if r.figure == "map" and r.against_rule == training_sets.RANDOM and r.low is not None
    ]
    names = list(dict.fromkeys(r.arm for r in rows))
    if not names:
        return Markup()
    with canvas(8.6, 1.4 + 0.8 * len(names)) as (plot, (axes,)):
        axes.axvspan(-EQUIVALENCE, EQUIVALENCE, color=RULE, alpha=0.7, linewidth=0, zorder=0)
        axes.axvline(0.0, color=INK, linewidth=1)
        readings = list(dict.fromkeys(r.reading for r in rows))
        for row in rows:
            at = readings.index(row.reading)
            y = names.index(row.arm) + 0.62 * ((at + 0.5) / len(readings) - 0.5)
            colour = {Verdict.gain: GAIN, Verdict.loss: LOSS}.get(row.verdict, QUIET)
            axes.plot([_number(row.low), _number(row.high)], [y, y], color=colour, linewidth=2.4 if at == 0 else 1.3)
            axes.plot(
                [_number(row.value)], [y], marker=MARKERS[at % len(MARKERS)], color=colour,
                markersize=8 if at == 0 else 5, markerfacecolor=colour if at == 0 else PAPER, linestyle="none",
            )  # fmt: skip
        for at, reading in enumerate(readings):
            axes.plot([], [], marker=MARKERS[at % len(MARKERS)], color=INK, linestyle="none",
                      markerfacecolor=INK if at == 0 else PAPER, label=reading_name(reading))  # fmt: skip
        legend(axes, columns=4)
        axes.set_xlabel("mAP above as many random pool clips (0: no difference)")
        _named_rows(axes, [short_name(name) for name in names])
        return svg(plot, "Gain in mAP over random picks of the same number")


def label_gains(found: Findings) -> Markup:
    """The labels with the strongest gains and losses, with intervals, of those that are tested."""
    tested = sorted((x for x in found.labels if x.p is not None), key=lambda x: (-(x.gain or 0.0), x.id))
    if not tested:
        return Markup()
    half = NUM_LABELS // 2
    shown = tested if len(tested) <= NUM_LABELS else tested[:half] + tested[-half:]
    with canvas(8.6, 0.9 + 0.33 * len(shown)) as (plot, (axes,)):
        axes.axvline(0.0, color=INK, linewidth=1)
        for i, row in enumerate(shown):
            colour = QUIET if not row.resolved else GAIN if (row.gain or 0.0) > 0 else LOSS
            axes.plot([_number(row.low), _number(row.high)], [i, i], color=colour, linewidth=2)
            axes.plot([_number(row.gain)], [i], marker="o", color=colour, linestyle="none", markersize=7)
        if len(shown) < len(tested):
            axes.axhline(half - 0.5, color=RULE, linewidth=1, linestyle=(0, (4, 4)))
        axes.set_xlabel("AP above as many random pool clips")
        _named_rows(axes, [f"{short_name(x.name)} ({x.num_evaluation})" for x in shown])
        return svg(plot, "Gain in average precision by label")


def _named_rows(axes: Axes, names: list[str]) -> None:
    """Rows 0, 1, … from the top, each with its name."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")

"""finetune.html: the trainings beside the probe, as one self-contained page.

In: `Findings`; out: HTML text, the same bytes for the same findings. Sentences first, then the figure, then numbers.
"""

from __future__ import annotations

from markupsafe import Markup

from balance.finetune.agreement import ArmResult, Findings
from balance.probe import training_sets
from balance.report import html
from balance.report.svg import CHOSEN, INK, OTHER, POOL, RANDOM, canvas, short_name, svg

_LOOK = {
    training_sets.NEIGHBOURS: (CHOSEN, "o"),
    training_sets.RANDOM: (RANDOM, "s"),
    training_sets.SEEDS: (INK, "o"),
    training_sets.POOL: (POOL, "D"),
    training_sets.POOL_WEIGHTED: (POOL, "*"),
}


def render(dataset: str, found: Findings) -> str:
    """The page's text."""
    template = html.environment().get_template("finetune.html")
    return template.render(dataset=dataset, found=found, figure=_scatter(found.arms))


def _scatter(arms: tuple[ArmResult, ...]) -> Markup:
    """mAP by training against mAP by the probe, a point with its interval per arm."""
    with canvas(8.6, 4.8) as (plot, (axes,)):
        for arm in arms:
            if arm.probe_map is None or arm.map.value is None:
                continue
            colour, marker = _LOOK.get(arm.rule, (OTHER, "^"))
            low, high = (arm.map.value if end is None else end for end in (arm.map.low, arm.map.high))
            axes.plot([arm.probe_map] * 2, [low, high], color=colour, linewidth=1.6, zorder=2)
            axes.plot([arm.probe_map], [arm.map.value], marker=marker, color=colour, markersize=8, zorder=3)
            axes.annotate(
                short_name(arm.arm), (arm.probe_map, arm.map.value), xytext=(8, 4), textcoords="offset points",
                fontsize=9, color=colour,
            )  # fmt: skip
        axes.margins(x=0.18)
        axes.set_xlabel("mAP by the probe")
        axes.set_ylabel("mAP after training")
        return svg(plot, "mAP after training against mAP by the probe, one point per training set")

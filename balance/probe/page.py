"""probe.html: what `findings.find` found, as one self-contained page for light and dark, keyboard and screen reader.

In: the findings; out: HTML text, the same bytes for the same findings. Sentences first, figures next, then all numbers
as tables: nothing is shown by colour alone.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from balance.probe import training_sets
from balance.probe.figures import gain_forest, label_gains, size_curve
from balance.report import html


def render(dataset: str, found: dict[str, Any]) -> str:
    """The page's text."""
    figures = {
        "logistic": Markup(size_curve(found, "logistic")),
        "knn": Markup(size_curve(found, "knn")),
        "forest": Markup(gain_forest(found)),
        "labels": Markup(label_gains(found)),
    }
    against_random = [r for r in found["comparisons"] if r["figure"] == "map" and r["reading"] == "logistic"]
    return (
        html.environment()
        .get_template("probe.html")
        .render(
            dataset=dataset,
            found=found,
            figures=figures,
            comparisons=against_random,
            tested=sorted((x for x in found["labels"] if x["gain"] is not None), key=lambda x: (-x["gain"], x["id"])),
            random_rule=training_sets.RANDOM,
        )
    )

"""probe.html: what the probe found, as one self-contained page for light and dark, keyboard and screen reader.

In: `Findings`; out: HTML text, the same bytes for the same findings. Sentences first, figures next, then all numbers as
tables: nothing is shown by colour alone.
"""

from __future__ import annotations

from balance.probe.figures import gain_forest, label_gains, size_curve
from balance.probe.findings import Findings, LabelFindings
from balance.probe.logistic import SETTLED
from balance.probe.results import LINEAR
from balance.probe.sentences import reading_name
from balance.report import html


def render(dataset: str, found: Findings) -> str:
    """The page's text."""
    of_space = 1 if found.same_space else 0
    of_map = [row for row in found.comparisons if row.figure == "map"]
    by_pair = {(one.arm, one.against): one for one in found.conclusions}
    return (
        html.environment()
        .get_template("probe.html")
        .render(
            dataset=dataset,
            found=found,
            title=found.sentences[of_space].split(":")[0],  # what is said of K, without its reason
            space=found.sentences[0] if found.same_space else None,
            sentences=found.sentences[of_space:],
            settled=SETTLED,
            figures={
                "curves": [(reading_name(name), size_curve(found, name)) for name in found.readings],
                "forest": gain_forest(found),
                "labels": label_gains(found),
            },
            comparisons=[(r, by_pair[r.arm, r.against]) for r in of_map if r.reading == LINEAR],
            readings=[(name, reading_name(name)) for name in found.readings],
            label_sets=[("map", "as given"), ("map_ancestors", "with ancestors")]
            if "map_ancestors" in found.arms[0].readings[LINEAR]
            else [("map", "as given")],
            labels=sorted((x for x in found.labels if x.gain is not None), key=_by_gain),
        )
    )


def _by_gain(label: LabelFindings) -> tuple[float, str]:
    return -(label.gain or 0.0), label.id

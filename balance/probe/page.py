"""probe.html: what the probe found, as one self-contained page for light and dark, keyboard and screen reader.

In: `Findings`; out: HTML text, the same bytes for the same findings. Sentences first, figures next, then all numbers as
tables: nothing is shown by colour alone.
"""

from __future__ import annotations

from balance.probe.figures import gain_forest, label_gains, size_curve
from balance.probe.findings import Findings, LabelFindings
from balance.probe.logistic import SETTLED
from balance.probe.results import CLASSIFIERS
from balance.report import html


def render(dataset: str, found: Findings) -> str:
    """The page's text."""
    of_space = 1 if found.same_space else 0
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
                "logistic": size_curve(found, "logistic"),
                "knn": size_curve(found, "knn"),
                "forest": gain_forest(found),
                "labels": label_gains(found),
            },
            comparisons=[r for r in found.comparisons if r.figure == "map" and r.reading == CLASSIFIERS[0]],
            labels=sorted((x for x in found.labels if x.gain is not None), key=_by_gain),
        )
    )


def _by_gain(label: LabelFindings) -> tuple[float, str]:
    return -(label.gain or 0.0), label.id

"""One page and one table for a sweep, over the runs that are complete."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from markupsafe import Markup

from balance.report import figures, html
from balance.runtime import files

SWEEP_COLUMNS = (
    "k",
    "num_seeds",
    "num_neighbours",
    "pool_share",
    "pool_share_uniform",
    "label_agreement",
    "label_agreement_random",
    "label_recall",
    "label_recall_random",
    "label_entropy_before",
    "label_entropy_after",
)


def write_sweep(root: Path) -> list[Path]:
    """`sweep.csv` and `report.html` at a sweep's root, over the runs that are complete; nothing while there is none."""
    rows = []
    for path in sorted(root.glob("**/summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        run = path.parent.relative_to(root).as_posix()
        link = f"{run}/report.html" if (path.parent / "report.html").exists() else None
        rows.append({"run": run, "page": link, **{name: summary[name] for name in SWEEP_COLUMNS}})
    if not rows:
        return []
    rows.sort(key=lambda row: (row["k"], row["run"]))
    table, page = root / "sweep.csv", root / "report.html"
    with files.atomic_text(table) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *SWEEP_COLUMNS))
        writer.writerows([row["run"], *("" if row[c] is None else row[c] for c in SWEEP_COLUMNS)] for row in rows)
    with files.atomic_text(page) as file:
        figure = Markup(figures.sweep(rows))
        file.write(
            html.environment().get_template("sweep.html").render(rows=rows, columns=SWEEP_COLUMNS, figure=figure)
        )
    return [table, page]

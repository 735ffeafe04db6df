"""One page and one table for a sweep, over the runs that are complete: those whose `summary.json` is there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from balance.errors import UserError
from balance.report import figures, html
from balance.runtime import files

MARKED_SHARE = 0.5  # of the pool: beyond, a K comes close to taking all of it
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


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A run of a sweep. run: its folder below the sweep's; link: to its page, None where it has none; figures:
    SWEEP_COLUMNS of its summary."""

    run: str
    link: str | None
    figures: Mapping[str, float | None]

    @property
    def k(self) -> int:
        return int(self.figures["k"] or 0)


def write_sweep(root: Path) -> list[SweepRow]:
    """`sweep.csv` and `report.html` at a sweep's root, over the rows returned; nothing while no run is complete."""
    rows = sorted((_row(root, path) for path in root.glob("**/summary.json")), key=lambda row: (row.k, row.run))
    if not rows:
        return []
    table, page = root / "sweep.csv", root / "report.html"
    with files.atomic_text(table) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *SWEEP_COLUMNS))
        writer.writerows(
            [row.run, *("" if (x := row.figures[c]) is None else x for c in SWEEP_COLUMNS)] for row in rows
        )
    columns = {name: np.array([row.figures[name] for row in rows], dtype=np.float64) for name in SWEEP_COLUMNS}
    template = html.environment().get_template("sweep.html")
    with files.atomic_text(page) as file:
        file.write(
            template.render(
                rows=rows,
                columns=SWEEP_COLUMNS,
                figures=figures.sweep(columns),
                ks=sorted({row.k for row in rows}),
                marked=_marked(rows),
            )
        )
    return rows


def _marked(rows: list[SweepRow]) -> int:
    """The K that the charts mark at first: the largest that takes at most half of the pool, else the smallest."""
    return max((row.k for row in rows if (row.figures["pool_share"] or 0) <= MARKED_SHARE), default=rows[0].k)


def _row(root: Path, path: Path) -> SweepRow:
    try:
        summary = json.loads(path.read_text("utf-8"))
        found = {name: None if summary[name] is None else float(summary[name]) for name in SWEEP_COLUMNS}
    except (ValueError, TypeError, LookupError, RecursionError):
        raise UserError(
            f"{path} cannot be read as the summary of a run: take its folder out of the sweep, or run that job again"
        ) from None
    run = path.parent.relative_to(root).as_posix()
    # `./` and quotes: a folder may be called `javascript:…`, and a link must stay a link to a folder
    link = f"./{quote(os.fsencode(run))}/report.html" if (path.parent / "report.html").exists() else None
    return SweepRow(run, link, {name: None if found[name] is None else summary[name] for name in SWEEP_COLUMNS})

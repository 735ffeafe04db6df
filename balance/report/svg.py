"""Inline SVG that follows its page: matplotlib draws, the page's style sheet colours. Shared by all pages.

Each colour is drawn as a sentinel that is replaced by a CSS variable, so one figure serves light and dark pages; text
stays text (for a screen reader, and small). Names that come from users are drawn as they are: matplotlib's mathematics
(`$…$`) is off. The same input gives the same bytes: no date, fixed salt. Price: the reader's sans-serif is not the one
that matplotlib measured; labels have room for it.
"""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# sentinel colour -> CSS variable of the page
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--quiet",
    "#030303": "--rule",
    "#040404": "--chosen",
    "#050505": "--random",
    "#060606": "--other",
    "#070707": "--paper",
    "#080808": "--pool",
    "#090909": "--gain",
    "#0a0a0a": "--loss",
}
INK, QUIET, RULE, CHOSEN, RANDOM, OTHER, PAPER, POOL, GAIN, LOSS = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "balance",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_LONGEST_NAME = 34  # characters of a label's name in a figure


@contextmanager
def canvas(width: float, height: float, *, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of one row of axes in the house style; width, height in inches of 72 px."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def legend(axes: Axes, *, columns: int, at_right: bool = False) -> None:
    """The legend above the axes, where it covers no line."""
    axes.legend(
        loc="lower right" if at_right else "lower left", bbox_to_anchor=(1 if at_right else 0, 1), ncols=columns,
        borderaxespad=0.2, fontsize=10,
    )  # fmt: skip


def short_name(name: str) -> str:
    """A user's name in one line of at most _LONGEST_NAME characters."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…"


def svg(figure: Figure, label: str) -> Markup:
    """The figure as `<svg role="img">` with `label` as its description; call inside `canvas`."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib's font lacks a script of some label's name; the reader's browser has its own
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in _COLOURS.items():
        text = text.replace(colour, f"var({name})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # font lists name fonts of the drawing machine; the page's own is wanted
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    described = html.escape(label, quote=True)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
        lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{described}">',
        text,
        count=1,
    )
    prefix = f"f{zlib.crc32(label.encode()):08x}"  # ids must differ between the figures of one page
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return Markup("\n".join(line.rstrip() for line in text.splitlines()))

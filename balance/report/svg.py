"""Inline SVG that follows its page: matplotlib draws, the page's style sheet colours.

Each colour is drawn as a sentinel that is replaced by a CSS variable, so one figure serves light and dark pages; text
stays text (a screen reader's, and small). The same input gives the same bytes: no date, fixed salt. Price: the reader's
sans-serif is not the one that matplotlib measured; labels have room for it.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
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
    "#080808": "--stratified",
    "#090909": "--pool",
    "#0a0a0a": "--gain",
    "#0b0b0b": "--loss",
}
INK, QUIET, RULE, CHOSEN, RANDOM, OTHER, PAPER, STRATIFIED, POOL, GAIN, LOSS = _COLOURS


@contextmanager
def canvas(width: float, height: float, *, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of one row of axes in the house style; width, height in inches of 72 px."""
    style: dict[Any, Any] = {
        "svg.hashsalt": "balance",
        "svg.fonttype": "none",
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
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def svg(figure: Figure, label: str) -> str:
    """The figure as `<svg role="img">` with `label` as its description; call inside `canvas`."""
    stream = io.StringIO()
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
    return "\n".join(line.rstrip() for line in text.splitlines())

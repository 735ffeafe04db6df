"""What the HTML pages share: templates beside the package, everything escaped, nothing undefined, how numbers read."""

from __future__ import annotations

from pathlib import Path

import jinja2

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def environment() -> jinja2.Environment:
    """The templates with their filters: count (1,234), percent (12.3%), figure (0.123), signed (+0.1230), short (1,234
    or 0.123), capital (the first letter)."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters["count"] = lambda value: f"{int(value):,}"
    made.filters["percent"] = lambda value: "–" if value is None else f"{value:.1%}"
    made.filters["figure"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    made.filters["signed"] = lambda value, digits=4: "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")
    made.filters["short"] = _short
    made.filters["capital"] = lambda text: text if text.startswith("mAP") else text[:1].upper() + text[1:]
    return made


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{int(value):,}" if value == int(value) else f"{value:.3f}"

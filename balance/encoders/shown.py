"""Values from untrusted files in messages: short, on one line, whatever they are."""

from __future__ import annotations

import reprlib
from typing import Any

_MAX_CHARS = 80


def shown(value: Any, *, quoted: bool = True) -> str:
    """About `repr(value)`, at most 80 characters; nested lists, huge numbers and control characters are harmless.

    quoted: with the quotes of a text.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, _MAX_CHARS, _MAX_CHARS
    try:
        text = short.repr(value)
    except Exception:  # a number of more digits than Python prints, a class's own repr
        text = f"a {type(value).__name__}"
    if isinstance(value, str) and not quoted:
        text = text[1:-1]
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"

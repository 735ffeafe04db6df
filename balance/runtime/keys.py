"""Configuration keys that say what they are: a dataclass field with one line of help and a mark of the common ones.

The line is what `--help` and the documentation's table of keys print, so a key is described once, where it is defined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def key(default: Any, help: str, *, common: bool = False) -> Any:
    """A field of a configuration dataclass. help: one line; common: whether the short `--help` lists it."""
    return dataclasses.field(default=default, metadata={"help": help, "common": common})


def key_from(factory: Callable[[], Any], help: str, *, common: bool = False) -> Any:
    """`key` for a default that must be made anew for each configuration, such as a list."""
    return dataclasses.field(default_factory=factory, metadata={"help": help, "common": common})

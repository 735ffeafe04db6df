"""The OmegaConf configuration inside a checkpoint, by dotted key, without OmegaConf.

In: the root that `safe_load` gives (stand-ins, dicts, lists, plain values). Out: plain values, with `${a.b}` resolved.
The price: only interpolations that are a whole value are resolved, which is all that a checkpoint's cfg needs here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from balance.encoders.safe_load import StandIn
from balance.encoders.shown import shown
from balance.errors import UserError

_MAX_STEPS = 10_000  # of one look-up: a hostile cfg refers to itself many times over
_MAX_DEPTH = 20


class Cfg:
    """Values of a pickled DictConfig (or of a plain nested dict) by dotted key. path: for messages."""

    def __init__(self, path: Path, root: Any) -> None:
        self._path = path
        self._root = root
        self._steps = 0

    def get(self, key: str, *, optional: bool = False) -> Any:
        """A plain value, a list of plain values, or None. UserError if the key is not there and not `optional`."""
        self._steps = 0
        found, value = self._find(key, depth=0)
        if not found and not optional:
            raise UserError(f"{self._path}: its cfg has no {key}")
        return value

    def integer(self, key: str, *, at_most: int = 2**31 - 1) -> int:
        """A positive int. UserError for anything else."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= at_most:
            raise self.wrong(key, value, f"a positive integer, at most {at_most:,}")
        return value

    def wrong(self, key: str, value: Any, allowed: str) -> UserError:
        return UserError(f"{self._path}: cfg.{key} is {shown(value)}, it should be {allowed}")

    def _find(self, key: str, depth: int) -> tuple[bool, Any]:
        node = self._root
        for name in key.split("."):
            node = self._resolve(node, depth)
            if not isinstance(node, dict) or name not in node:
                return False, None
            node = node[name]
        value = self._resolve(node, depth)
        return True, [self._resolve(item, depth) for item in value] if isinstance(value, list) else value

    def _resolve(self, node: Any, depth: int) -> Any:
        """A node's value: dict or list of nodes, or plain."""
        self._steps += 1
        if isinstance(node, StandIn):
            node = node.state.get("_content" if node.name.endswith("Config") else "_val")
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            if depth > _MAX_DEPTH or self._steps > _MAX_STEPS:
                raise UserError(
                    f"{self._path}: its cfg has an interpolation without end at {shown(node, quoted=False)}"
                )
            found, value = self._find(match[1], depth + 1)
            if not found:
                raise UserError(f"{self._path}: its cfg refers to {shown(node, quoted=False)}, which is not there")
            return value
        return node

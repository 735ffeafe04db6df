"""Untrusted `torch.save` files and the OmegaConf configuration pickled inside them, read without running any of it.

In: a file's bytes. Out: its content, and `Cfg`: plain values of the pickled DictConfig by dotted key. torch's
`weights_only` unpickler refuses whatever is not on its list; on it we put inert stand-ins under OmegaConf's names, so
no OmegaConf code runs and no OmegaConf version matters. The price: we resolve `${a.b}` interpolations ourselves.
There is no way round the list: a file that needs more is an error.
"""

from __future__ import annotations

import io
import re
import typing
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from balance.errors import UserError


class _Inert:
    """Stands in for an OmegaConf class: it takes the pickled attributes and does nothing."""

    _metadata: Any
    _content: Any
    _val: Any


class _Container(_Inert):
    """DictConfig and ListConfig: `_content` is a dict, list, None or an interpolation."""


class _Node(_Inert):
    """AnyNode: `_val` is a plain value or an interpolation."""


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """For collections.defaultdict: the unpickler sets items of plain dicts only."""
    return {}


_GLOBALS: list[Any] = [
    (_Container, "omegaconf.dictconfig.DictConfig"),
    (_Container, "omegaconf.listconfig.ListConfig"),
    (_Inert, "omegaconf.base.ContainerMetadata"),
    (_Inert, "omegaconf.base.Metadata"),
    (_Node, "omegaconf.nodes.AnyNode"),
    (typing.Any, "typing.Any"),
    (OrderedDict, "collections.OrderedDict"),
    (_plain_dict, "collections.defaultdict"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    (int, "builtins.int"),
]


def unpickle(path: Path, data: bytes) -> Any:
    """What `torch.save` wrote, tensors on the CPU; OmegaConf objects as inert stand-ins that `Cfg` reads.

    path: for messages. Raises UserError: truncated or damaged, no checkpoint, a pickle that names anything else.
    """
    if not data.startswith((b"PK\x03\x04", b"\x80")):
        what = "an empty file" if not data else "no zip archive and no pickle"
        raise UserError(f"{path} is not a checkpoint: {what}")
    if data.startswith(b"PK"):
        try:
            damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()  # torch itself does not compare checksums
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(f"{path} is truncated or damaged ({error}): download it again") from None
        if damaged:
            raise UserError(f"{path} is damaged ({damaged} does not match its checksum): download it again")
    try:
        with torch.serialization.safe_globals(_GLOBALS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        words = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", words)
        if named and not named[1].startswith("omegaconf."):
            raise UserError(
                f"{path} was refused and not loaded: its pickle names {named[1]}, which a checkpoint does not need "
                "and which could run code. Use the published file."
            ) from None
        reason = f"it needs {named[1]}" if named else words.split(". ")[0][:200] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be read safely: {reason}") from None


class Cfg:
    """Values of a pickled DictConfig (or of a plain nested dict) by dotted key, `${a.b}` interpolations resolved."""

    def __init__(self, path: Path, root: Any) -> None:
        self._path = path
        self._root = root

    def get(self, key: str, *, optional: bool = False) -> Any:
        """A plain value, a list of plain values, or None. UserError if the key is not there and not `optional`."""
        found, value = self._find(key, depth=0)
        if not found and not optional:
            raise UserError(f"{self._path}: its cfg has no {key}")
        return value

    def integer(self, key: str) -> int:
        """A positive int. UserError for anything else."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, value, "a positive integer")
        return value

    def wrong(self, key: str, value: Any, allowed: str) -> UserError:
        return UserError(f"{self._path}: cfg.{key} is {value!r}, it should be {allowed}")

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
        if isinstance(node, _Container):
            node = node._content
        elif isinstance(node, _Node):
            node = node._val
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            if depth > 20:
                raise UserError(f"{self._path}: its cfg has an interpolation without end at {node}")
            found, value = self._find(match[1], depth + 1)
            if not found:
                raise UserError(f"{self._path}: its cfg refers to {node}, which is not there")
            return value
        return node

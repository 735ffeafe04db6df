"""AudioSet's ontology: names of label ids, and which label implies which.

In: `ontology.json`, a JSON list of objects with `id`, `name` and `child_ids`. Out: plain dicts, empty where there is no
such file: labels then go by their ids. The whole file is checked when the names are read, before any work. A label
that is its own ancestor does no harm; a hierarchy of more levels than anybody can mean is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balance.data.label_map import read_label_names
from balance.errors import UserError
from balance.runtime.files import write_json
from balance.runtime.remote import AnyPath, place

_OURS = "named by python -m balance.index"
MAX_LEVELS = 1000  # AudioSet has 6; each level costs memory for every label below it


def ontology_file(given: str | None, root: AnyPath) -> AnyPath:
    """`dataset.ontology`, else `ontology.json` under the root; it need not exist."""
    return place(given) if given else root / "ontology.json"


def read_ontology(given: str | None, root: AnyPath) -> tuple[dict[str, str], AnyPath | None]:
    """(label id -> name, the file): of `dataset.ontology`, else of `ontology.json` under the root if it exists, else of
    the label map there.

    UserError says what is wrong with the file, the children that `read_parents` reads included.
    """
    path = ontology_file(given, root)
    if not path.is_file():
        if given:
            raise UserError(f"dataset.ontology={given}: no such file; leave it out, or name AudioSet's ontology.json")
        return read_label_names(root)
    read_parents(path)
    return {str(entry["id"]): str(entry["name"]) for entry in _entries(path)}, path


def read_parents(path: AnyPath) -> dict[str, list[str]]:
    """Label id -> ids of its parents, from an ontology's `child_ids`; empty without a file or without children."""
    parents: dict[str, list[str]] = {}
    children: dict[str, list[str]] = {}
    for entry in _entries(path) if path.is_file() else []:
        children[str(entry["id"])] = entry.get("child_ids", [])
        for child in children[str(entry["id"])]:
            parents.setdefault(child, []).append(str(entry["id"]))
    _refuse_depth(path, parents, children)
    return parents


def _entries(path: AnyPath) -> list[dict[str, Any]]:
    """The objects of the file, each with a name, an id and, if any, a list of children, all of them text."""
    wanted = "an ontology is a JSON list of objects with id and name, as AudioSet's ontology.json"
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else f"not JSON ({error})"
        raise UserError(f"{path} is {why}: {wanted}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} is a JSON {type(entries).__name__}: {wanted}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"id", "name"} <= set(entry):
            raise UserError(f"{path} [{number}] has no id and name: {wanted}")
        children = entry.get("child_ids", [])
        if not isinstance(children, list) or not all(isinstance(child, str) for child in children):
            raise UserError(
                f"{path} [{number}]: child_ids must be a list of label ids, got {json.dumps(children)[:60]}"
            )
        for text in (str(entry["id"]), str(entry["name"]), *children):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(f"{path} [{number}] holds half a surrogate pair, which is no text: {text!a}") from None
    return entries


def _refuse_depth(path: AnyPath, parents: dict[str, list[str]], children: dict[str, list[str]]) -> None:
    """UserError for more than MAX_LEVELS. Each label is entered once, from a root where there is one."""
    seen: set[str] = set()
    for start in sorted(children, key=lambda id: id in parents):
        level = [] if start in seen else [start]
        num_levels = 0
        while level:
            num_levels += 1
            if num_levels > MAX_LEVELS:
                raise UserError(f"{path}: more than {MAX_LEVELS:,} levels of child_ids, for instance below {start}")
            seen.update(level)
            level = list(dict.fromkeys(child for id in level for child in children.get(id, []) if child not in seen))


def write_names(folder: Path, names: Mapping[str, str]) -> None:
    """`ontology.json` with these names beside those that are there, unless one lies there that others made."""
    path = folder / "ontology.json"
    existing = _entries(path) if path.is_file() else []
    if all(id == name for id, name in names.items()) or any(x.get("description") != _OURS for x in existing):
        return
    entries = {str(x["id"]): x for x in existing} | {
        id: {"id": id, "name": name, "description": _OURS, "child_ids": []} for id, name in names.items()
    }
    write_json(path, [entries[id] for id in sorted(entries)])

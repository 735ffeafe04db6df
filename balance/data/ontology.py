"""AudioSet's ontology: names of label ids, and which label implies which.

In: `ontology.json`, a JSON list of objects with `id`, `name` and `child_ids`. Out: plain dicts, empty where there is no
such file: labels then go by their ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from balance.errors import UserError


def ontology_file(given: str | None, root: Path) -> Path:
    """`dataset.ontology`, else `ontology.json` under the root; it need not exist."""
    return Path(given).expanduser() if given else root / "ontology.json"


def read_ontology(given: str | None, root: Path) -> tuple[dict[str, str], Path | None]:
    """(label id -> name, the file): of `dataset.ontology`, else of `ontology.json` under the root if it exists."""
    path = ontology_file(given, root)
    if not path.is_file():
        if given:
            raise UserError(f"dataset.ontology={given}: no such file; leave it out, or name AudioSet's ontology.json")
        return {}, None
    try:
        return {str(entry["id"]): str(entry["name"]) for entry in json.loads(path.read_text("utf-8"))}, path
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an ontology (a JSON list of objects with id and name)") from error


def read_parents(path: Path) -> dict[str, list[str]]:
    """Label id -> ids of its parents, from an ontology's `child_ids`; empty without a file or without children."""
    parents: dict[str, list[str]] = {}
    if path.is_file():
        for entry in json.loads(path.read_text("utf-8")):
            for child in entry.get("child_ids", []):
                parents.setdefault(str(child), []).append(str(entry["id"]))
    return parents

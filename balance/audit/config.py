"""The keys of `audit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from balance.curation.config import Leaks
from balance.runtime.keys import key

_PLACE = ("list", "root", "media", "format")  # of a list that lies elsewhere than dataset.*


@dataclass(kw_only=True, slots=True)
class AuditConfig:
    """Which training lists are compared with which evaluation lists, and by what.

    An entry of `train` or `eval` is a list's name or path, read as `dataset.*` says, or `{list: …, root: …, media: …,
    format: …}` for one that lies elsewhere or in another form; what it leaves out is as in `dataset.*`.
    """

    train: Any = key(None, "training lists: [a,b]; default: dataset.balanced and dataset.unbalanced", common=True)
    eval: Any = key(None, "evaluation lists; default: dataset.eval", common=True)
    level: Leaks = key(Leaks.acoustic, "id; exact: also equal samples; acoustic: also sound", common=True)

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            given = getattr(self, name)
            if given is None:
                continue
            entries = given if isinstance(given, list) else [given]
            if not entries or not all(_is_entry(entry) for entry in entries):
                raise ValueError(
                    f"audit.{name}={given}: names or paths of lists, such as [a,b], or "
                    "[{list: a, root: /data/other, format: folder}] for one that lies elsewhere"
                )
            setattr(self, name, entries)


def _is_entry(entry: Any) -> bool:
    if isinstance(entry, str):
        return bool(entry)
    return (
        isinstance(entry, dict)
        and "list" in entry
        and set(entry) <= set(_PLACE)
        and all(isinstance(value, str) and value for value in entry.values())
    )

"""Nearest-neighbour balancing of audio training sets: `python -m balance.run` is the main job.

From Python: `balance.run("dataset=demo", "k=10")`, `balance.open_run(path)`, `balance.exact_top_k(seeds, pool, k)`.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"

_API = ("Run", "UserError", "exact_top_k", "open_run")


def run(*overrides: str) -> Any:
    """The main job, as `python -m balance.run` with these overrides; the finished run (`balance.api.run`)."""
    from balance import api

    return api.run(*overrides)


def __getattr__(name: str) -> Any:
    if name in _API:
        from balance import api

        return getattr(api, name)
    raise AttributeError(f"module 'balance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])

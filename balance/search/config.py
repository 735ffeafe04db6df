"""The keys of `search`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from balance.runtime.keys import key, key_from


class Backend(enum.Enum):
    """What proposes candidates; the result is the same bytes."""

    auto = "auto"
    faiss = "faiss"
    torch = "torch"


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """How neighbours are searched, and how many are kept (at most the pool), so that any smaller K is a slice."""

    backend: Backend = key(Backend.auto, "faiss or torch; the result is the same bytes", common=True)
    k_cache: int = key(512, "neighbours per seed that are always kept, so that a smaller k is a slice", common=True)

    also: list[str] = key_from(
        list, "stores of other encoders (paths or names): neighbours that several encoders have come first"
    )

    def __post_init__(self) -> None:
        if self.k_cache < 1:
            raise ValueError(f"search.k_cache={self.k_cache} was given; it must be at least 1")

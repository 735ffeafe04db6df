"""The keys of `report`."""

from __future__ import annotations

from dataclasses import dataclass

from balance.runtime.keys import key


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the page shows."""

    media_base: str | None = key(None, "where the page's audio links point instead of dataset.media: a path or a URL")

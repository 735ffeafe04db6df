"""The keys of `report`."""

from __future__ import annotations

from dataclasses import dataclass

from balance.runtime.keys import key


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the page shows."""

    media_base: str | None = key(None, "where the page's audio links point instead of dataset.media: a path or a URL")
    embed_audio: int = key(0, "clips, in the page's order, whose sound the page holds itself: short 16 kHz mono MP3s")
    quality: bool = key(False, "more columns in augmented_k{K}.csv: channels, clipping, bandwidth, silence at the ends")

    def __post_init__(self) -> None:
        if self.embed_audio < 0:
            raise ValueError(f"report.embed_audio={self.embed_audio}: a number of clips, at least 0")

"""The keys of the embedding stage; the contract has them at the top of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from balance.runtime.cores import available_cores
from balance.runtime.keys import key


@dataclass(kw_only=True, slots=True)
class EmbedConfig:
    """How much may fail, how many processes work, and what is done anew."""

    max_failures: float = key(0.01, "share of a split's present clips that may be unreadable", common=True)
    max_missing: float = key(0.01, "share of a split's listed files that may be absent", common=True)
    num_workers: int | None = key(None, "decoder processes; default: the cores of this process", common=True)
    num_processes: int | str = key("auto", "encoder processes; auto: one per visible GPU, else 1", common=True)
    queue_bytes: int = key(1 << 30, "memory between decoders and encoder, in bytes")
    clip_timeout_s: float = key(60.0, "seconds after which a clip counts as undecodable")
    retry_failures: bool = key(False, "decode again what failed before", common=True)
    refresh: bool = key(False, "start the embedding store anew", common=True)

    def __post_init__(self) -> None:
        for name in ("max_failures", "max_missing"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: a share between 0 and 1, such as {name}=0.05")
        if self.num_workers is None:
            self.num_workers = available_cores()
        if self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers}: at least 1")
        if isinstance(self.num_processes, str) and self.num_processes != "auto":
            raise ValueError(f"num_processes={self.num_processes}: auto, or a number of encoder processes")
        if isinstance(self.num_processes, int) and self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes}: at least 1")
        if self.queue_bytes < 1 << 20:
            raise ValueError(f"queue_bytes={self.queue_bytes}: at least 1048576 (1 MiB)")
        if not 0 < self.clip_timeout_s <= 86_400:
            raise ValueError(
                f"clip_timeout_s={self.clip_timeout_s}: seconds that a clip may take to decode, up to 86400"
            )

    @property
    def num_decoders(self) -> int:
        """`num_workers`, whose default is filled in by now."""
        assert self.num_workers is not None
        return self.num_workers

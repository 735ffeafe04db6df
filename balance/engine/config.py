"""The keys of `executor`."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from balance.runtime.keys import key


class Kind(enum.Enum):
    """Where embedding and search run; the files of a run are the same bytes."""

    local = "local"
    ray = "ray"


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """Where the work runs, and what each of Ray's workers gets of its node."""

    kind: Kind = key(Kind.local, "set by executor=local or executor=ray")
    address: str | None = key(None, "of Ray: null starts it on this machine; auto, or host:port", common=True)
    gpus: float | str = key("auto", "GPUs per worker of Ray; auto: 1 where the cluster has any, else 0")
    cpus: int | str = key("auto", "CPUs per worker of Ray; auto: a node's CPUs shared evenly by its workers")

    def __post_init__(self) -> None:
        address = self.address
        if address not in (None, "auto") and not re.fullmatch(r"[^\s:/]+:\d+|\[[0-9a-fA-F:]+\]:\d+", str(address)):
            raise ValueError(
                f"executor.address={address} was given; allowed are null (Ray is started on this machine), auto, and "
                "the head node's host:port, such as executor.address=node-1:6379"
            )
        if self.gpus != "auto" and (isinstance(self.gpus, str) or self.gpus < 0):
            raise ValueError(f"executor.gpus={self.gpus} was given; allowed are auto and a number of GPUs from 0 on")
        if self.cpus != "auto" and (isinstance(self.cpus, str) or self.cpus < 1):
            raise ValueError(f"executor.cpus={self.cpus} was given; allowed are auto and a number of CPUs from 1 on")

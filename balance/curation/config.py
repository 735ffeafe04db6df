"""The keys of `augment`: what may be chosen, and what is taken out again."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from balance.runtime.keys import key, key_from


class Leaks(enum.Enum):
    """What makes a pool clip a copy of an evaluation clip; each level includes those before it."""

    id = "id"
    exact = "exact"
    acoustic = "acoustic"


class Copies(enum.Enum):
    """What makes a neighbour a copy of a seed or of another neighbour."""

    none = "none"
    exact = "exact"
    acoustic = "acoustic"


class Balance(enum.Enum):
    """How the labels of the neighbours are balanced."""

    none = "none"
    cap = "cap"
    metaclip = "metaclip"


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """The curation steps; each is off unless asked for, but the decontamination by id."""

    leaks: Leaks = key(Leaks.id, "which pool clips are copies of eval clips: id, exact, acoustic", common=True)
    per_seed_k: str | None = key(None, "a probe.json: each seed takes as many of its k neighbours as that supports")
    copies: Copies = key(
        Copies.none, "drop neighbours that copy a seed or another neighbour: exact, acoustic", common=True
    )
    copy_threshold: float = key(0.9, "correlation from which two clips are acoustic copies, above 0 and up to 1")
    balance: Balance = key(Balance.none, "balance the labels: cap, metaclip", common=True)
    per_label: int | None = key(None, "clips per label: n of the cap, t of metaclip", common=True)
    cap_exempt: list[str] = key_from(list, "label ids that the cap does not count: [/m/04rlf,/m/09x0r]")
    budget: int | None = key(None, "clips of the augmented set, seeds included, taken rank by rank", common=True)
    exclude: str | None = key(None, "a file of pool clips that never enter: an id per line, such as the map saves")
    include: str | None = key(None, "a file of pool clips that enter though no seed chose them: an id per line")
    controls: int = key(0, "size-matched random sets to compare with, and as many with the same label sets")

    def __post_init__(self) -> None:
        if self.balance is not Balance.none and (self.per_label is None or self.per_label < 1):
            raise ValueError(
                f"augment.balance={self.balance.value} with per_label={self.per_label}: "
                "say how many clips per label, such as augment.per_label=1000"
            )
        if self.balance is Balance.none and self.per_label is not None:
            raise ValueError(f"augment.per_label={self.per_label} without a balance: add augment.balance=cap")
        if self.cap_exempt and self.balance is not Balance.cap:
            raise ValueError(f"augment.cap_exempt={self.cap_exempt} without the cap: add augment.balance=cap")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"augment.budget={self.budget}: clips of the augmented set, at least the number of seeds")
        if self.controls < 0:
            raise ValueError(f"augment.controls={self.controls}: how many draws of each kind, 0 or more")
        if not 0 < self.copy_threshold <= 1:
            raise ValueError(f"augment.copy_threshold={self.copy_threshold}: a correlation above 0 and up to 1")

"""The keys of `probe`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from balance.encoders.config import EncoderConfig
from balance.runtime.keys import key, key_from


class Rival(enum.Enum):
    """A rule that chooses as many pool clips without looking at the seeds (`curation.rivals`)."""

    hierarchical_kmeans = "hierarchical_kmeans"
    class_balanced = "class_balanced"
    metaclip = "metaclip"
    k_center = "k_center"
    easy_prototypes = "easy_prototypes"
    hard_prototypes = "hard_prototypes"


class Reading(enum.Enum):
    """How an arm's figures are read; the first is fitted for every choice and cannot be left out."""

    logistic = "logistic"
    knn = "knn"
    prototype = "prototype"
    mlp = "mlp"


class Guard(enum.Enum):
    """Which pool clips are copies of evaluation clips (`augment.leaks`); auto: by sound where there is any, else as
    the run; never less than the run."""

    auto = "auto"
    id = "id"
    exact = "exact"
    acoustic = "acoustic"


class Judge(enum.Enum):
    """In how many folds a label is judged: `all`, `one` (five times cheaper), `auto`: by the size of the table."""

    auto = "auto"
    all = "all"
    one = "one"


def _grid() -> list[float]:
    return [float(f"{10 ** (-i / 2):.3g}") for i in range(13)]


def _rivals() -> list[Rival]:
    return [Rival.hierarchical_kmeans, Rival.class_balanced, Rival.metaclip, Rival.easy_prototypes]


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """Which training sets are compared, in which space, and how carefully."""

    k: list[int] = key_from(lambda: [4, 10, 32, 100, 512], "neighbours per seed, an arm for each", common=True)
    draws: int = key(5, "size-matched random sets for each arm", common=True)
    stratified: bool = key(False, "also as many random sets with the same label sets", common=True)
    rivals: list[Rival] = key_from(_rivals, "rules that choose as many clips without the seeds", common=True)
    readings: list[Reading] = key_from(lambda: list(Reading), "how arms are read; a conclusion needs all to agree")
    runs: list[str] = key_from(list, "folders of finished (curated) runs, an arm each", common=True)
    embeddings: str | None = key(
        None, "another encoder's embeddings to judge in: a store or a folder of vectors", common=True
    )
    leaks: Guard = key(Guard.auto, "pool clips left out as copies of eval clips; auto: by sound where there is any")
    source: str | None = key(
        None, "a regular expression whose group is a clip's source; null: YouTube ids and {id}_{bos}"
    )
    encoder: EncoderConfig | None = key(
        None, "a second encoder to judge in: probe.encoder=NAME probe.encoder.KEY=…", common=True
    )
    penalties: list[float] = key_from(_grid, "the grid of λ (mean BCE + λ‖W‖²/2); it widens where its end is best")
    steps: int = key(600, "passes over its rows that a fit may take for one λ; it ends when its scores settle")
    folds: int = key(5, "folds over the held-out seeds")
    judge: Judge = key(Judge.auto, "judge each label in all folds or in one; auto: by the size of the table")
    votes: int = key(20, "nearest clips that vote in the k-NN reading")
    network_steps: int = key(500, "steps of 512 clips that the small network is trained for")
    memory_bytes: int = key(2 << 30, "training sets above it are read anew in every pass")

    def __post_init__(self) -> None:
        for name, least in (("draws", 2), ("steps", 2), ("folds", 2), ("votes", 1), ("network_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"probe.{name}={getattr(self, name)}: at least {least}")
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"probe.k={self.k}: different numbers of neighbours, each at least 1, as probe.k=[10,100]")
        if not self.penalties or not all(0 < x < float("inf") for x in self.penalties):
            raise ValueError(f"probe.penalties={self.penalties}: numbers above 0, such as [1e-2,1e-3,1e-4]")
        if self.memory_bytes < 0:
            raise ValueError(f"probe.memory_bytes={self.memory_bytes}: at least 0")
        if Reading.logistic not in self.readings:
            raise ValueError("probe.readings: without logistic nothing chooses λ and K: probe.readings=[logistic,knn]")
        if self.encoder is not None and self.embeddings is not None:
            raise ValueError("probe.encoder and probe.embeddings both name a space to judge in: type one of them")
        self.k = sorted(self.k)
        self.rivals = list(dict.fromkeys(self.rivals))
        self.readings = [reading for reading in Reading if reading in self.readings]
        self.penalties = sorted(set(self.penalties), reverse=True)

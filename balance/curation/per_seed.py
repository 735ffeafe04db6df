"""How many neighbours each seed takes, by a probe's evidence: `augment.per_seed_k=probe.json`.

In: the file, of which `recommended_k` and `value_of_neighbours` are read, and the seeds' label sets. Out: a K per seed:
the largest K of those of its labels that have one of their own, else the K of all. Labels whose own K is smaller count
too: a seed all of whose resolved labels want few neighbours takes few. The price: a label that is not resolved has no
say, even where the K of all is larger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from balance.errors import UserError
from balance.records import Int64, Labels

_LEAVE_OUT = "leave augment.per_seed_k out and type k=… yourself"


@dataclass(frozen=True, slots=True)
class SupportedK:
    """k: of all; own: label id -> K, of the labels that have another; label_ids: all that the probe saw; doubts: what
    it says against its own K's."""

    k: int
    own: Mapping[str, int]
    label_ids: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()

    def of_seeds(self, labels: Labels) -> Int64:
        """K of each clip with these label sets, (n,) int64."""
        own = np.array([self.own.get(name, 0) for name in labels.names], dtype=np.int64)
        largest = np.zeros(len(labels), dtype=np.int64)
        np.maximum.at(largest, np.repeat(np.arange(len(labels)), labels.sizes()), own[labels.codes])
        return np.where(largest > 0, largest, self.k)


def choose(file: str, k: int, labels: Labels) -> tuple[Int64, tuple[str, ...]]:
    """K of each seed, (n,) int64 from 1 to k, and warnings. labels: the seeds'; k: of the run.

    Raises UserError: a file that cannot be read or is none of the probe's, that supports no K, or is of other labels;
    k below the largest K that a seed takes.
    """
    given = f"augment.per_seed_k={file}"
    supported = read(file)
    used = {labels.names[code] for code in np.unique(labels.codes)}
    unknown = used - supported.label_ids
    if unknown == used:
        raise UserError(
            f"{given}: none of its {len(supported.label_ids):,} labels is a label of a seed, so it is of other data; "
            f"type the probe.json of these seeds, or {_LEAVE_OUT}"
        )
    each = supported.of_seeds(labels)
    if (largest := int(each.max(initial=1))) > k:
        raise UserError(f"{given}: a seed takes up to {largest} neighbours, but k={k}: type k={largest} or more")
    warnings = [f"{given}: {doubt}" for doubt in supported.doubts]
    if unknown:
        warnings.append(
            f"{given}: {len(unknown):,} of the seeds' {len(used):,} labels are not among those of the probe"
        )
    return each, tuple(warnings)


def read(file: str) -> SupportedK:
    """What a probe.json supports. Raises UserError: unreadable, damaged, or it supports no K."""
    given = f"augment.per_seed_k={file}"
    try:
        found = json.loads(Path(file).expanduser().read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{given}: {error.strerror or error}; type the path of a probe.json, such as outputs/probes/…/probe.json"
        ) from None
    except ValueError:  # neither UTF-8 nor JSON
        raise _damaged(given) from None
    try:
        value, recommended = found["value_of_neighbours"], found["recommended_k"]
        if value is None:
            raise UserError(
                f"{given}: it holds no value of one more neighbour, since a fit was not finished; "
                f"probe again with more probe.steps, or {_LEAVE_OUT}"
            )
        if recommended is None:
            raise UserError(f"{given}: no gain: {_no_k(found)} It supports no K; {_LEAVE_OUT}")
        by_label = {str(label["id"]): _number(label["k"]) for label in value["labels"]}
        single = _number(value["k"])
        doubts = tuple(_doubts(found))
    except (KeyError, TypeError, ValueError):
        raise _damaged(given) from None
    own = {label: k for label, k in by_label.items() if k != single}
    return SupportedK(single, own, frozenset(by_label), doubts)


def _number(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(value)
    return value


def _doubts(found: Mapping[str, Any]) -> Iterator[str]:
    if found["same_space"]:
        yield (
            "the probe judged in the space that chose the neighbours, which is no evidence; probe.embeddings= or "
            "probe.encoder= judges in another"
        )
    for one in found["conclusions"]:
        if one["against_rule"] == "seeds" and one["verdict"] == "loss":
            yield f"the probe says of {one['arm']} against the seeds alone: {one['words']}"


def _no_k(found: Mapping[str, Any]) -> str:
    """The probe's own sentence."""
    return next(
        (str(line) for line in found.get("sentences", ()) if str(line).startswith("no K")), "no K beats random."
    )


def _damaged(given: str) -> UserError:
    return UserError(
        f"{given}: no probe.json of this version, or a damaged one; run python -m balance.probe again, or {_LEAVE_OUT}"
    )

"""What `--help` prints: one screen, the keys of a command in groups, a line each, from the configuration's own fields.

In: a command's configuration dataclass (`config.SCHEMAS`). Out: text. `--help all` lists every key; the documentation's
table of keys (`docs/configuration.md`) is made from the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

USAGE = {
    "run": (
        "python -m balance.run [key=value …]",
        "For every clip of a small set, find the K most similar clips of a large pool; write an augmented index.",
        (
            "First try:  python -m balance.run dataset=demo",
            "Your data:  python -m balance.run dataset.root=/data/audioset encoder.checkpoint=/models/00071478.pth",
            "Sweep:      python -m balance.run -m k=10,32,100,512 …    (embeds and searches once)",
        ),
    ),
    "probe": (
        "python -m balance.probe [key=value …]",
        "Does training on seeds + neighbours help? Linear probes on stored embeddings, against random picks of the\n"
        "same size and against the whole pool. Takes every key of balance.run; embeds and searches what is missing.",
        ("First try:  python -m balance.run dataset=demo && python -m balance.probe dataset=demo",),
    ),
    "audit": (
        "python -m balance.audit [key=value …]",
        "Is any training clip a copy of an evaluation clip? By id, by equal samples, by sound. Needs no checkpoint;\n"
        "takes dataset.*, num_workers, max_failures, max_missing, augment.copy_threshold, report.media_base of a run.\n"
        "Status 0: no copy found (the verdict says whether all could be compared); 3: copies; 1: a mistake.",
        ("First try:  python -m balance.audit dataset=demo",),
    ),
    "finetune": (
        "python -m balance.finetune [key=value …]",
        "Does the probe predict training? The probe's training sets, each trained several times for as many steps.\n"
        "Takes every key of balance.run and balance.probe (finetune.k instead of probe.k).",
        ("First try:  python -m balance.finetune dataset=demo finetune.k=[4,16] finetune.steps=300",),
    ),
    "index": (
        "python -m balance.index index.segments=LIST index.media=FOLDER index.out=FOLDER",
        "Official AudioSet segment lists and a media folder -> VIP-ANT index files (src_*.csv).",
        (),
    ),
    "atlas": (
        "python -m balance.atlas RUN_DIR [key=value …]",
        "The embedding space of a finished run as a map to look at and listen to: RUN_DIR/atlas/index.html.",
        ("First try:  python -m balance.run dataset=demo k=10 && python -m balance.atlas outputs/latest",),
    ),
}


class Row(NamedTuple):
    """One key: its dotted name, its default as it is typed, its line, and whether the short help lists it."""

    name: str
    default: str
    help: str
    common: bool


def rows(schema: type, prefix: str = "") -> Iterator[Row]:
    """The keys of a configuration dataclass, those of nested dataclasses after its own."""
    nested: list[tuple[str, type]] = []
    types = get_type_hints(schema)
    own = schema.__annotations__  # a configuration's own keys come before those that it inherits
    for field in sorted(dataclasses.fields(schema), key=lambda field: field.name not in own):
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            nested.append((f"{prefix}{field.name}.", kind))
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Row(prefix + field.name, as_typed(default), field.metadata["help"], field.metadata["common"])
    for name, kind in nested:
        yield from rows(kind, name)


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    return f"[{','.join(map(as_typed, value))}]" if isinstance(value, list) else str(value)


def text(command: str, schema: type, conf: Path, *, every_key: bool) -> str:
    """The help of a command."""
    usage, what, examples = USAGE[command]
    shown = [row for row in rows(schema) if every_key or row.common]
    if command in ("probe", "finetune", "audit") and not every_key:
        shown = [row for row in shown if row.name.startswith(f"{command}.")]
    width = max(len(_with_default(row)) for row in shown)
    lines = [usage, what]
    group = None
    for row in shown:
        if row.name.rpartition(".")[0] != group:
            group = row.name.rpartition(".")[0]
            lines += ["", f"{group or 'the job'}{_choices(conf, group)}"]
        lines.append(f"  {_with_default(row):<{width}}  {row.help}")
    if not every_key:
        lines += [
            "",
            "Every key:  --help all    What would run:  --cfg job    This machine's own:  conf/local/default.yaml",
        ]
    return "\n".join([*lines, *examples])


def _with_default(row: Row) -> str:
    return f"{row.name}={row.default}" if len(row.default) <= 32 else f"{row.name}=…"


def _choices(conf: Path, group: str) -> str:
    """The options of a configuration group (`dataset=demo`), where it has several."""
    names = sorted(path.stem for path in (conf / group).glob("*.yaml")) if group else []
    return f" ({' or '.join(f'{group}={name}' for name in names)})" if len(names) > 1 else ""

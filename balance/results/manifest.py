"""`manifest.json`: everything that a reader needs to make a run again, and to trust its files.

In: configuration, inputs and what was written. Out: the one file of a run that holds times and absolute paths. It is
written last, so that a folder with a manifest is a complete run.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from balance import __version__
from balance.prepared import Embedded
from balance.runtime import files

_LIBRARIES = ("torch", "numpy", "scipy", "pyarrow", "soundfile", "hydra-core", "omegaconf", "faiss-cpu", "faiss-gpu")


def _plain(value: Any) -> Any:
    """A dataclass as JSON values: enums by their names."""
    return json.loads(json.dumps(asdict(value), default=lambda member: member.value))


def write(
    folder: Path,
    *,
    config: Mapping[str, Any],
    embedded: Embedded,
    outputs: Sequence[Path],
    times_s: dict[str, float],
    ids: Path,
) -> Path:
    """`manifest.json`. outputs: every file that was written; ids: `ids_k{K}.csv`; times_s: seconds of each stage."""
    path = folder / "manifest.json"
    lines = sorted(ids.read_text("utf-8").split("\n")[:-1])
    files.write_json(
        path,
        {
            "version": __version__,
            "git_commit": git_commit(),
            "config": dict(config),
            "inputs": dict(embedded.inputs),
            "outputs": {p.relative_to(folder).as_posix(): files.sha256_file(p) for p in sorted(outputs)},
            "ids_sha256": _sha256("\n".join(lines)),
            "libraries": versions(),
            "device": embedded.device,
            "precision": embedded.precision,
            "precision_report": None if embedded.precision_report is None else _plain(embedded.precision_report),
            "conformance": None if embedded.conformance is None else dict(embedded.conformance),
            "fingerprint": embedded.fingerprint,
            "times_s": {name: round(seconds, 3) for name, seconds in times_s.items()},
        },
    )
    return path


def versions() -> dict[str, str]:
    """Library -> installed version, of those that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this program's checkout, with `-dirty` where it was changed; None outside one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie in somebody else's checkout
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

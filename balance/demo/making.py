"""The demo's folder: made once per cache by one job, while others wait; an unfinished one is made anew.

In: the folder `{cache_dir}/demo`. Out: in it the audio and indexes of `clips` and the checkpoint. A folder is only
ever filled, or emptied, if it holds this program's marker, which is written first and completed last. The audio is made
by subprocesses that import no torch (`python -m balance.demo.clips`); they die with this process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from balance.demo import clips
from balance.demo.checkpoint import write_checkpoint
from balance.errors import UserError
from balance.runtime import files, locks
from balance.runtime.terminal import Stage

log = logging.getLogger(__name__)

MARKER = "balance-demo.json"  # {"version": int, "complete": bool}
VERSION = 1


def ensure_demo(root: Path, *, num_processes: int, wrap: Callable[[dict[str, Any]], Any]) -> None:
    """The demo's audio, indexes and checkpoint in `root`, made where they do not exist.

    wrap: makes the pickled configuration, `config.as_omegaconf`. UserError if the folder holds something else, OSError
    if it cannot be written.
    """
    if not _is_complete(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with _lock(root.with_name("demo.lock")):
            if not _is_complete(root):
                _make(root, num_processes)
    checkpoint = root / "checkpoint.pth"
    if not checkpoint.is_file():
        write_checkpoint(checkpoint, wrap=wrap)


def _is_complete(root: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((root / MARKER).read_text()) == {"version": VERSION, "complete": True})
    return False


def _lock(path: Path) -> locks.Lock:
    is_told = False
    while (lock := locks.acquire(path)) is None:
        if not is_told:
            log.info("another job is making the demo: waiting for it")
            is_told = True
        time.sleep(0.5)
    return lock


def _make(root: Path, num_processes: int) -> None:
    root.mkdir(exist_ok=True)
    if not (root / MARKER).exists() and any(not _is_temporary(path) for path in root.iterdir()):
        raise UserError(
            f"{root} holds files that are not the demo's (no {MARKER}): the demo is not written over them; "
            "move them away or type another cache_dir=…"
        )
    files.write_json(root / MARKER, {"version": VERSION, "complete": False})
    _empty(root)
    clips.write_indexes(root)
    _make_sounds(root, num_processes)
    files.write_json(root / MARKER, {"version": VERSION, "complete": True})


def _is_temporary(path: Path) -> bool:
    """Whether it is what a kill leaves of the marker's writing."""
    return path.name.startswith("tmp-") and path.suffix == ".json"


def _empty(root: Path) -> None:
    """Everything but the marker, which must outlast a kill at any moment."""
    for path in root.iterdir():
        if path.name == MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _make_sounds(root: Path, num_processes: int) -> None:
    """All audio files, by so many processes. Each says on one pipe, by a byte, that a file is done."""
    read, write = os.pipe()
    makers: list[subprocess.Popen[bytes]] = []
    with open(read, "rb", buffering=0) as done, tempfile.TemporaryFile() as errors:
        try:
            try:
                for shard in range(num_processes):
                    command = [sys.executable, "-m", "balance.demo.clips", str(root), str(shard), str(num_processes)]
                    # stdin: a maker ends when it does, that is, with this process.
                    makers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write, stderr=errors))
            finally:
                os.close(write)  # so that the pipe ends with the makers
            _show_progress(done, clips.num_files())
            if any(maker.wait() for maker in makers):
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise OSError(f"the demo's audio files could not be written: {said[-1] if said else 'killed'}")
        finally:
            for maker in makers:
                maker.kill()
                maker.communicate()


def _show_progress(done: IO[bytes], num_files: int) -> None:
    """Until the pipe ends."""
    log.info("making the demo, once: %s audio files", f"{num_files:,}")
    with Stage("making the demo", num_files, "files") as stage:
        while data := done.read(4096):
            stage.advance(len(data))

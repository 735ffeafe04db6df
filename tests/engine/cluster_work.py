"""Work for Ray's workers in tests; each writes down what it does in a folder that all of them see."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from balance.engine.seam import Place, Tasks
from balance.errors import UserError

Report = Callable[[object], None]


@dataclass(frozen=True)
class Setup:
    """kills: the task whose worker dies, for ever or (once) the first time; sleep_s: of each
    task; fails: the task at which the worker raises an error of the user."""

    folder: Path
    kills: int = -1
    once: bool = False
    sleep_s: float = 0.0
    fails: int = -1


def note(setup: Setup, place: Place, tasks: Tasks[bytes], report: Report) -> None:
    """A file per task, named after it, and one per worker, named after its process."""
    (setup.folder / f"pid-{os.getpid()}").touch()
    for number, task in tasks:
        killed = setup.folder / f"killed-{number}"
        if number == setup.kills and not (setup.once and killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == setup.fails:
            raise UserError("type something else")
        time.sleep(setup.sleep_s)
        (setup.folder / f"task-{number}").write_bytes(task)
        report((number, len(task), place.num_cores))
        tasks.finish(number)

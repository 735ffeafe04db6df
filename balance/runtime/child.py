"""What a subprocess of this program does first, so that it neither outlives its parent nor acts on its own.

Imports the standard library alone: decoders must start at once. Signals that stop a job reach all of its processes;
the parent alone decides what they mean. A parent that is killed cannot end its children, so the system does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from balance.runtime.command import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent() -> None:
    """Ignore the signals that stop a job, and end when the thread that started this process ends.

    The latter on Linux only, and not where the parent was gone before this call: a pipe to the parent must tell then.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_stdin() -> None:
    """End when stdin does: a pipe that the parent never writes to and that is closed when the parent is gone."""
    threading.Thread(target=_wait_for_end, daemon=True, name="stdin").start()


def end_with_parent() -> None:
    """End within a second or two of the parent, for a process that others start."""
    threading.Thread(target=_wait_for_orphanage, args=(os.getppid(),), daemon=True, name="parent").start()


def _wait_for_orphanage(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _wait_for_end() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

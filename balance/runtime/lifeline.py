"""A process that ends with the one that started it, however that one ends: kill -9 leaves nothing running.

The parent starts it with `stdin=subprocess.PIPE` and never writes: the kernel closes the pipe when the parent is gone,
and a thread here waits for that. The price: the process has no stdin of its own.
"""

from __future__ import annotations

import os
import threading


def end_with_parent() -> None:
    """To be called first thing by a process whose stdin is such a pipe."""
    threading.Thread(target=_wait, daemon=True, name="lifeline").start()


def _wait() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)

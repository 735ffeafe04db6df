"""The commands as a user types them, in a process of their own."""

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

from tests.worlds import World


def command(
    folder: Path,
    *overrides: str,
    module: str = "balance.run",
    preexec: Callable[[], None] | None = None,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` (outputs and cache go there unless overridden)."""
    return subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=preexec,
    )


def run_dir(folder: Path) -> Path:
    """The latest run directory under `folder`."""
    return max((folder / "outputs" / "runs").glob("*/*"), key=lambda p: p.stat().st_mtime_ns)


def run(folder: Path, world: World, *overrides: str) -> Path:
    """A run that succeeds; its directory."""
    folder.mkdir(exist_ok=True)
    done = command(folder, *world.overrides(), "k=5", *overrides)
    assert done.returncode == 0, done.stderr
    return run_dir(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same bytes for the same inputs."""
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in ("manifest.json", "run.log")
    }


def on_terminal(typed: list[str], *, columns: int, cwd: Path | None = None, env: dict[str, str]) -> str:
    """What a command that succeeds shows on a terminal of so many columns."""
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    with subprocess.Popen(typed, cwd=cwd, env=env, stdout=side, stderr=side) as process:
        os.close(side)
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(main, 65536):
                shown += block
    os.close(main)
    assert process.returncode == 0, shown
    return shown.decode()

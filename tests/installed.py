"""The program as a user installs it: the wheel, in a new environment, outside the checkout; and the demo run with it.

Both are made once per test session, whichever worker asks first, without the network: the environment has the wheel
alone, and sees the libraries of the environment that runs the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import REPOSITORY


@dataclass(frozen=True)
class Installed:
    """source: a copy of the checkout's files, with a `conf/local/default.yaml` of its own that sets k to 3."""

    source: Path
    wheel: Path
    python: Path

    def run(self, folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python -m` of the installed program, in `folder`."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("BALANCE_", "PYTHON"))}
        return subprocess.run(
            [self.python, "-m", *arguments], cwd=folder, env={**clean, **env}, capture_output=True, text=True
        )


@dataclass(frozen=True)
class Demo:
    """folder: where `python -m balance.run dataset=demo k=4` was typed. console: what it printed."""

    folder: Path
    console: str

    @property
    def run(self) -> Path:
        (found,) = (self.folder / "outputs" / "runs").glob("*/*")
        return found

    @property
    def cache(self) -> Path:
        return self.folder / "outputs" / "cache"


@contextlib.contextmanager
def once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers of the session share, and whether it has to be filled; held by one at a time."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


def install(folder: Path) -> None:
    """Build the wheel in `folder` and install it into a new environment there. A git repository lies around both."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in os.fsdecode(listed.stdout).split("\0")[:-1]:
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    (source / "conf" / "local" / "default.yaml").write_text("k: 3\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, source]
    _checked(*pip, *build)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    _checked(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "libraries_of_the_tests.pth").write_text("".join(f"{path}\n" for path in libraries))
    for command in (["init", "--quiet"], ["add", wheel.name], ["commit", "--quiet", "--message", "somebody's own"]):
        _checked("git", "-C", folder, "-c", "user.name=n", "-c", "user.email=n@example.com", *command)


def installed(factory: pytest.TempPathFactory) -> Installed:
    with once(factory, "installed") as (folder, empty):
        if empty:
            install(folder)
        (wheel,) = folder.glob("*.whl")
    return Installed(folder / "source", wheel, folder / "venv" / "bin" / "python")


def demo(factory: pytest.TempPathFactory) -> Demo:
    program = installed(factory)
    with once(factory, "demo") as (folder, empty):
        home = folder / "home"
        if empty:
            home.mkdir()
            done = program.run(home, "balance.run", "dataset=demo", "k=4")
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "console").write_text(done.stdout + done.stderr)
        return Demo(home, (folder / "console").read_text())


def _checked(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""`make install` on a machine whose Python is too old or cannot make an environment says what to type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY


def install(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'env'}", "GPU=0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def old_python(tmp_path: Path) -> str:
    """A Python that says it is 3.9."""
    program = tmp_path / "python3.9"
    code = "import sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18'; exec(sys.argv[1])"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("kind", ["too old", "no venv", "absent"])
def test_a_python_that_cannot_make_the_environment(tmp_path: Path, kind: str) -> None:
    python = {"too old": old_python(tmp_path), "no venv": "false", "absent": str(tmp_path / "nothing")}[kind]
    done = install(tmp_path, python)
    assert done.returncode != 0
    assert f"uv venv --seed --python 3.12 {tmp_path}/env" in done.stderr
    assert f"conda create --yes --prefix {tmp_path}/env python=3.12 pip" in done.stderr
    assert ("Python 3.11 or newer is needed" in done.stderr) == (kind == "too old")
    assert ("3.9.18" in done.stderr) == (kind == "too old")
    assert not (tmp_path / "env").exists()


def test_an_environment_is_never_emptied(tmp_path: Path) -> None:
    """VENV may name a folder that holds other things."""
    kept = tmp_path / "env" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert install(tmp_path, "false").returncode != 0
    assert kept.read_text() == "mine"

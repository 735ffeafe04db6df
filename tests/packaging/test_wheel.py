"""The wheel: everything that runs is inside, nothing of this machine is, and it works from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

import balance
from tests.installed import Demo, Installed
from tests.paths import REPOSITORY

COMMANDS = sorted(
    {path.stem for path in (REPOSITORY / "balance").glob("*.py") if "__main__" in path.read_text("utf-8")}
    | {path.parent.name for path in (REPOSITORY / "balance").glob("*/__main__.py")}
)


def tracked(folder: Path, *names: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *names],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (folder / name).is_file()}


def test_the_wheel_holds_the_code_and_the_configuration_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = tracked(REPOSITORY, "balance")
    conf = {f"balance/{name}" for name in tracked(REPOSITORY, "conf") if not name.startswith("conf/local/")}
    assert files == code | conf
    assert "balance/py.typed" in files


def test_the_distribution_does_not_take_the_name_of_another_project(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(wheel.read(name))
    assert metadata["Name"] == "audio-balance"
    assert metadata["Version"] == balance.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(metadata.get_all("Provides-Extra"))
    written = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == set(written)
    assert all(written.values()), "an extra without a dependency promises what is not there"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_outside_the_checkout(installed: Installed, tmp_path: Path, command: str) -> None:
    version = installed.run(tmp_path, f"balance.{command}", "--version")
    assert (version.returncode, version.stdout) == (0, f"balance {balance.__version__}\n"), version.stderr
    shown = installed.run(tmp_path, f"balance.{command}", "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"python -m balance.{command}" in shown.stdout


@pytest.mark.timeout(900)
def test_the_demo_runs_from_an_empty_folder(installed: Installed, demo: Demo) -> None:
    assert {path.name for path in demo.folder.iterdir()} == {"outputs"}
    manifest = json.loads((demo.run / "manifest.json").read_text())
    assert manifest["version"] == balance.__version__
    assert manifest["git_commit"] is None, "the repository around the environment is not this program's"
    assert (demo.run / "report.html").is_file()
    verified = installed.run(demo.folder, "balance.verify", str(demo.run))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_local_configuration_of_the_working_directory_is_honoured(installed: Installed, tmp_path: Path) -> None:
    assert "k: 100\n" in installed.run(tmp_path, "balance.run", "--cfg", "job").stdout
    local = tmp_path / "conf" / "local" / "default.yaml"
    local.parent.mkdir(parents=True)
    local.write_text("k: 7\n")
    for command in ("run", "probe"):
        assert "k: 7\n" in installed.run(tmp_path, f"balance.{command}", "--cfg", "job").stdout
    assert "k: 8\n" in installed.run(tmp_path, "balance.run", "--cfg", "job", "k=8").stdout


def test_in_a_checkout_its_own_local_configuration_comes_first(installed: Installed, tmp_path: Path) -> None:
    local = tmp_path / "conf" / "local" / "default.yaml"
    local.parent.mkdir(parents=True)
    local.write_text("k: 7\n")
    done = subprocess.run(
        [sys.executable, "-m", "balance.run", "--cfg", "job"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed.source)},
        capture_output=True,
        text=True,
    )
    assert "k: 3\n" in done.stdout, done.stderr

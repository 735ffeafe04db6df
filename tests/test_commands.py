"""The door of every command: help, versions, mistakes in what was typed, where files go, early signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balance import __version__, help
from balance.config import SCHEMAS
from tests import worlds
from tests.command import command, run, run_dir
from tests.paths import REPOSITORY
from tests.worlds import World

COMMANDS = ["run", "index", "probe", "finetune", "why", "verify", "compare", "atlas"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world") / "data", seeds=3, pool=8, evaluation=2)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_its_version_and_its_usage(tmp_path: Path, name: str) -> None:
    assert command(tmp_path, "--version", module=f"balance.{name}").stdout == f"balance {__version__}\n"
    shown = command(tmp_path, "--help", module=f"balance.{name}")
    assert shown.returncode == 0
    assert f"python -m balance.{name} " in shown.stdout
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize("name", ["run", "index", "probe", "finetune", "atlas"])
def test_help_is_one_screen_and_help_all_has_every_key(tmp_path: Path, name: str) -> None:
    short = command(tmp_path, "--help", module=f"balance.{name}").stdout.splitlines()
    assert len(short) <= 50
    assert max(map(len, short)) <= 120
    everything = command(tmp_path, "--help", "all", module=f"balance.{name}").stdout
    for row in help.rows(SCHEMAS[name]):
        assert f"  {row.name}=" in everything
        assert row.help in everything
        assert (f"  {row.name}=" in "\n".join(short)) <= row.common


def test_a_default_is_shown_as_it_is_typed() -> None:
    defaults = {row.name: row.default for row in help.rows(SCHEMAS["probe"])}
    assert defaults["k"] == "100"  # not true, although 1 == True in Python
    assert defaults["refresh"] == "false"
    assert defaults["dataset.root"] == "null"
    assert defaults["search.backend"] == "auto"
    assert defaults["probe.k"] == "[4,10,32,100,512]"
    assert help.as_typed(1) == "1"


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m balance.run --help all | head -n 1"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("python -m balance.run")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("K=10", ["Could not override 'K'", "did you mean k?"]),
        ("max_failure=1", ["did you mean max_failures?"]),
        ("checkpoint=x.pth", ["did you mean encoder.checkpoint?"]),
        ("dataset.rot=x", ["Key 'rot' not in", "did you mean dataset.root?"]),
        ("+zz=1", ["no attribute 'zz'", "--help all"]),
        ("dataset=dmo", ["dataset=dmo: there is no such choice; allowed are audioset, demo; did you mean demo?"]),
        ("encoder=vpant", ["did you mean vipant?"]),
        ("search.backend=foo", ["search.backend=foo", "expected one of [auto, faiss, torch]"]),
        ("k=abc", ["k=abc", "could not be converted to Integer"]),
        ("k=[1", ["k=[1: "]),
        ("dataset.root=${HOME}/x", ["${HOME} is no key", "${oc.env:HOME}"]),
        ("hydra.job.chdir=true", ["hydra.job.chdir=true", "leave it out"]),
        ("seed=-1", ["seed=-1"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_folder(tmp_path: Path, typed: str, words: list[str]) -> None:
    done = command(tmp_path, typed)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not list((tmp_path / "outputs").rglob("*.log"))


def test_of_a_key_typed_twice_the_wrong_value_is_named(tmp_path: Path) -> None:
    done = command(tmp_path, "k=5", "k=1.5")
    assert done.returncode == 1
    assert "k=1.5" in done.stderr
    assert "k=5" not in done.stderr


def test_a_refused_sweep_leaves_no_folder(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "k=0,1")
    assert done.returncode == 1
    assert "error: k=0" in done.stderr
    assert not list((tmp_path / "outputs" / "sweeps").iterdir())


def test_latest_leads_to_the_last_finished_run(tmp_path: Path, world: World) -> None:
    first = run(tmp_path, world, "k=2")
    latest = tmp_path / "outputs" / "latest"
    assert latest.is_symlink()
    assert latest.resolve() == first.resolve()
    assert "-k2-" in first.name
    assert not Path(os.readlink(latest)).is_absolute()
    assert command(tmp_path, *world.overrides(), "k=1000").returncode == 1  # refused: not the last finished one
    assert latest.resolve() == first.resolve()
    assert command(tmp_path, str(latest), "xs_00000001", module="balance.why").returncode == 0
    swept = command(tmp_path, "-m", *world.overrides(), "k=1,3")
    assert swept.returncode == 0, swept.stderr
    assert latest.resolve().name == "1-k3"


def test_a_variable_that_is_empty_counts_as_not_set(tmp_path: Path, world: World) -> None:
    done = command(tmp_path, *world.overrides(), "k=2", BALANCE_OUTPUTS="", BALANCE_CACHE="")
    assert done.returncode == 0, done.stderr
    assert (run_dir(tmp_path) / "summary.json").is_file()
    assert list((tmp_path / "outputs" / "cache" / "embeddings").glob("*/part-*.arrow"))


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.4, 0.8, 1.6])
def test_a_signal_in_the_first_seconds_ends_like_any_other(tmp_path: Path, world: World, after_s: float) -> None:
    job = subprocess.Popen(
        [sys.executable, "-m", "balance.run", *world.overrides(), "k=2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}) and None,
    )
    time.sleep(after_s)
    job.send_signal(signal.SIGINT)
    _, stderr = job.communicate(timeout=60)
    if job.returncode == 0:
        pytest.skip("it had finished")
    if job.returncode == 1 and str(REPOSITORY / "balance") not in stderr:
        pytest.skip("Python itself was still starting, before this program's first line")
    assert job.returncode == 128 + signal.SIGINT
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("stopped by SIGINT: finished parts are kept")

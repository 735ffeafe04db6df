"""Which first pass is taken, and what is said where FAISS is missing, broken, or built for CPUs only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from balance import preflight
from balance.errors import UserError
from balance.search import candidates
from balance.search.config import Backend, SearchConfig
from tests import worlds
from tests.command import command, run_dir
from tests.paths import REPOSITORY

CPU = torch.device("cpu")
BROKEN = {  # as builds for another numpy, without CUDA's libraries or half installed do
    "AttributeError": "raise AttributeError('_ARRAY_API not found')",
    "OSError": "raise OSError('libcudart.so.12: cannot open shared object file')",
    "RuntimeError": "raise RuntimeError('CUDA driver is insufficient\\nand more')",
    "ImportError": "raise ImportError('undefined symbol: _ZN5faiss')",
}


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "first_pass_dtype", lambda device: torch.float32)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "first_pass_dtype", lambda device: torch.bfloat16)


def break_faiss(folder: Path, code: str) -> Path:
    """A folder for sys.path whose FAISS does not import."""
    (folder / "broken" / "faiss").mkdir(parents=True)
    (folder / "broken" / "faiss" / "__init__.py").write_text(code + "\n")
    return folder / "broken"


def forget_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "faiss"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("no_bfloat16")
def test_missing_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # what import sees where it is not installed
    for refused in (candidates.choose, lambda backend, _: preflight.check_search(SearchConfig(backend=backend))):
        with pytest.raises(UserError, match=r"not installed: type `pip install faiss-cpu.*search.backend=torch"):
            refused(Backend.faiss, CPU)
    assert "torch on cpu" in (line := candidates.choose(Backend.auto, CPU)[1])
    assert "FAISS is not installed" in line


@pytest.mark.parametrize(("kind", "code"), BROKEN.items(), ids=BROKEN.keys())
def test_broken_faiss(kind: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_faiss(monkeypatch)
    monkeypatch.syspath_prepend(break_faiss(tmp_path, code))
    for refused in (candidates.choose, lambda backend, _: preflight.check_search(SearchConfig(backend=backend))):
        with pytest.raises(UserError, match=rf"installed but does not import \({kind}.*search.backend=torch") as error:
            refused(Backend.faiss, CPU)
        assert "\n" not in str(error.value)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(candidates, "first_pass_dtype", lambda device, dtype=dtype: dtype)
        first_pass, line = candidates.choose(Backend.auto, CPU)
        assert isinstance(first_pass, candidates.TorchSearch)
        assert f"FAISS is installed but does not import ({kind}: " in line
    for backend in (Backend.auto, Backend.torch):
        preflight.check_search(SearchConfig(backend=backend))


def test_who_asks_for_torch_never_imports_faiss() -> None:
    code = (
        "import sys, torch; from balance.search import candidates; from balance.search.config import Backend;"
        "candidates.check(Backend.torch); candidates.choose(Backend.torch, torch.device('cpu'));"
        "candidates.choose(Backend.auto, torch.device('cuda')); assert 'faiss' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.usefixtures("no_bfloat16")
def test_auto_without_bfloat16_is_faiss() -> None:
    first_pass, line = candidates.choose(Backend.auto, CPU)
    assert isinstance(first_pass, candidates.FaissRangeSearch)
    assert line == "search: FAISS on cpu, first pass in float32 (auto: no GPU, FAISS is installed)"


@pytest.mark.usefixtures("bfloat16")
def test_auto_with_bfloat16_is_torch() -> None:
    first_pass, line = candidates.choose(Backend.auto, CPU)
    assert isinstance(first_pass, candidates.TorchSearch)
    assert line == (
        "search: torch on cpu, first pass in bfloat16 (auto: no GPU, the processor has bfloat16 instructions)"
    )


def test_auto_on_a_gpu_is_torch() -> None:
    first_pass, line = candidates.choose(Backend.auto, torch.device("cuda:1"))
    assert isinstance(first_pass, candidates.TorchSearch)
    assert line == "search: torch on cuda:1, first pass in float16 (auto: a GPU)"


def test_faiss_for_cpus_on_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import faiss

    monkeypatch.delattr(faiss, "knn_gpu", raising=False)
    first_pass, _ = candidates.choose(Backend.faiss, torch.device("cuda:0"))
    assert first_pass.device == CPU
    assert "built for CPUs only" in caplog.text


def test_a_run_with_a_broken_faiss(tmp_path: Path) -> None:
    """auto goes on with torch and says why; whoever asks for FAISS is refused before anything is embedded."""
    world = worlds.make(tmp_path / "world", seeds=2, pool=4, evaluation=1)
    path = os.pathsep.join([str(break_faiss(tmp_path, BROKEN["AttributeError"])), str(REPOSITORY)])
    refused = command(tmp_path, *world.overrides(), "k=2", "search.backend=faiss", PYTHONPATH=path)
    assert refused.returncode == 1
    said = refused.stderr.strip().splitlines()[-1]
    assert "search.backend=faiss was given; FAISS is installed but does not import (AttributeError: _ARRAY_API" in said
    assert not list(tmp_path.rglob("part-*"))
    done = command(tmp_path, *world.overrides(), "k=2", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert (
        "FAISS is installed but does not import (AttributeError: _ARRAY_API"
        in done.stdout + done.stderr + (run_dir(tmp_path) / "run.log").read_text()
    )

"""Imports go one way, and the heavy or optional libraries stay where they belong."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "balance"
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
ENTRIES = {"run", "index", "probe", "why", "verify", "compare"}
# What a decoder process imports must start in a fifth of a second.
LIGHT = {"audio", "media", "decoders"}


def imports(module: str) -> set[str]:
    """The modules that a module imports when it is loaded, ours as bare names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "balance":
            found |= {f"balance.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def ours(module: str) -> set[str]:
    return {name.removeprefix("balance.") for name in imports(module) if name.startswith("balance.")} & set(MODULES)


def test_imports_go_one_way() -> None:
    """No cycles: a module can be understood from those below it."""
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*path, module))
        if module in state:
            return
        state[module] = "open"
        for below in sorted(ours(module)):
            visit(below, (*path, module))
        state[module] = "done"

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    top = {name.split(".")[0] for name in imports(module)}
    if module not in ENTRIES | {"config"}:
        assert not top & {"hydra", "omegaconf"}
    assert "sklearn" not in top
    if module != "neighbours":
        assert "faiss" not in top
    if module in {"records", "store", "audio", "fbank", "encoder", "locks", "clips", "evidence"}:
        assert not ours(module) & {"config", "pipeline", "finish", "outputs", *ENTRIES}
    assert not ours(module) & ENTRIES, "nothing imports a command"


def test_faiss_is_imported_after_torch() -> None:
    text = (PACKAGE / "neighbours.py").read_text()
    assert re.search(r"^import torch$", text, re.MULTILINE)
    assert not re.search(r"^(import|from) faiss", text, re.MULTILINE), "at the top it would come before torch"


def test_a_decoder_process_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, balance.decoders; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert {name.removeprefix("balance.") for name in loaded} >= LIGHT
    assert not loaded & {"torch", "hydra", "faiss", "matplotlib", "pandas", "pyarrow", "scipy"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text()))
    assert text is not None
    assert 1 <= len(text.splitlines()) <= 20

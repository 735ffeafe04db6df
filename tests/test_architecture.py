"""Imports point down, and heavy or optional libraries stay where they belong (docs/architecture.md)."""

import ast
import subprocess
import sys

import pytest

from tests.paths import REPOSITORY

PACKAGE = REPOSITORY / "balance"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)
# A module may import from its own line and from those below it.
LEVELS = (
    ("api", "run", "index", "why", "verify", "compare", "probe", "atlas", "audit", "finetune"),
    ("pipeline",),
    ("results", "report"),
    ("prepared",),
    ("consensus",),
    ("preflight", "config", "config_errors", "help"),
    ("curation", "demo", "training"),
    ("embed", "stats"),
    ("encoders",),
    ("data", "audio", "search"),
    ("engine",),
    ("runtime",),
    ("records", "errors"),
)
LEVEL = {name: -number for number, names in enumerate(LEVELS) for name in names}
# A package's keys are light: `balance/config.py` composes them before anything heavy is imported.
KEYS = {module for module in MODULES if module.endswith(".config")} | {"encoders.precision"}
COMMANDS = {"finetune.__main__", *LEVELS[0][1:-4], "probe.__main__", "atlas.__main__", "audit.__main__"}
# What a decoder process imports must start in a fifth of a second.
LIGHT = {"audio.decode", "audio.decoder_process", "data.media", "runtime.child", "runtime.remote"}
HEAVY = {"torch", "hydra", "faiss", "matplotlib", "pandas", "pyarrow", "scipy", "ray", "transformers", "av", "fsspec"}
HOME = {
    "hydra": {"config", "config_errors"},
    "omegaconf": {"config", "config_errors"},
    "faiss": {"search.candidates"},
    "av": {"audio.ffmpeg"},
    "ray": {"engine.ray"},
    "transformers": {"encoders.transformers", "finetune.networks"},
    "soxr": {"audio.resample"},
    "umap": {"atlas.projection"},
    "sklearn": set(),
    "fsspec": {"runtime.remote"},
}


def imported(module: str) -> set[str]:
    """Everything that a module imports, at its top or inside a function; `from a import b` gives a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = {name.removeprefix("balance.") for name in imported(module) if name.startswith("balance.")}
    return {other for other in MODULES if any(name == other or name.startswith(f"{other}.") for name in names)}


def test_packages_are_one_level_deep_and_their_inits_empty() -> None:
    assert all(module.count(".") <= 1 for module in MODULES)
    for path in PACKAGE.glob("*/__init__.py"):
        assert path.read_text() == "", path


def level(module: str) -> int:
    return LEVEL["runtime"] if module in KEYS else LEVEL[module.split(".")[0]]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for other in ours(module):
        assert level(other) <= level(module), f"{module} imports {other}"
        assert other not in COMMANDS or module in COMMANDS, f"{module} imports the command {other}"


def test_there_is_no_circle() -> None:
    """A module can be understood from those below it."""
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
    top = {name.split(".")[0] for name in imported(module)}
    for library, homes in HOME.items():
        assert library not in top or module in homes, f"{module} imports {library}"


def test_faiss_is_imported_after_torch() -> None:
    tree = ast.parse((PACKAGE / "search" / "candidates.py").read_text())
    at_the_top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert "torch" in at_the_top
    assert "faiss" not in at_the_top, "at the top it would come before torch"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_decoder_process_imports_no_torch() -> None:
    loaded = loaded_by("import balance.audio.decoder_process")
    assert {name.removeprefix("balance.") for name in loaded} >= LIGHT
    assert not loaded & HEAVY


def test_the_configuration_is_light() -> None:
    """So `--help` answers at once, and `import balance` costs nothing."""
    assert not loaded_by("import balance") & {*HEAVY, "numpy"}
    assert not loaded_by("import balance.config, balance.run") & ({*HEAVY, "numpy"} - {"hydra"})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text()))
    assert text is not None
    assert 1 <= len(text.splitlines()) <= 20


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py") if path.name != "__init__.py"}
    tested = {path.parent.name for path in (REPOSITORY / "tests").glob("*/test_*.py")}
    tested -= {"benchmarks", "docs", "packaging"}
    assert tested <= folders, tested - folders
    assert folders - tested <= {"engine"}, folders - tested

"""How the house is built, in numbers: `python tools/measures.py [COMMIT …]`, the working tree without one.

Prints a Markdown table, a column per commit: modules, packages, modules per package, the longest function, and how many
modules the whole configuration (`settings`) passes through. Tests, tools and benchmarks are not counted.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parent.parent
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """path: as in `balance/data/media.py`."""

    path: PurePosixPath
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.parts[1] if len(self.path.parts) > 2 else "balance"

    def functions(self) -> Iterator[tuple[int, str]]:
        """(lines, name) of every function, its decorators and docstring included."""
        for node in ast.walk(self.tree):
            if isinstance(node, _Function):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                assert node.end_lineno is not None
                yield node.end_lineno - first + 1, f"{self.path.stem}.{node.name}"

    def sees_settings(self) -> bool:
        """Whether this module names the type of the whole configuration, or takes it from a value that carries it."""
        names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        return bool((names | attributes) & {"Settings", "ProbeSettings"}) or "settings" in attributes


def modules(commit: str | None) -> list[Module]:
    """The modules of `balance/` at a commit, or as they lie here; `__init__` files without content left out."""
    if commit is None:
        found = {path.relative_to(REPOSITORY): path.read_text("utf-8") for path in REPOSITORY.glob("balance/**/*.py")}
    else:
        names = _git("ls-tree", "-r", "--name-only", commit, "balance").splitlines()
        found = {Path(name): _git("show", f"{commit}:{name}") for name in names if name.endswith(".py")}
    return [
        Module(PurePosixPath(path), ast.parse(text))
        for path, text in sorted(found.items())
        if text and path != Path("balance/__init__.py")
    ]


def measures(commit: str | None) -> dict[str, str]:
    """Row -> figure."""
    house = modules(commit)
    per_package = Counter(module.package for module in house)
    functions = sorted(function for module in house for function in module.functions())
    longest, name = functions[-1]
    at_the_top = per_package.pop("balance")
    largest, most = max(per_package.items(), key=lambda item: item[1], default=("", 0))
    middle = statistics.median(per_package.values() or [0])
    return {
        "modules": str(len(house)),
        "packages": str(len(per_package)),
        "modules at the top, beside each other": str(at_the_top),
        "modules per package: median, most": f"{middle:g}, {most} (`{largest}`)" if per_package else "–",
        "longest function": f"{longest} lines (`{name}`)",
        "median function": f"{statistics.median(lines for lines, _ in functions):g} lines",
        "functions over 50 lines": f"{sum(lines > 50 for lines, _ in functions)} of {len(functions)}",
        "modules that see the whole `Settings`": str(sum(module.sees_settings() for module in house)),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    commits: list[str | None] = [*sys.argv[1:]] or [None]
    columns = [measures(commit) for commit in commits]
    print("| |", " | ".join(commit or "here" for commit in commits), "|")
    print("|---|" + "---|" * len(commits))
    for row in columns[0]:
        print(f"| {row} |", " | ".join(column[row] for column in columns), "|")


if __name__ == "__main__":
    main()

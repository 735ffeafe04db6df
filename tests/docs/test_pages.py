"""Generated pages are up to date, links lead somewhere, pages stay short and messages are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, blocks_of
from tests.paths import REPOSITORY
from tests.test_architecture import LEVELS
from tools import configuration


def test_the_configuration_page_is_up_to_date() -> None:
    written = (REPOSITORY / "docs" / "configuration.md").read_text("utf-8")
    assert written == configuration.page(), "type: make docs"


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Anchors between pages are checked by `make docs`, which fails at a warning."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_menu() -> None:
    menu = (REPOSITORY / "mkdocs.yml").read_text("utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert re.search(rf"^ *- {re.escape(page.name)}$", menu, re.MULTILINE), page.name


def test_the_map_of_the_house_is_the_house() -> None:
    house, layers = (block.text for block in blocks_of(REPOSITORY / "docs" / "architecture.md"))
    packages = {path.parent.name for path in (REPOSITORY / "balance").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", house, re.MULTILINE)) == packages
    shown = re.findall(r"^  ((?:\w+, )*\w+)  ", house, re.MULTILINE)
    modules = {path.stem for path in (REPOSITORY / "balance").glob("*.py")} - {"__init__"}
    assert {name for names in shown for name in names.split(", ")} | {"help", "config_errors"} == modules
    named = re.findall(r"`(\w+/\w+)`", (REPOSITORY / "docs" / "architecture.md").read_text("utf-8"))
    assert [name for name in named if not (REPOSITORY / "balance" / f"{name}.py").is_file()] == []
    assert layers.splitlines() == [", ".join(names) for names in LEVELS]


def string_constants() -> list[str]:
    """Every piece of text in the program's code; a formatted string gives the pieces between its values."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (REPOSITORY / "balance").glob("**/*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return [" ".join(n.value.split()) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_the_messages_of_troubleshooting_are_those_of_the_program() -> None:
    """ "…" stands for what a message fills in; each piece between is in the code, letter for letter."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^> `(.+)`$", text, re.MULTILINE)
    assert len(re.findall(r"^### ", text, re.MULTILINE)) >= 20
    assert len(messages) >= 20
    known = string_constants()
    for message in messages:
        for piece in re.split("…", message):
            piece = piece.strip(" .,;:()")
            assert len(piece) < 4 or any(piece in constant for constant in known), f"{piece!r} of {message!r}"

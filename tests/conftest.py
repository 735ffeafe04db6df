"""Fixtures of more than one folder of tests."""

import pytest

from tests import installed as _installed


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> _installed.Installed:
    """The program installed from its wheel, outside the checkout."""
    return _installed.installed(tmp_path_factory)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> _installed.Demo:
    """The demo, run once by the installed program from an empty folder."""
    return _installed.demo(tmp_path_factory)

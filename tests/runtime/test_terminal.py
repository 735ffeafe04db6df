"""What a person sees: bars and colours at a terminal alone, and as much as was asked for."""

import io
import logging
import os
import re
import subprocess
import sys

import pytest

from balance.runtime import terminal
from balance.runtime.terminal import Console, Stage, coloured
from tests.command import on_terminal

WORK = """
import logging, sys
from balance.runtime.terminal import Console, Stage
log = logging.getLogger("balance.test")
logging.getLogger().addHandler(Console(sys.argv[1]))
logging.getLogger().setLevel(logging.INFO)
logging.getLogger("balance").setLevel(logging.DEBUG)
with Stage("listening", 2000) as stage:
    stage.failed(3)
    stage.advance(1000)
    log.info("a line")
    log.warning("a warning")
    stage.advance(1000)
"""


def seen(verbosity: str, **env: str) -> str:
    """What a terminal of 100 columns gets."""
    given = {**{name: x for name, x in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm", **env}
    return on_terminal([sys.executable, "-c", WORK, verbosity], columns=100, env=given)


def test_a_terminal_gets_a_bar_and_a_colour():
    shown = seen("normal")
    assert "listening:" in shown
    assert "/2000" in shown
    assert "failures=3" in shown
    assert "clips/s" in shown
    assert "\033[33ma warning\033[0m" in shown
    assert "\ra line\r\n" in shown, "the bar is taken away before a line"
    assert "a warning" in seen("normal", NO_COLOR="1")
    assert "\033[33m" not in seen("normal", NO_COLOR="1")
    assert "\033[33m" not in seen("normal", TERM="dumb")


def test_quiet_says_what_is_wrong_and_verbose_what_a_stage_took():
    assert seen("quiet") == "\033[33ma warning\033[0m\r\n"
    assert "listening: 2,000 clips in " in seen("verbose")
    assert "clips in " not in seen("normal")


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [("quiet", "a warning\n"), ("normal", "a line\na warning\n"),
     ("verbose", "a line\na warning\nlistening: 2,000 clips in 0 s\n")],
)  # fmt: skip
def test_a_pipe_gets_plain_lines(verbosity, expected):
    done = subprocess.run([sys.executable, "-c", WORK, verbosity], capture_output=True, text=True, check=True)
    assert (done.stdout, re.sub(r"in \d+ s", "in 0 s", done.stderr)) == ("", expected)


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is moved."""

    class Clock:
        now_s = 0.0

        def monotonic(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def test_a_log_gets_a_line_every_half_minute(caplog, clock):
    caplog.set_level(logging.INFO)
    with Stage("search", 1_000) as stage:
        stage.failed(2)
        for _ in range(7):
            clock.now_s += 10.0
            stage.advance(100)
        stage.advance(200, by_others=True)
        stage.note("nearly there")
        clock.now_s += 100.0
        stage.at(950)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "search: 400 of 1,000 clips, 10.0 clips/s, 2 failed, about 1 min 0 s left",
        "search: 950 of 1,000 clips, 4.4 clips/s, 2 failed, about 11 s left, nearly there",
    ]


def test_how_much_is_to_do_may_be_known_later(caplog, clock):
    caplog.set_level(logging.INFO)
    stage = Stage("probe", None, "fits")
    clock.now_s = 31.0
    stage.at(0)
    stage.starts(4)
    with stage:
        clock.now_s = 62.0
        stage.at(1)
    assert [record.getMessage() for record in caplog.records] == [
        "probe: 0 fits",
        "probe: 1 of 4 fits, 0.016 fits/s, about 3 min 6 s left",
    ]


def test_hydra_verbose_shows_what_the_root_logger_passes():
    console, root = Console("normal"), logging.getLogger()
    before = root.level
    debug = logging.LogRecord("x", logging.DEBUG, "x", 1, "x", None, None)
    try:
        root.setLevel(logging.INFO)
        assert not console.filter(debug)
        root.setLevel(logging.DEBUG)
        assert console.filter(debug)
    finally:
        root.setLevel(before)


def test_a_file_has_no_colour():
    assert coloured("error:", stream=io.StringIO()) == "error:"

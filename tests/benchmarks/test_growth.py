"""The growth benchmark runs, so that it can be trusted to when it is needed."""

import json
import subprocess
import sys

import pytest

from tests.paths import REPOSITORY


@pytest.mark.parametrize("kind", ["vectors", "store"])
def test_every_stage_is_measured(kind: str) -> None:
    script = REPOSITORY / "benchmarks" / "growth.py"
    done = subprocess.run([sys.executable, script, kind, "2000", "30"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    stages = {"read", "ids", "eligible", "key", "neighbours", "curation", "files", "summary", "report"}
    stages |= {"plan", "open", "stamps", "inventory"} if kind == "store" else set()
    assert found["seconds"].keys() == found["cpu_s"].keys() == found["peak_gib"].keys() == stages

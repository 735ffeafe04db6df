"""What a precision costs is kept beside the store: a damaged report is measured again, never believed."""

import json
from dataclasses import asdict
from pathlib import Path

from balance.embed import checks
from balance.embed.checks import PrecisionReport
from balance.runtime import files

REPORT = PrecisionReport("bfloat16", 16, 64, 0.99993, 0.9991, 0.971)


def test_any_damaged_bit_of_a_report_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "precision.json"
    assert checks._read_report(file) is None
    files.write_json(file, asdict(REPORT) | {"checksum": checks._checksum(REPORT)})
    assert checks._read_report(file) == REPORT
    assert json.loads(file.read_text())["overlap_at_10"] == 0.971
    whole = file.read_bytes()
    num_noticed = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        found = checks._read_report(file)
        assert found in (None, REPORT)  # a blank between two values says nothing
        num_noticed += found is None
    assert num_noticed > 0.8 * 8 * len(whole)


def test_what_is_no_report_is_none(tmp_path: Path) -> None:
    file = tmp_path / "precision.json"
    for text in ("", "null", "[]", "{}", "[" * 100_000, json.dumps(asdict(REPORT)), '{"checksum": 1}'):
        file.write_text(text)
        assert checks._read_report(file) is None

"""Lists of segments in the forms that people have, against Python's csv module, pandas and the official form."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from balance.data.segment_lists import read_list, write_list
from balance.errors import UserError
from balance.records import Labels
from tests.paths import SHARED

LISTS = SHARED / "data" / "audioset"
OFFICIAL = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
-_-_-_-_-_1, 0.000, 10.000, "/m/09x0r"
a_b_30000_c, 20.500, 30.500, "/m/012xff"
"""
ROWS = [
    ("--PJHxphWEs", 30.0, 40.0, "/m/09x0r,/t/dd00088"),
    ("-_-_-_-_-_1", 0.0, 10.0, "/m/09x0r"),
    ("a_b_30000_c", 20.5, 30.5, "/m/012xff"),
]
NAMES = ["YTID", "start_seconds", "end_seconds", "positive_labels"]


def read(path: Path, text: str | bytes) -> list[tuple[str, float, float, str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = read_list(path)
    return [(i, float(s), float(e), x) for i, s, e, x in zip(rows.ids, rows.bos, rows.eos, rows.labels, strict=True)]


def of_writer(**form: object) -> str:
    out = io.StringIO()
    csv.writer(out, **form).writerows(ROWS)  # type: ignore[arg-type]
    return out.getvalue()


def of_pandas(columns: list[str] = NAMES, **form: object) -> str:
    return str(pd.DataFrame(ROWS, columns=columns).to_csv(**form))  # type: ignore[arg-type]


FORMS = {
    "official": OFFICIAL,
    "no comments": "".join(OFFICIAL.splitlines(keepends=True)[3:]),
    "csv.writer": of_writer(),
    "csv.writer, all quoted": of_writer(quoting=csv.QUOTE_ALL),
    "csv.writer, LF": of_writer(lineterminator="\n"),
    "pandas": of_pandas(),
    "pandas without index": of_pandas(index=False),
    "pandas without header": of_pandas(header=False),
    "pandas without both": of_pandas(index=False, header=False),
    "pandas of the official header": of_pandas(["# YTID", " start_seconds", " end_seconds", " positive_labels"]),
    "pandas, quotes kept": str(
        pd.DataFrame([(i, s, e, f'"{x}"') for i, s, e, x in ROWS], columns=NAMES).to_csv(index=False)
    ),
    "other names": of_pandas(["video_id", "start_time", "end_time", "labels"], index=False),
    "more columns, another order": "split,labels,id,end,start\n"
    + "".join(f'train,"{x}",{i},{e},{s}\n' for i, s, e, x in ROWS),
    "CRLF": OFFICIAL.replace("\n", "\r\n"),
    "CR": OFFICIAL.replace("\n", "\r"),
    "byte order mark": b"\xef\xbb\xbf" + OFFICIAL.encode(),
    "blank lines, no line end": "\n" + OFFICIAL.replace("\n", "\n  \n").rstrip(),
    "blanks": OFFICIAL.replace('"/m/09x0r,/t/dd00088"', '" /m/09x0r , /t/dd00088 " ').replace(", 0.000", ",  0.000 "),
    "quoted comments": '"# Segments csv created, by a spreadsheet",,\n' + OFFICIAL,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_segments(tmp_path: Path, form: str) -> None:
    assert read(tmp_path / "l.csv", FORMS[form]) == ROWS


def test_official_lines_come_out_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(OFFICIAL)
    rows = read_list(tmp_path / "l.csv")
    assert [rows.line(i) for i in range(len(rows))] == OFFICIAL.splitlines()[3:]
    write_list(tmp_path / "m.csv", [rows.line(i).encode() for i in range(3)], Labels.of([["a", "b"], ["a"], ["c"]]))
    assert (tmp_path / "m.csv").read_text().splitlines()[1:] == OFFICIAL.splitlines()[1:]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('#NAME?, 30.000, 40.000, "/m/a"', "'#NAME?, 30.000, 40.000, /m/a' is without its id: a spreadsheet made"),
        ('"#NAME?",30,40,/m/a', "a spreadsheet made #NAME? of it"),
        ("#VALUE!,30,40,/m/a", "a spreadsheet made #VALUE! of it"),
        ("1.23457E+10,30,40,/m/a", "a spreadsheet made 1.23457E+10 of it"),
        ('aaaaaaaaaa0, 30.000, "/m/a"', "is not `YTID"),
        ("aaaaaaaaaa0,30,40,/m/a,/m/b", "is not `YTID"),
        ("aaaaaaaaaa0;30;40;/m/a", "is not `YTID"),
        ("aaaaaaaaaa0, 30.000, , /m/a", "is not `YTID"),
        ("aaaaaaaaaa0, 30.000, inf, /m/a", "is not `YTID"),
        ("aaaaaaaaaa0, thirty, 40.000, /m/a", "is not `YTID"),
        ('aaaaaaaaaa0, 30.000, 40.000, "/m/a,"', "is not `YTID"),
        ('aaaaaaaaaa0, 30.000, 40.000, ""', "is not `YTID"),
        ('aaaaaaaaaa0, 30.000, 40.000, "/m/a"b', "is not CSV"),
        ('aaaaaaaaaa0, 30.000, 40.000, "/m/a\naaaaaaaaaa1, 30.000, 40.000, "/m/b"', "is not"),
        (', 30.000, 40.000, "/m/a"', "is not `YTID"),
        ('folder/aaaa, 30.000, 40.000, "/m/a"', "is not `YTID"),
        ('"aaaaaaaaaa0 ", 30.000, 40.000, "/m/a"', "a blank at its beginning or end"),
        ('{"id": "aaaaaaaaaa0", "dir": ""}', "is a JSON record: this is an index already"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, words: str) -> None:
    """As the fifth line, after a good one."""
    good = OFFICIAL.splitlines(keepends=True)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "l.csv", "".join(good[:4]) + line + "\n" + "".join(good[4:]))
    assert f"{tmp_path / 'l.csv'} line 5: " in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty segment list"),
        (b"# YTID, start_seconds, end_seconds, positive_labels\n", "empty segment list"),
        (",".join(NAMES).encode(), "empty segment list"),
        (b'aaaaaaaaaa0, 30.000, 40.000, "/m/\xe4"\n', "not UTF-8"),
        (OFFICIAL.encode("utf-16"), "not UTF-8"),
        (b'a, 0, 1, "x"\nb, 0, 1, "x"\na, 5, 6, "x"\n', "ids that occur more than once: a"),
        (b'"' + b"a" * 200_000, "is not CSV"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "l.csv", content)
    assert words in str(caught.value)


@pytest.mark.skipif(not LISTS.is_dir(), reason="AudioSet's segment lists are not beside this checkout")
@pytest.mark.parametrize("name", ["balanced_train_segments", "eval_segments"])
def test_the_real_lists(tmp_path: Path, name: str) -> None:
    """Against the csv module; every line comes out byte for byte, also after a round trip through pandas."""
    lines = (LISTS / f"{name}.csv").read_text().splitlines()[3:]
    want = list(csv.reader(lines, skipinitialspace=True))
    rows = read_list(LISTS / f"{name}.csv")
    assert [list(row) for row in zip(rows.ids, rows.bos, rows.eos, rows.labels, strict=True)] == want
    assert [rows.line(i) for i in range(len(rows))] == lines
    pd.DataFrame(want, columns=NAMES).to_csv(tmp_path / "l.csv")
    again = read_list(tmp_path / "l.csv")
    assert [again.line(i) for i in range(len(again))] == lines

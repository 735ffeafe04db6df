"""balance.data.clip_ids: which video an id names, and what is refused."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest

from balance.data import clip_ids
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Index, Labels

VIDEO = "sn1zcw0bbZU"


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ("Ysn1zcw0bbZU", VIDEO),
        ("-0nqfRcnAYE_30.000", "-0nqfRcnAYE"),
        ("YABCDEFGHIJ", "YABCDEFGHIJ"),
        ("YABCDEFGHIJ_10", "YABCDEFGHIJ"),
        ("sn1zcw0bbZUx", "sn1zcw0bbZUx"),
        ("short", "short"),
        ("sn1zcw0bbZU\n", "sn1zcw0bbZU\n"),
        ("", ""),
        ("unbal_train/sn1zcw0bbZU", VIDEO),
        ("/a/b.c/Ysn1zcw0bbZU_30.000_40.000.wav", VIDEO),
        ("sn1zcw0bbZU.WAV", VIDEO),
        ("sn1zcw0bbZU.m4a", VIDEO),
        ("id_sn1zcw0bbZU", VIDEO),
        ("id_abcdefgh", "id_abcdefgh"),
        ("id_abcdefgh_30.000", "id_abcdefgh"),
        ("sn1zcw0bbZU.p0", VIDEO),
        ("sn1zcw0bbZU.p0.mp3", VIDEO),
        ("sn1zcw0bbZU_30000_40000", VIDEO),
        ("sn1zcw0bbZU_30.0-40.0.ogg", VIDEO),
        ("sn1zcw0bbZU_dog", "sn1zcw0bbZU_dog"),
        ("Y--aaILOrkII.mp3", "--aaILOrkII"),
        ("a.b", "a.b"),
    ],
)
def test_youtube_ids(clip, expected):
    assert clip_ids.comparable(pa.array([clip]), Ids.youtube).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ("fsdd_8_theo_16", "fsdd_8_theo_16"),
        ("fsdd_8_theo_16.wav", "fsdd_8_theo_16"),
        ("dog/1.FLAC", "dog/1"),
        ("dog/1.p0.flac", "dog/1"),
        ("dog/1.p0", "dog/1"),
        ("book.p12", "book.p12"),
        ("take_1.5", "take_1.5"),
        ("Ysn1zcw0bbZU", "Ysn1zcw0bbZU"),
        ("wav", "wav"),
    ],
)
def test_whole_ids(clip, expected):
    assert clip_ids.comparable(pa.array([clip]), Ids.whole).to_pylist() == [expected]


def lists(pool, eval):
    def index(ids):
        return Index("x", pa.array(ids), pa.array(ids), Labels.of([()] * len(ids)))

    return {"pool": index(pool), "eval": index(eval)}


YOUTUBE = [f"{i:011d}" for i in range(100)]
SPOKEN = [f"fsdd_{digit}_{who}_{take}" for digit in range(10) for who in ("theo", "jackson") for take in range(5)]


@pytest.mark.parametrize(
    ("given", "pool", "eval", "expected", "warning"),
    [
        (Ids.auto, YOUTUBE, [f"unbal/Y{x}.wav" for x in YOUTUBE], Ids.youtube, None),
        (Ids.auto, [*YOUTUBE, "a", "b"], YOUTUBE, Ids.youtube, None),
        (Ids.auto, SPOKEN, SPOKEN[:7], Ids.whole, None),
        (Ids.auto, SPOKEN, SPOKEN[:5], Ids.whole, "different forms"),  # all theo's, which have the shape by chance
        (Ids.auto, [*YOUTUBE, *SPOKEN], YOUTUBE, Ids.whole, "dataset.ids=youtube"),
        (
            Ids.auto,
            ["x-1", "y-2"],
            ["x/1", "y/2"],
            Ids.whole,
            "no evaluation id (such as x/1) has the form of a pool id",
        ),
        (Ids.auto, ["pool/a", "pool/b"], ["test/a", "test/c"], Ids.whole, "1 of the 2 evaluation clips have the name"),
        (Ids.auto, ["pool/a", "pool/b"], ["pool/a", "test/c"], Ids.whole, None),
        (Ids.auto, ["a.wav", "b.wav"], ["a", "c"], Ids.whole, None),
        (Ids.youtube, SPOKEN, YOUTUBE, Ids.youtube, None),
        (Ids.whole, YOUTUBE, YOUTUBE, Ids.whole, None),
    ],
)
def test_reading(caplog, given, pool, eval, expected, warning):
    caplog.set_level("INFO")
    assert clip_ids.reading(given, lists(pool, eval)) is expected
    assert "have that shape" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_without_evaluation_clips_there_is_nothing_to_read():
    assert clip_ids.reading(Ids.youtube, {"pool": lists(["a"], ["b"])["pool"]}) is Ids.whole


@pytest.mark.parametrize(
    ("id", "why"),
    [
        ("", "it is empty"),
        ("a\nb", "line end"),
        ("a\u2028b", "line end"),
        ("a\u0085", "line end"),
        ("a\tb", "control character"),
        ("a\x1b[0m", "control character"),
        ("\ufeffa", "byte order mark"),
        (" a", "blank"),
        ("a ", "blank"),
        ("a\u00a0", "blank"),
        ("\u200ba", "blank"),
        ("e\u0301", "NFC"),
    ],
)
def test_what_is_no_id(id, why):
    with pytest.raises(UserError, match=re.escape(f"x 1: {id!a} is no id: ") + ".*" + why):
        clip_ids.check_ids(pa.array(["ü b", id], pa.string()), lambda row: f"x {row}")


def test_an_id_that_is_not_there():
    with pytest.raises(UserError, match="x 1: no id"):
        clip_ids.check_ids(pa.array(["a", None]), lambda row: f"x {row}")


def test_what_is_an_id():
    clip_ids.check_ids(pa.array(["-a", "a b", "é", "a/b", "日本", "👩\u200d🚀"]), str)


def test_an_id_file_names_the_line(tmp_path):
    path = tmp_path / "x.ids.txt"
    for data, words in (
        (b"a\nb \n", "line 2: 'b ' is no id"),
        (b"\xef\xbb\xbfa\nb\n", "line 1: '\\\\ufeffa' is no id: a byte order mark"),
        (b"a\n\nb", "line 2: empty line"),
        (b"\xff", "not UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            clip_ids.read_id_file(path)
    path.write_bytes(b"a\r\nb")
    assert clip_ids.read_id_file(path).to_pylist() == ["a", "b"]


def test_ids_of_paths():
    paths = (" a.p0", "e\u0301 ", "a.b", "e\u0301/ a /b.p0", "x.p0/y")
    assert [clip_ids.id_of_path(x) for x in paths] == ["a", "é", "a.b", "é/a/b", "x.p0/y"]

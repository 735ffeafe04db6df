"""What files that are no audio are called."""

import gzip
import io
import json
import zipfile

import pytest

from balance.audio.sniff import container, no_audio


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (bytes(512), "only zero bytes"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n<HTML><body>", "an HTML page"),
        (b"<!-- cached -->\n<html>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text"),
        (json.dumps({"error": "not found"}).encode(), "a JSON text"),
        ("Nicht gefunden: für immer\n".encode(), "a text"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n", "a playlist"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (zipped(), "a packed archive"),
        (gzip.compress(b"a", mtime=0), "a packed archive"),
    ],
)
def test_what_is_no_audio_is_named(content: bytes, words: str) -> None:
    assert no_audio(content).startswith(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "an MP4/M4A file"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", "a WebM/Matroska file"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "a WMA/ASF file"),
        (b"\xff\xf1\x50\x80\x2e\x7f\xfc", "an AAC file"),
        (b"OggS\0\2", "an Ogg file"),
        (b"\x01\x02\x03\x00\x80garbage", ""),
    ],
)
def test_containers_may_hold_audio(content: bytes, words: str) -> None:
    assert no_audio(content) == ""
    assert container(content) == words

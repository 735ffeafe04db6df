"""What a file is by its first bytes, in words for a person whose download is not audio.

In: the first bytes of a file that libsndfile cannot read. Out: what it is instead of audio, or the kind of container
that FFmpeg may read; "" for bytes that say nothing. Names are never looked at: a web page called `x.wav` is a web page.
"""

from __future__ import annotations

import re

SNIFFED_BYTES = 512

_NO_AUDIO: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not audio: type git lfs pull where it came from"),
    (rb"#EXTM3U|\[playlist\]|ffconcat version", "a playlist, not audio: the download failed"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8", "a picture, not audio"),
    (rb"%PDF", "a PDF document, not audio"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|Rar!", "a packed archive, not audio: unpack it"),
)
_CONTAINERS: tuple[tuple[bytes, str], ...] = (
    (rb"[\0-\x1f]...(?:ftyp|moov|moof|mdat|free|wide|skip)", "an MP4/M4A file"),
    (rb"\x1a\x45\xdf\xa3", "a WebM/Matroska file"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA/ASF file"),
    (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", "an AAC file"),
    (rb"\x0b\x77", "an AC-3 file"),
    (rb"#!AMR", "an AMR file"),
    (rb"FLV\x01", "a Flash video"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"OggS", "an Ogg file"),
)
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (rb"(?i)(<!--.*?-->\s*)?<(!doctype html|html|head|body|script|title|meta)", "an HTML page"),
    (rb"<\?xml|<[A-Za-z]", "an XML text"),
    (rb"[{\[]", "a JSON text"),
    (rb"", "a text"),
)


def no_audio(head: bytes) -> str:
    """What a file that begins with `head` (up to `SNIFFED_BYTES`) is, where it is certainly no audio; else ""."""
    if not head:
        return "an empty file: the download failed"
    if not head.strip(b"\0"):
        return "only zero bytes: the download failed"
    for pattern, words in _NO_AUDIO:
        if re.match(pattern, head, re.DOTALL):
            return words
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if container(head) or re.search(rb"[^\t\n\f\r -~\x80-\xff]", text):
        return ""
    kind = next(words for pattern, words in _TEXTS if re.match(pattern, text, re.DOTALL))
    return f"{kind}, not audio: the download failed"


def container(head: bytes) -> str:
    """The kind of container that begins with `head`, such as "an MP4/M4A file"; "" for bytes that say nothing."""
    return next((words for pattern, words in _CONTAINERS if re.match(pattern, head, re.DOTALL)), "")

"""What a file is by its first bytes, in words for a person whose download is not audio.

In: the first bytes of a file that libsndfile cannot read. Out: a sentence for `failures.jsonl`, or "" for bytes that
say nothing. Names are never looked at: a web page called `x.wav` is a web page.
"""

from __future__ import annotations

import re

SNIFFED_BYTES = 512

_CONVERT = "which libsndfile cannot read: convert it to wav, flac, ogg or mp3"
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"....ftyp", f"an MP4/M4A file, {_CONVERT}"),
    (rb"\x1a\x45\xdf\xa3", f"a WebM/Matroska file, {_CONVERT}"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", f"a WMA/ASF file, {_CONVERT}"),
    (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", f"an AAC file, {_CONVERT}"),
    (rb"\x0b\x77", f"an AC-3 file, {_CONVERT}"),
    (rb"#!AMR", f"an AMR file, {_CONVERT}"),
    (rb"FLV\x01", f"a Flash video, {_CONVERT}"),
    (rb"RIFF....AVI ", f"an AVI video, {_CONVERT}"),
    (rb"OggS", f"an Ogg file with a codec {_CONVERT}"),
    (rb"version https://git-lfs", "a Git LFS pointer, not audio: type git lfs pull where it came from"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8", "a picture, not audio"),
    (rb"%PDF", "a PDF document, not audio"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|Rar!", "a packed archive, not audio: unpack it"),
)
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (rb"(?i)(<!--.*?-->\s*)?<(!doctype html|html|head|body|script|title|meta)", "a web page (HTML)"),
    (rb"<\?xml|<[A-Za-z]", "an XML text"),
    (rb"[{\[]", "a JSON text"),
    (rb"", "a text"),
)


def describe(head: bytes) -> str:
    """What a file that begins with `head` (up to `SNIFFED_BYTES`) is, where that is no audio that we read; else ""."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "only zero bytes: the download failed"
    for pattern, words in _SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return words
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.search(rb"[^\t\n\f\r -~\x80-\xff]", text):
        return ""
    kind = next(words for pattern, words in _TEXTS if re.match(pattern, text, re.DOTALL))
    return f"{kind}, not audio: the download failed"

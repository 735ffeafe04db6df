"""Files that appear complete or not at all: the only place that writes atomically.

A file is written under a temporary name in its own folder and renamed: a reader, a crash or a full disk never meets
half a file under its final name. The folder may be shared: a temporary file is made exclusively, under a name that
nobody can guess, so that no file or link of another user's is ever written through; its mode is the umask's. Behind a
URL a file is gathered in memory and written with one request. A kept `.npz` ends in a checksum of all its bytes, since
numpy does not read a member to its end, where zip has its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pwd
import secrets
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from balance.runtime.remote import AnyPath, RemotePath

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_LINES_PER_BLOCK = 65_536
_CHECKSUM_CHARS = 64  # of a sha256, as hexadecimal digits


def _temporary(path: Path) -> Path:
    """A name beside `path` that is not there: tmp-{stem}-{random}{suffixes}."""
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f"tmp-{stem}-{secrets.token_hex(8)}{dot}{suffixes}")


@contextlib.contextmanager
def draft(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, open to write and read; whoever wants to keep it renames it (`file.name`) when it is
    closed, and what still has the temporary name at the end of the block is removed."""
    temporary = _temporary(path)
    try:
        with open(temporary, "x+b", buffering=_BLOCK_BYTES) as file:  # exclusively: this follows no link
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def atomic(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file that gets its name `path` when the block ends well."""
    if isinstance(path, RemotePath):
        with io.BytesIO() as gathered:
            yield gathered
            path.write_bytes(gathered.getvalue())
        return
    with draft(path) as file:
        yield file
        file.close()  # where a full disk or a network says no
        replace(file.name, path)


@contextlib.contextmanager
def atomic_text(path: AnyPath) -> Iterator[IO[str]]:
    """A text file (UTF-8, LF) that gets its name `path` when the block ends well."""
    with atomic(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()  # all is written; the file stays open


def replace(temporary: str | Path, path: Path) -> None:
    """`os.replace`; PermissionError says whose `path` is where only they may replace it."""
    try:
        os.replace(temporary, path)
    except PermissionError as error:
        if not is_anothers(path, error):
            raise
        text = f"it belongs to {_owner(path)}, and in this folder nobody else may replace it"
        raise PermissionError(error.errno, text, str(path)) from None


def remove_left_over(path: Path) -> None:
    """Remove what a dead job left; another user's stays, with a warning, where only they may remove it."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError as error:
        if not is_anothers(path, error):
            raise
        log.warning("%s", left_by_another(path))


def is_anothers(path: Path, error: PermissionError) -> bool:
    """Whether this error means a sticky folder, where a file's owner alone may rename or remove it."""
    return error.errno == errno.EPERM and os.path.lexists(path)


def left_by_another(path: Path) -> str:
    """The sentence that says whose left-over is passed over."""
    return f"{path} was left by a dead job of {_owner(path)}, who alone may remove it in this folder: it is passed over"


def _owner(path: Path) -> str:
    number = path.lstat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def atomic_symlink(target: str, path: Path) -> None:
    """A symbolic link at `path`, in place of what was there."""
    temporary = _temporary(path)
    temporary.symlink_to(target)
    try:
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_lines(file: BinaryIO, lines: Any) -> None:
    """Each text of an Arrow array (strings or binaries), and an LF behind it: no Python object per line."""
    import pyarrow as pa  # here, so that the light modules may import this one
    import pyarrow.compute as pc

    end = pa.scalar("\n", lines.type)
    for first in range(0, len(lines), _LINES_PER_BLOCK):
        ended = pc.binary_join_element_wise(lines[first : first + _LINES_PER_BLOCK], pa.scalar("", lines.type), end)
        size = pc.sum(pc.binary_length(ended)).as_py()
        file.write(ended.buffers()[2].slice(0, size))


def write_json(path: AnyPath, value: Any) -> None:
    """`value` as indented JSON; NaN and infinities are refused, since JSON has none."""
    with atomic_text(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def write_npz(path: AnyPath, arrays: Mapping[str, Any]) -> None:
    """Arrays by name, for `read_npz` (and `numpy.load`): the zip file's comment is a checksum of all that precedes it.

    The bytes are on the disk before the file has its name: it holds hours of work. Raises OSError, Unreachable.
    """
    import numpy as np  # here, so that the light modules may import this one

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        np.savez(file, **arrays)
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = bytes(_CHECKSUM_CHARS)
        file.write(_checksum(file))
        if isinstance(path, Path):
            file.flush()
            os.fsync(file.fileno())


def read_npz(path: AnyPath) -> dict[str, npt.NDArray[Any]] | None:
    """All arrays of a file of `write_npz`; None where there is none, or, with a warning, one that is damaged."""
    import numpy as np

    try:
        with path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_whole()) as file:
            if _checksum(file) != file.read():
                raise ValueError("its checksum does not match, or an earlier version wrote it without one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used and is computed anew: %s", path, error)
        return None


def _checksum(file: BinaryIO) -> bytes:
    """The sha256, in hexadecimal digits, of an open file up to the place of the checksum, where the file then is."""
    left = file.seek(0, os.SEEK_END) - _CHECKSUM_CHARS
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest().encode()


def sha256_file(path: AnyPath) -> str:
    """Hex sha256 of a file's bytes, read in blocks of 1 MiB (a memory map would count as resident memory)."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) if isinstance(path, Path) else path.open() as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def input_hashes(paths: Sequence[AnyPath | None]) -> dict[str, str]:
    """Path -> sha256 of the input files that are files."""
    return {str(path): sha256_file(path) for path in paths if path is not None and path.is_file()}

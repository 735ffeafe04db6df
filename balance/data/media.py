"""A clip's key -> its bytes: a file under the media root, or a member of a container, read in place.

The decoder processes import this, so it is standard library alone (pyarrow only where the media are parquet, fsspec
only where they lie behind a URL). Keys: a path relative to the media root, with `#t=bos,eos` for seconds inside the
file; `shard-00012.tar: abc.flac` with its place in the tar; `train-3.parquet row 118`.
A parquet row group is streamed forward and the reader keeps its place: clips come in order, so a process unpacks each
once; going back starts the row group anew.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from balance.runtime.remote import AnyPath, RemotePath, Unreachable, place

PARQUET_BATCH_ROWS = 32
_ROW = ".parquet row "
_MEMBER = ".tar: "

# What libsndfile reads by its content; the names people give such files.
AUDIO_SUFFIXES = frozenset(
    {
        "aif",
        "aifc",
        "aiff",
        "au",
        "avr",
        "caf",
        "flac",
        "htk",
        "ircam",
        "mp1",
        "mp2",
        "mp3",
        "mpc",
        "nist",
        "oga",
        "ogg",
    }
    | {"ogg", "opus", "paf", "pvf", "rf64", "sd2", "sds", "sf", "snd", "svx", "voc", "w64", "wav", "wave", "wve", "xi"}
)
# What FFmpeg reads and libsndfile does not, as download tools, phones and cameras name it.
FFMPEG_SUFFIXES = frozenset(
    {"3gp", "aac", "ac3", "amr", "ape", "asf", "avi", "dts", "eac3", "flv", "m4a", "m4b", "mka", "mkv", "mov", "mp4"}
    | {"mpeg", "mpg", "spx", "tta", "weba", "webm", "wma", "wv"}
)
ALL_AUDIO = AUDIO_SUFFIXES | FFMPEG_SUFFIXES


def tar_key(shard: str, member: str) -> str:
    """The key of a member of a tar shard (a path relative to the media root)."""
    return f"{shard}: {member}"


def parquet_key(file: str, row: int) -> str:
    """The key of a row of a parquet file (a path relative to the media root)."""
    return f"{file} row {row}"


STRETCH = r"#t=[0-9]+(?:\.[0-9]+)?,[0-9]+(?:\.[0-9]+)?$"  # as browsers read it: a media fragment


def stretch_key(path: str, bos: str | None, eos: str | None) -> str:
    """The key of seconds `bos` … `eos` of a file."""
    return f"{path}#t={bos},{eos}"


def stretch_s(path: str) -> tuple[float, float] | None:
    """The seconds of the file that a key means; None for the whole file."""
    if "#t=" not in path or not (found := re.search(STRETCH, path)):
        return None
    bos, eos = found[0].removeprefix("#t=").split(",")
    return float(bos), float(eos)


def without_stretch(path: str) -> str:
    """The key of the whole file."""
    return re.sub(STRETCH, "", path) if "#t=" in path else path


def container(format: str, path: str) -> str:
    """The file under the media root that holds the clip with this key: for plain formats the key but for its times."""
    if format == "webdataset":
        return path[: path.index(_MEMBER) + len(".tar")]
    if format == "parquet":
        return path[: path.rindex(_ROW) + len(".parquet")]
    return without_stretch(path)


def relative_path(path: str, media_root: str | AnyPath | None) -> str | None:
    """A path relative to the media root, written plainly (`./x/../y` is `y`); None where it leads outside.

    media_root: under which an absolute path may lie. Links are not followed: one inside the media root may lead
    anywhere.
    """
    plain = os.path.normpath(path)
    if isinstance(media_root, RemotePath):
        media_root = None
    if os.path.isabs(plain) and media_root is not None:
        plain = os.path.relpath(plain, os.path.abspath(media_root))
    return None if os.path.isabs(plain) or plain.split("/", 1)[0] == ".." else plain


def is_clutter(path: str) -> bool:
    """Whether a file is what macOS leaves beside the data (`._x`, `.DS_Store`, `__MACOSX/`): nobody's clip."""
    name = path.rpartition("/")[2]
    return name.startswith("._") or name == ".DS_Store" or "__MACOSX" in path.split("/")


def parquet_source(file: AnyPath) -> Path | BinaryIO:
    """What Arrow opens as a parquet file."""
    return file if isinstance(file, Path) else file.open()


class MediaReader:
    """Opens clips by their keys. A decoder process makes one and keeps it, for the place in a parquet file and the
    connection to a server.

    media_root: a folder, or its URL; format: the value of `dataset.format`; columns: names of the parquet columns
    (`audio` is used).
    """

    def __init__(self, media_root: str, format: str, columns: Mapping[str, str]) -> None:
        self._media_root, self._format, self._columns = place(media_root), format, columns
        self._parquet: _ParquetColumn | None = None  # of the file that the clips come from now

    def open(self, path: str, offset: int, size: int) -> str | BinaryIO:
        """A path, or an open binary file to close, with the audio of the clip whose key is `path`.

        offset, size: bytes, its place in a tar; else −1 and the size of its file when it was listed, −1 where unknown.
        Raises OSError whose strerror names container and member, and no folder; Unreachable.
        """
        file = self._media_root / container(self._format, path)
        if self._format == "webdataset":
            return _read_member(file, path, offset, size)
        if self._format == "parquet":
            return self._read_row(file, path, int(path[path.rindex(_ROW) + len(_ROW) :]), size)
        return _whole_file(file, size)

    def close(self) -> None:
        """Closes the parquet file, if one is open."""
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None

    def _read_row(self, file: AnyPath, path: str, row: int, size: int) -> str | BinaryIO:
        try:
            if self._parquet is None or self._parquet.file != file:
                self.close()
                with _listed(file, size):
                    self._parquet = _ParquetColumn(file, self._columns["audio"])
            data, name = self._parquet.read(row)
        except Unreachable:
            self.close()
            raise
        except Exception as error:  # over a damaged file Arrow raises nearly everything
            self.close()
            # Not Arrow's own words, which hold paths.
            known = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
            raise _fail(path, known or f"the row cannot be read ({type(error).__name__})") from None
        if data is not None:
            return io.BytesIO(data)
        if not name:
            raise _fail(path, "neither bytes nor a path in the row")
        plain = relative_path(name, self._media_root)
        if plain is None:
            raise _fail(path, "the row has no bytes, and its path leads outside dataset.media")
        named = self._media_root / plain
        if not named.is_file():
            raise _fail(path, f"the row has no bytes, and there is no file {plain} under dataset.media")
        return _whole_file(named, -1)


class _ParquetColumn:
    """Forward reading of the audio column of one parquet file."""

    def __init__(self, file: AnyPath, column: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = file
        self._parquet = pq.ParquetFile(parquet_source(file), buffer_size=1 << 20, pre_buffer=False)
        kind = self._parquet.schema_arrow.field(column).type
        self._is_struct = pa.types.is_struct(kind)
        names = {field.name for field in kind} if self._is_struct else set()
        self._leaves = [f"{column}.{name}" for name in ("bytes", "path") if name in names] or [column]
        self._column = column
        metadata = self._parquet.metadata
        self._group_sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = self._stop = 0

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """(the audio's bytes, the path of its file), None where the row has none."""
        group, start = 0, 0
        while group < len(self._group_sizes) and row >= start + self._group_sizes[group]:
            start += self._group_sizes[group]
            group += 1
        if group == len(self._group_sizes):
            raise IndexError(row)
        if group != self._group or row < self._first:
            self._group = group
            self._batches = self._parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=self._leaves)
            self._first = self._stop = start
        while row >= self._stop:
            self._batch = next(self._batches).column(0)
            self._first, self._stop = self._stop, self._stop + len(self._batch)
        value = self._batch[row - self._first].as_py()
        if not self._is_struct:
            return value, None
        return (None, None) if value is None else (value.get("bytes"), value.get("path"))

    def close(self) -> None:
        self._parquet.close()


def _fail(path: str, why: str) -> OSError:
    return OSError(errno.EIO, f"{os.path.basename(path)}: {why}")


def _whole_file(file: AnyPath, size: int) -> str | BinaryIO:
    """A path on disk; what lies behind a URL is fetched at once. size: in bytes, −1 where unknown."""
    if isinstance(file, Path):
        return str(file)
    with _listed(file, size):
        return io.BytesIO(file.read_bytes(size))


@contextlib.contextmanager
def _listed(file: AnyPath, size: int) -> Iterator[None]:
    """A remote file that is gone since it was listed stops the run: it may be its whole bucket. size: in bytes, when it
    was listed; −1 where it was not."""
    try:
        yield
    except FileNotFoundError as error:
        if not isinstance(file, RemotePath):
            raise
        if size < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise Unreachable(f"{file} was there when it was listed and is gone: run the same command again") from None


def _read_member(file: AnyPath, path: str, offset: int, size: int) -> BinaryIO:
    if offset < 0:
        raise _fail(path, "the shard has no audio of this key")
    if isinstance(file, RemotePath):
        with _listed(file, size):
            return io.BytesIO(file.read_range(offset, offset + size))
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise _fail(path, os.strerror(error.errno or errno.EIO)) from None
    try:
        data = bytearray()
        while len(data) < size and (block := os.pread(descriptor, size - len(data), offset + len(data))):
            data += block
    finally:
        os.close(descriptor)
    if len(data) < size:
        raise _fail(path, f"the shard is cut short ({len(data)} of {size} bytes)")
    return io.BytesIO(data)

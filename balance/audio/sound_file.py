"""An open audio file -> its samples block by block, from the first to the end of the data, whatever its header says.

libsndfile decodes, and believes headers: it stops where an mp3's estimated length ends, at the first of several joined
files, at a size of 0 that a recorder never filled in. So it is shown a `_View`: the file with such a size replaced,
with its end moved out of sight, or from the next joined file on. What cannot be decoded is said in `partial`. The
price: for those files libsndfile reads through Python, which costs a tenth of the decoding.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

BLOCK_VALUES = 147_456  # of all channels together, 576 KiB: whole mp3 frames (1152) of one or two channels
_SLAB_BLOCKS = 7  # 4 MiB of memory at a time: 10 s of stereo
_READ_AHEAD = 65_536
_FAR = 1 << 40  # bytes: where the end of a file is moved to
_ID3V1_BYTES = 128  # libsndfile's mp3 decoder reads them at the end before it believes in the end
_UNKNOWN = 0x7FFF_F000  # a size in a 32-bit header from here on was written by a stream that could not know it
_HEADER_SLACK_BYTES = 64  # sizes that are off by a chunk's header promise no sound
_MAX_CHUNKS = 1000  # looked at before the samples
_MP3_SLACK_SAMPLES = 2 * 1152  # encoders count a frame more or less
_MP3_TAIL_BYTES = 8192  # of frames behind the last one that the header counts: less is an encoder's miscount


class Undecodable(Exception):
    """A clip that cannot be encoded. `reason` is `undecodable`, `too_short` or `not_finite`; `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Unopened(Undecodable):
    """A file that libsndfile does not open: another decoder may."""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """A file opened to be read. Raises OSError, and Undecodable for what is no regular file: a pipe could wait."""
    try:
        _refuse_irregular(os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
    file = io.FileIO(descriptor)
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode)
    except Undecodable:
        file.close()
        raise
    return file


def _refuse_irregular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        what = next((words for is_kind, words in kinds if is_kind(mode)), "a device")
        raise Undecodable("undecodable", f"{what}, not a file")


def without_first(blocks: Iterator[npt.NDArray[np.float32]], size: int) -> Iterator[npt.NDArray[np.float32]]:
    """The blocks without their first `size` samples."""
    for block in blocks:
        if size < len(block):
            yield block[size:]
        size = max(0, size - len(block))


class LibsndfileSound:
    """The samples of one open file.

    sample_rate: Hz; channels. After `blocks()` has ended, `partial` says in words what could not be decoded, with the
    seconds announced where a header announces them; "" where nothing is known to be missing.
    """

    def __init__(self, file: BinaryIO) -> None:
        """file: seekable; it stays open and the caller's own. Raises Unopened, OSError."""
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._links, self._breaks_off = _ogg_links(file, self._size)
        try:
            part = self._part(0)
        except soundfile.LibsndfileError as error:
            raise Unopened("undecodable", self._why_refused(error.error_string)) from error
        self.sample_rate, self.channels = part.sample_rate, part.channels
        self.partial = ""
        self._first: _Part | None = part

    def _why_refused(self, words: str) -> str:
        """What libsndfile refused, in words without a name."""
        unknown = "not a regular file" in words or "Format not recognised" in words
        return "not a known audio format" if unknown else words

    def blocks(self, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """(n, channels) float32 from sample `start` on; n the same for all but the last, and the first of a `start`."""
        part = self._first or self._part(0)
        self._first, self.partial = None, ""
        part.seek_before(start)
        yield from without_first(self._blocks(part), start - part.num_samples)

    def _blocks(self, part: _Part | None) -> Iterator[npt.NDArray[np.float32]]:
        """From where `part` stands to the end of the last joined file."""
        assert part is not None
        num_samples = part.num_samples
        size = max(1, BLOCK_VALUES // self.channels)
        slab = np.empty((0, self.channels), dtype=np.float32)  # what is not yet read of it
        filled = 0
        while part is not None:
            if len(slab) < size:  # one large piece of memory: freed and taken again it stays mapped, small ones do not
                slab = np.empty((_SLAB_BLOCKS * size, self.channels), dtype=np.float32)
            got = part.read(slab[filled:size])
            filled += got
            num_samples += got
            if filled == size:
                yield slab[:size]
                slab, filled = slab[size:], 0
            elif not got:
                part = self._next(part, num_samples)
        if filled:
            yield slab[:filled]

    def _part(self, start: int) -> _Part:
        """The part of the file that begins at this byte. Raises LibsndfileError."""
        file, size = self._file, self._size
        if len(self._links) > 1:
            stop = next((link for link in self._links if link > start), size)
            return _Part(_Stream(_View(file, start, stop)), start)
        if patch := _unwritten_size(file, start, size):
            return _Part(_Stream(_View(file, start, size, patch)), start)
        stream = self._plain() if start == 0 else _Stream(_View(file, start, size))
        if stream.format != "MP3":
            return _Part(stream, start, announced=_announced(file, size, stream))
        if _counts_frames(file, start):
            return _Part(stream, start, announced=stream.frames, slack=_MP3_SLACK_SAMPLES)
        stream.close()

        def reopen() -> _Stream:
            return _Stream(_View(file, start, size, endless=True))

        return _Part(reopen(), start, reopen=reopen)

    def _plain(self) -> _Stream:
        self._file.seek(0)
        if isinstance(self._file, io.FileIO):
            return _Stream(self._file.fileno(), closefd=False)
        return _Stream(self._file)

    def _next(self, part: _Part, num_samples: int) -> _Part | None:
        """The joined file that follows `part`; None at the end. Says in `partial` what is missing."""
        decoded = f"{num_samples / self.sample_rate:.3f} s decoded"
        position = part.position(self._file)
        part.close()
        missing = part.announced - part.num_samples if part.announced is not None else 0
        if missing > part.slack:
            announced = (num_samples + missing) / self.sample_rate
            self.partial = f"{announced:.3f} s announced, {decoded}"
        elif part.broken or self._breaks_off:
            self.partial = f"{decoded}; what follows cannot be decoded"
        start = self._next_start(part, position)
        if start is None:
            return None
        try:
            following = self._part(start)
        except soundfile.LibsndfileError:
            return None
        if (following.sample_rate, following.channels) != (self.sample_rate, self.channels):
            self.partial = (
                f"{decoded}, then the file goes on at {following.sample_rate} Hz with {following.channels} channels"
            )
            following.close()
            return None
        return following

    def _next_start(self, part: _Part, position: int) -> int | None:
        """Where another joined file begins. position: where libsndfile stopped to read."""
        if part.format == "OGG":
            return next((link for link in self._links if link > part.start), None)
        if part.format == "FLAC":  # read ahead by up to a block
            begin = max(part.start + 8, position - 65_536)
            at = _find(self._file, b"fLaC\0\0\0\x22", begin)
            return None if at < 0 else at
        if part.format == "MP3" and position < self._size:
            head = _peek(self._file, position, 10)
            joined = head.startswith(b"ID3") or _counts_frames(self._file, position)
            goes_on = _FRAME.match(head) is not None and self._size - position >= _MP3_TAIL_BYTES
            return position if joined or goes_on else None
        return None


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that never seeks: by itself it seeks after every block, which an mp3 decoder answers at a price."""

    def seekable(self) -> bool:
        return False


@dataclass(slots=True, eq=False)
class _Part:
    """One of the joined files (nearly always the only one) as libsndfile reads it.

    start: its first byte; announced: samples per channel that its header promises, where it does; slack: how many may
    be missing without a word; reopen: gives the stream anew where the end is out of its sight; num_samples: read so
    far; broken: libsndfile gave up.
    """

    stream: _Stream
    start: int
    announced: int | None = None
    slack: int = 0
    reopen: Callable[[], _Stream] | None = None
    num_samples: int = 0
    broken: bool = False
    format: str = field(init=False)
    sample_rate: int = field(init=False)
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.format = self.stream.format
        self.sample_rate, self.channels = int(self.stream.samplerate), int(self.stream.channels)
        self.stream.seek(0)  # as soundfile.read does: it moves an mp3's last bits

    def seek_before(self, sample: int) -> None:
        """Go to a second before this sample, or before the end: what follows is the same as when all is decoded."""
        near = min(sample, self.stream.frames) - self.sample_rate
        if near <= 0:
            return
        try:
            self.stream.seek(near)
            self.num_samples = near
        except soundfile.LibsndfileError:  # of a length that nobody knows: read from the start
            self.stream.seek(0)

    def read(self, out: npt.NDArray[np.float32]) -> int:
        """Fill the (n, channels) float32 `out` from its start; the samples read, 0 at the end."""
        wanted = min(len(out), self.stream.frames - self.num_samples)
        if wanted <= 0 or self.broken:
            return 0
        try:
            got = len(self.stream.read(out=out[:wanted]))
        except soundfile.LibsndfileError:  # what came before the damage is written, and counted by libsndfile
            self.broken = True
            got = max(0, self.stream.tell() - self.num_samples)
            if self.reopen is not None:
                got = self._read_frames(out[:wanted])
        self.num_samples += got
        return got

    def _read_frames(self, out: npt.NDArray[np.float32]) -> int:
        """What a failed call dropped although it had been decoded, mp3 frame by mp3 frame; the samples read."""
        assert self.reopen is not None
        self.stream.close()
        self.stream = self.reopen()
        self.stream.seek(0)
        frame = 1152 if self.sample_rate >= 32_000 else 576
        scratch = np.empty((frame, self.channels), dtype=np.float32)
        got = -self.num_samples  # what is known already
        with contextlib.suppress(soundfile.LibsndfileError):
            while got < len(out) and (size := len(self.stream.read(out=scratch))):
                if got >= 0:
                    out[got : got + size] = scratch[:size][: len(out) - got]
                got += size
        return min(max(got, 0), len(out))

    def position(self, file: BinaryIO) -> int:
        """Where in the file libsndfile stopped to read."""
        view = self.stream.name
        return view.position if isinstance(view, _View) else file.tell()

    def close(self) -> None:
        self.stream.close()


class _View:
    """What libsndfile is shown of a file: its bytes from `start` to `stop`.

    patch: place in the file -> other bytes; endless: the end is said to be far away, and reading past `stop` gives
    nothing, but for the zeros where a tag would be.
    """

    def __init__(
        self, file: BinaryIO, start: int, stop: int, patch: dict[int, bytes] | None = None, *, endless: bool = False
    ) -> None:
        self._file, self._start, self._stop = file, start, stop
        self._patch = patch or {}
        self._end = _FAR if endless else stop - start
        self._at = 0
        self._ahead, self._ahead_at = b"", 0  # bytes of the file, and where they stand in it

    @property
    def position(self) -> int:
        """The place in the file."""
        return self._start + self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._end)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer unless the end is reached: libsndfile takes less for the end."""
        out = memoryview(buffer)
        done = 0
        while done < len(out):
            first = self.position - self._ahead_at
            if not 0 <= first < len(self._ahead):
                if self.position >= self._stop:
                    return done or self._beyond(out)
                self._read_ahead()
                first = 0
            data = self._ahead[first : first + len(out) - done]
            out[done : done + len(data)] = data
            done += len(data)
            self._at += len(data)
        return done

    def _read_ahead(self) -> None:
        begin = self._ahead_at = self.position
        self._file.seek(begin)
        data = bytearray(self._file.read(min(_READ_AHEAD, self._stop - begin)))
        for place, patch in self._patch.items():
            first, last = max(place, begin), min(place + len(patch), begin + len(data))
            if first < last:
                data[first - begin : last - begin] = patch[first - place : last - place]
        self._ahead = bytes(data)
        if not data:
            self._stop = begin  # the file has become shorter

    def _beyond(self, out: memoryview) -> int:
        if not self._end - _ID3V1_BYTES <= self._at < self._end or self._end != _FAR:
            return 0
        got = min(len(out), self._end - self._at)
        out[:got] = bytes(got)
        self._at += got
        return got


def _peek(file: BinaryIO, at: int, size: int) -> bytes:
    """Up to `size` bytes from this place; the file's own place, which libsndfile shares, stays."""
    before = file.tell()
    file.seek(at)
    data = file.read(size)
    file.seek(before)
    return data


def _find(file: BinaryIO, marker: bytes, begin: int) -> int:
    """The first place of `marker` from `begin` on, −1 where there is none."""
    size = 1 << 20
    while len(data := _peek(file, begin, size)) >= len(marker):
        if (found := data.find(marker)) >= 0:
            return begin + found
        begin += len(data) - len(marker) + 1
    return -1


# -- mp3 -----------------------------------------------------------------------------------------------------------

_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]", re.DOTALL)  # sync, version and layer, bit rate


def _counts_frames(file: BinaryIO, start: int) -> bool:
    """Whether the mp3 at this byte begins with a header that counts its frames (Xing, Info): its length is exact."""
    head = _peek(file, start, 10)
    if len(head) == 10 and head.startswith(b"ID3"):
        start += 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    head = _peek(file, start, 64)
    tag = re.search(rb"(Xing|Info)...(.)", head, re.DOTALL)
    return _FRAME.match(head) is not None and tag is not None and bool(tag[2][0] & 1)


# -- ogg -----------------------------------------------------------------------------------------------------------


def _ogg_links(file: BinaryIO, size: int) -> tuple[list[int], bool]:
    """(where each of the chained streams of an Ogg file begins, whether its last page is cut off)."""
    links: list[int] = []
    at, was_first = 0, False
    while len(head := _peek(file, at, 27 + 255)) >= 27 and head.startswith(b"OggS"):
        is_first = bool(head[5] & 2)
        if is_first and not was_first:  # the first pages of streams that are interleaved stand together
            links.append(at)
        was_first = is_first
        at += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return links, at > size


# -- sizes in headers ----------------------------------------------------------------------------------------------


def _chunks(file: BinaryIO, start: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, size as written, first byte of its content) of the chunks of a RIFF or AIFF file; none of others."""
    magic = _peek(file, start, 12)
    order: Any = "big" if magic.startswith(b"FORM") else "little"
    if magic[:4] not in (b"RIFF", b"RF64", b"FORM"):
        return
    at = start + 12
    for _ in range(_MAX_CHUNKS):
        head = _peek(file, at, 8)
        if len(head) < 8:
            return
        size = int.from_bytes(head[4:], order)
        yield head[:4], size, at + 8
        at += 8 + size + size % 2


def _unwritten_size(file: BinaryIO, start: int, stop: int) -> dict[int, bytes]:
    """A patch for the size of the samples where the header says "none" or "unknown", and libsndfile believes it."""
    head = _peek(file, start, 28)
    if head.startswith(b".snd") and head[8:12] == bytes(4):
        return {start + 8: b"\xff" * 4}
    if head.startswith(b"caff"):
        return _unwritten_caf_size(file, start + 8, stop)
    wide: int | None = None
    for name, size, content in _chunks(file, start):
        if name == b"ds64":
            wide = content + 8
        elif name == b"data":
            if wide is not None and size == 0xFFFF_FFFF:
                unwritten = _peek(file, wide, 8) == bytes(8) and content < stop
                return {wide: (stop - content).to_bytes(8, "little")} if unwritten else {}
            # A list of chunks that ends with the file: there are really no samples.
            if size == 0 and content < stop and _chunks_end(file, content) != stop:
                return {content - 4: b"\xff" * 4}
            return {}
    return {}


def _chunks_end(file: BinaryIO, at: int) -> int:
    """Where the little-endian chunks from this byte on end; −1 for bytes that are no chunks."""
    while len(head := _peek(file, at, 8)) == 8:
        if not head[:4].isalnum() and not head[:4].strip().isalnum():
            return -1
        at += 8 + (size := int.from_bytes(head[4:], "little")) + size % 2
    return at


def _unwritten_caf_size(file: BinaryIO, at: int, stop: int) -> dict[int, bytes]:
    while len(head := _peek(file, at, 12)) == 12:
        size = int.from_bytes(head[4:], "big", signed=True)
        if head.startswith(b"data"):
            return {at + 4: (stop - at - 12).to_bytes(8, "big")} if size < 0 else {}
        if size < 0:
            break
        at += 12 + size
    return {}


def _announced(file: BinaryIO, size: int, stream: _Stream) -> int | None:
    """Samples per channel that a header other than mp3's promises, where it does."""
    if stream.format == "FLAC":
        return int(stream.frames) if stream.frames < np.iinfo(np.int64).max else None
    for name, written, content in _chunks(file, 0):
        if name in (b"data", b"SSND"):
            there = size - content
            cut_off = 0 < there < written - _HEADER_SLACK_BYTES and written < _UNKNOWN
            return int(stream.frames * written / there) if cut_off else None
    return None

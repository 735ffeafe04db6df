"""Untrusted `torch.save` files: their content without running any of it, and no byte allocated that the file lacks.

In: a file, a zip archive or torch's older sequence of pickles. Out: a `SavedFile`: its content with a `SavedTensor` in
each tensor's place (sizes, checked against the file, no memory) and its tensors one by one. The pickle is not given to
an unpickler: its opcodes are listed by `pickletools` and played on a small stack, which knows the few objects that a
checkpoint is made of. OmegaConf's objects become inert `StandIn`s, so none of its versions matters. The price: what
torch would load beyond that (sparse, meta, nested tensors, other classes) is refused.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import pickletools
import stat
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from balance.encoders.shown import shown
from balance.errors import UserError

_MAX_PICKLE_BYTES = 2 << 20  # the released files' have 0.1 MB; 4 million opcodes take 3 s
_MAX_DIRECTORY_BYTES = 4 << 20  # of a zip archive: 50,000 tensors
_MAX_UNUSED_BYTES = 1 << 20  # of an archive: outside its members but for their headers and alignment
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STAND_INS = {
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
}
_TYPES = {"typing.Any"} | {f"{m}.{t}" for m in ("builtins", "__builtin__") for t in ("dict", "list", "int", "long")}
_CALLS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the pickle refers to; never looked up."""

    name: str


class StandIn:
    """In an OmegaConf object's place. name: of its class; state: what was pickled of it."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[Any, Any] = {}


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers in the file: `key` names them, `dtype` and `numel` are as the pickle says."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor in the file: `shape` of every `stride`-th number of a storage from `offset` on."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Refused(Exception):
    """The pickle names what a checkpoint does not need."""


class _Damaged(Exception):
    """The file contradicts itself."""


class SavedFile:
    """An open `torch.save` file; a context manager.

    content: what was saved. size: bytes of the file. Raises UserError: missing, damaged, no checkpoint, a pickle that
    names anything else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._places: dict[str, tuple[int, int]] = {}  # of each storage: first byte, bytes
            self.content = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SavedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, saved: SavedTensor) -> Tensor:
        """The tensor itself, in memory of its own."""
        if not math.prod(saved.shape):
            return torch.empty(saved.shape, dtype=saved.dtype)
        itemsize = saved.dtype.itemsize
        begin, _ = self._places[saved.storage.key]
        num_bytes = (1 + sum((n - 1) * s for n, s in zip(saved.shape, saved.stride, strict=True))) * itemsize
        self._file.seek(begin + saved.offset * itemsize)
        data = np.fromfile(self._file, dtype=np.uint8, count=num_bytes)
        if len(data) < num_bytes:
            raise UserError(f"{self._path} became shorter while it was read")
        flat = torch.from_numpy(data).view(saved.dtype)
        return flat.as_strided(saved.shape, saved.stride).contiguous()

    def sha256(self) -> str:
        """Hex digest of the file's bytes."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()

    def _read(self) -> Any:
        path = self._path
        head = self._file.read(4)
        if not head.startswith((b"PK\x03\x04", b"\x80")):
            what = "an empty file" if not head else "no zip archive and no pickle"
            raise UserError(f"{path} is not a checkpoint: {what}")
        try:
            content, storages = self._read_archive() if head.startswith(b"PK") else self._read_legacy()
            self._check(storages)
            return content
        except UserError:
            raise
        except _Refused as refused:
            raise UserError(
                f"{path} was refused and not loaded: its pickle names {refused}, which a checkpoint does not need "
                "and which could run code. Use the published file."
            ) from None
        except _Damaged as damaged:
            raise UserError(f"{path} is damaged, or no checkpoint: {damaged}") from None
        except Exception as error:  # whatever zipfile, pickletools and the stack make of hostile bytes
            raise UserError(f"{path} is truncated or damaged ({shown(str(error))}): download it again") from None

    def _read_archive(self) -> tuple[Any, list[_Storage]]:
        self._check_directory()
        with zipfile.ZipFile(self._file) as archive:
            members = archive.infolist()
            _check_members(members, self.size)
            if damaged := archive.testzip():
                raise UserError(
                    f"{self._path} is damaged ({shown(damaged)} does not match its checksum): download it again"
                )
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{self._path} is not a checkpoint: an archive without a data.pkl")
            folder = pickles[0].filename.removesuffix("data.pkl")
            if pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise _Damaged(f"its pickle has {pickles[0].file_size:,} bytes, at most {_MAX_PICKLE_BYTES:,} are read")
            if f"{folder}byteorder" in archive.NameToInfo and archive.read(f"{folder}byteorder") != b"little":
                raise _Damaged("its numbers are big-endian")
            prefix = f"{folder}data/"
            for member in members:
                if member.filename.startswith(prefix):
                    place = self._content_of(member), member.file_size
                    self._places[member.filename.removeprefix(prefix)] = place
            machine = _Machine()
            return machine.play(io.BytesIO(archive.read(pickles[0]))), machine.storages

    def _check_directory(self) -> None:
        """Refuse a zip directory whose reading alone would take long."""
        begin = max(0, self.size - (1 << 16) - 22)
        self._file.seek(begin)
        tail = self._file.read()
        end, end64 = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
        sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")] if end >= 0 else []
        if end64 >= 0:
            sizes = [x for x in sizes if x != 0xFFFF_FFFF] + [int.from_bytes(tail[end64 + 40 : end64 + 48], "little")]
        if any(size > _MAX_DIRECTORY_BYTES for size in sizes):
            raise _Damaged(f"the directory of its archive has {max(sizes):,} bytes")

    def _content_of(self, member: zipfile.ZipInfo) -> int:
        """The first byte of a stored member's content (its local header is longer than the directory's)."""
        self._file.seek(member.header_offset)
        header = self._file.read(30)
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        begin = member.header_offset + 30 + name + extra
        if len(header) < 30 or begin + member.file_size > self.size:
            raise _Damaged("a member of its archive lies outside of the file")
        return begin

    def _read_legacy(self) -> tuple[Any, list[_Storage]]:
        self._file.seek(0)
        head = _Bounded(self._file, _MAX_PICKLE_BYTES)
        machine = _Machine()
        if machine.play(head) != _LEGACY_MAGIC or machine.play(head) != _LEGACY_VERSION:
            raise UserError(f"{self._path} is not a checkpoint: a pickle that torch.save did not write")
        about = machine.play(head)
        if not isinstance(about, dict) or about.get("little_endian") is not True:
            raise _Damaged("its numbers are not little-endian")
        content, keys = machine.play(head), machine.play(head)
        numel_of = {storage.key: storage for storage in machine.storages}
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in numel_of for key in keys):
            raise _Damaged("it does not say where its tensors are")
        for key in keys:
            count = int.from_bytes(self._file.read(8), "little")
            num_bytes = count * numel_of[key].dtype.itemsize
            self._places[key] = self._file.tell(), num_bytes
            if self._file.tell() + num_bytes > self.size:
                raise EOFError("it ends before its tensors do")
            self._file.seek(num_bytes, os.SEEK_CUR)
        return content, machine.storages

    def _check(self, storages: list[_Storage]) -> None:
        for storage in storages:
            _, num_bytes = self._places.get(storage.key, (0, -1))
            if storage.numel * storage.dtype.itemsize > num_bytes:
                held = f"holds {num_bytes:,} of them" if num_bytes >= 0 else "does not hold it"
                raise _Damaged(
                    f"storage {shown(storage.key)} should have {storage.numel * storage.dtype.itemsize:,} bytes, the "
                    f"file {held}"
                )


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"cannot read the checkpoint {path}: it is not a file")
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"checkpoint not found: {path}\ntype encoder.checkpoint=/path/to/00071478.pth") from None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else "no such name"
        raise UserError(f"cannot read the checkpoint {path}: {words}") from None


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse what torch.save does not write: encrypted, packed or overlapping members, names that occur twice."""
    for member in members:
        if member.flag_bits & 1:
            raise _Damaged(f"{shown(member.filename)} in it is encrypted")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _Damaged(f"{shown(member.filename)} in it is packed, which torch.save never does")
    if len({member.filename for member in members}) < len(members):
        raise _Damaged("a name occurs twice in its archive")
    starts = sorted((member.header_offset, member.header_offset + 30 + member.file_size) for member in members)
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(starts)):
        raise _Damaged("members of its archive overlap")
    used = sum(member.file_size + 256 + 2 * len(member.orig_filename) for member in members)
    if size - used > _MAX_UNUSED_BYTES:
        raise _Damaged(f"{size - used:,} bytes of it belong to no member of its archive")


class _Bounded:
    """The next bytes of a file, up to a limit; what `pickletools.genops` needs of a file."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int) -> bytes:
        return self._taken(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self._left + 1))

    def tell(self) -> int:
        return self._file.tell()

    def _taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise _Damaged(f"its pickles have more than {_MAX_PICKLE_BYTES:,} bytes")
        return data


class _Machine:
    """Plays pickles on a stack of its own. storages: all that were named."""

    def __init__(self) -> None:
        self.storages: list[_Storage] = []

    def play(self, file: Any) -> Any:
        """What the next pickle of the file holds. Raises _Refused, _Damaged, and what a broken pickle leads to."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            at = marks.pop()
            items = stack[at:]
            del stack[at:]
            return items

        value: Any
        for opcode, value, _ in pickletools.genops(file):
            match opcode.name:
                case "PROTO" | "STOP":
                    pass
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                    stack.append(value)
                case "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "MARK":
                    marks.append(len(stack))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "APPEND":
                    item = stack.pop()
                    _typed(stack[-1], list).append(item)
                case "APPENDS":
                    items = since_mark()
                    _typed(stack[-1], list).extend(items)
                case "SETITEM":
                    item = stack.pop()
                    _set(stack[-2], stack.pop(), item)
                case "SETITEMS":
                    items = since_mark()
                    for key, item in zip(items[::2], items[1::2], strict=True):
                        _set(stack[-1], key, item)
                case "GLOBAL":
                    stack.append(_Global(_known(str(value).replace(" ", "."))))
                case "NEWOBJ":
                    stack.pop()
                    stack.append(StandIn(_one_of(stack.pop(), _STAND_INS)))
                case "REDUCE":
                    arguments = _typed(stack.pop(), tuple)
                    stack.append(_call(_one_of(stack.pop(), _CALLS), arguments))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], StandIn):
                        stack[-1].state = _typed(state, dict)
                    else:  # the attributes of a state dict, which are not needed
                        _typed(stack[-1], OrderedDict)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case name:
                    raise _Damaged(f"its pickle uses {name}, which torch.save never does")
        (result,) = stack
        return result

    def _storage(self, about: Any) -> _Storage:
        """about: ("storage", its type, key, device, number of elements, …)."""
        kind, storage_type, key, _, numel = _typed(about, tuple)[:5]
        if kind != "storage" or not isinstance(key, str) or not _is_size(numel):
            raise _Damaged("it names a tensor's storage in an unknown way")
        name = _typed(storage_type, _Global).name.removeprefix("torch.")
        storage = _Storage(key, _DTYPES[name], numel)
        self.storages.append(storage)
        return storage


def _known(name: str) -> str:
    if name in _STAND_INS | _TYPES | _CALLS or name.removeprefix("torch.") in _DTYPES:
        return name
    raise _Refused(shown(name, quoted=False))


def _one_of(value: Any, names: set[str]) -> str:
    name: str = _typed(value, _Global).name
    if name not in names:
        raise _Damaged(f"its pickle calls {name}")
    return name


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Damaged(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _set(target: Any, key: Any, item: Any) -> None:
    """Keys are names and small numbers. Others occur in OmegaConf's caches: not kept, since they may be made to collide
    by the hundred thousand."""
    target = _typed(target, dict)
    if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 60):
        target[key] = item


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What the few calls of a checkpoint's pickle give."""
    if name == "collections.OrderedDict":
        if arguments:
            raise _Damaged("its pickle fills a dictionary in an unknown way")
        return OrderedDict()
    if name == "collections.defaultdict":
        return {}
    if name == "torch._utils._rebuild_parameter":
        return _typed(arguments[0], SavedTensor)
    storage, offset, shape, stride = arguments[:4]
    return _tensor(_typed(storage, _Storage), offset, _typed(shape, tuple), _typed(stride, tuple))


def _tensor(storage: _Storage, offset: Any, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> SavedTensor:
    """A tensor no larger than its storage: strides of 0 would make terabytes out of a few bytes."""
    if len(shape) != len(stride) or len(shape) > 8 or not all(map(_is_size, (offset, *shape, *stride))):
        raise _Damaged("a tensor of it has sizes that are none")
    numel = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if numel > storage.numel or (numel and last >= storage.numel):
        raise _Damaged(f"a tensor of it has {numel:,} numbers, the storage it lies in {storage.numel:,}")
    return SavedTensor(storage, offset, shape, stride)

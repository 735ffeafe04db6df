"""Damaged and hostile checkpoints: one sentence each, no traceback, no hang, no more memory than 1 GiB."""

import io
import math
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from balance.encoders.checkpoint import read_checkpoint
from balance.errors import UserError
from tests import worlds

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _one_gibibyte_more() -> Iterator[None]:
    """This process may have 1 GiB more address space than now: an allocation beyond it fails."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + GIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return worlds.write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth").read_bytes()


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert len(message) < 1000
    assert "MemoryError" not in message
    return message


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def changed(tiny: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The tiny checkpoint, read by torch itself, with something changed."""
    content = torch.load(io.BytesIO(tiny), weights_only=False)
    change(content)
    return saved(content)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.audio.encoder.layers", 10**7, "10000000 blocks"),
        ("model.audio.encoder.layers", 2**31 - 1, "2147483647 blocks"),
        ("model.audio.encoder.layers", 10**30, "a positive integer"),
        ("model.audio.encoder.layers", True, "a positive integer"),
        ("model.audio.width", "64", "a positive integer"),
        ("model.audio.width", 64.0, "a positive integer"),
        ("model.audio.name", ["CLIPAudioHead"], "model.audio.name is ['CLIPAudioHead']"),
        ("model.audio.name", None, "model.audio.name is None"),
        ("model.audio.pre_encoder.stride", [True, 16], "two positive integers"),
        ("model.audio.pre_encoder.stride", {"row": 16}, "two positive integers"),
        ("running.audio.max_len", 10**9, "a positive integer, at most 100,000"),
        ("running.audio.norms", 5, "a mean and a standard deviation"),
        ("running.audio.norms", "-4.9, 5.8", "a mean and a standard deviation"),
        ("running.audio.norms", {"mean": 0}, "a mean and a standard deviation"),
        ("running.audio.norms", [math.nan, 1.0], "a mean and a standard deviation"),
        ("running.audio.norms", [0.0, math.nan], "a mean and a standard deviation"),
        ("running.audio.norms", [0.0, -1.0], "a mean and a standard deviation"),
        ("running.audio.norms", [0.0, math.inf], "a mean and a standard deviation"),
        ("running.audio.norms", [True, True], "a mean and a standard deviation"),
        ("running.audio.norms", [[1.0], [2.0]], "a mean and a standard deviation"),
        ("running.audio.zero_mean_wf", 1, "true or false"),
        ("running", 3, "its cfg has no"),
        ("model", ["audio"], "its cfg has no model.audio.name"),
    ],
)
def test_settings_of_the_wrong_kind(tmp_path: Path, tiny: bytes, key: str, value: Any, words: str) -> None:
    content = changed(tiny, lambda x: OmegaConf.update(x["cfg"], key, value, merge=False))
    assert words in refused(tmp_path / "x.pth", content)


def test_shared_positions_do_not_make_an_input_of_any_size(tmp_path: Path, tiny: bytes) -> None:
    """A vision tower's 50 positions fit every grid: here one of 400 million patches."""

    def change(content: dict[str, Any]) -> None:
        content["model"][1]["misc.positional_embedding"] = torch.zeros(50, 64)
        content["cfg"].running.audio.max_len = 99_999
        content["cfg"].running.audio.num_mel_bins = 4096
        content["cfg"].model.audio.pre_encoder.stride = [1, 1]

    assert "patches, at most 32,768 are read" in refused(tmp_path / "x.pth", changed(tiny, change))


# -- tensors -------------------------------------------------------------------------------------------------------


def replaced(name: str, tensor: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["model"][1][name] = tensor(content["model"][1][name])

    return change


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning", "ignore:Sparse CSR.*:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x.to_sparse(), "names torch._utils._rebuild_sparse_tensor"),
        (lambda x: x.to_sparse_csr(), "names torch._utils._rebuild_sparse_tensor"),
        (lambda x: x.to("meta"), "names torch._utils._rebuild_meta_tensor_no_storage"),
        (lambda x: torch.nested.nested_tensor([x, x]), "names torch._utils._rebuild_nested_tensor"),
        (lambda x: x.to(torch.complex64), "names torch.ComplexFloatStorage"),
        (lambda x: x.to(torch.int64), "post_encoder.proj is not a floating-point tensor"),
        (lambda x: x.tolist(), "post_encoder.proj is not a floating-point tensor"),
        (lambda x: None, "post_encoder.proj is not a floating-point tensor"),
        (lambda x: torch.zeros(1).expand(1 << 36), "has 68,719,476,736 numbers, the storage it lies in 1"),
        (lambda x: torch.zeros(1).expand(*x.shape), "has 2,048 numbers, the storage it lies in 1"),
        (lambda x: torch.zeros(0, 1 << 40), "post_encoder.proj is 0 x 1099511627776"),
    ],
    ids=["coo", "csr", "meta", "nested", "complex", "int", "list", "none", "stride 0", "small stride 0", "empty"],
)
def test_tensors_of_other_kinds(tmp_path: Path, tiny: bytes, make: Callable[[torch.Tensor], Any], words: str) -> None:
    assert words in refused(tmp_path / "x.pth", changed(tiny, replaced("post_encoder.proj", make)))


def test_tensors_that_share_their_bytes(tmp_path: Path, tiny: bytes) -> None:
    def change(content: dict[str, Any]) -> None:
        state = content["model"][1]
        flat = torch.zeros(max(x.numel() for x in state.values()))
        for name, x in state.items():
            state[name] = flat[: x.numel()].view(x.shape)

    assert "share their bytes" in refused(tmp_path / "x.pth", changed(tiny, change))


def test_parameters_and_other_strides_are_read(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(tiny)
    before = read_checkpoint(path).state

    def change(content: dict[str, Any]) -> None:
        state = content["model"][1]
        for name, x in state.items():
            state[name] = torch.nn.Parameter(x) if x.dim() != 2 else x.T.contiguous().T

    path.write_bytes(changed(tiny, change))
    after = read_checkpoint(path).state
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- pickles by hand -----------------------------------------------------------------------------------------------


def archive(pickled: bytes, **storages: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a/data.pkl", pickled)
        out.writestr("a/version", "3\n")
        for key, data in storages.items():
            out.writestr(f"a/data/{key}", data)
    return file.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data if len(data) > 255 else b"\x8a" + bytes([len(data)]) + data


def content(cfg: bytes, model: bytes = b")") -> bytes:
    return b"\x80\x02}(" + text("cfg") + cfg + text("model") + model + b"u."


def storage(key: str, numel: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    sizes = (b"(" + b"".join(map(number, x)) + b"t" for x in (shape, stride))
    inside = b"(" + storage("0", numel) + number(offset) + b"".join(sizes) + b"\x89}t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + inside + b"R"


def named(value: bytes) -> bytes:
    """With this value for the name of the head."""
    return content(b"}" + text("model") + b"}" + text("audio") + b"}" + text("name") + value + b"sss")


def laughs(depth: int) -> bytes:
    """A list of ten times a list of ten times a list …: 400 bytes whose `repr` has 10 ** depth words."""
    value = text("ha")
    for i in range(depth):
        value = b"](" + value + b"q" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"e"
    return value


DEEP = b"]" * 100_000 + b"a" * 99_999
HAND_MADE = {
    "a storage larger than its bytes": content(b"}", tensor(10**9, (1,), (1,))),
    "an offset beyond the storage": content(b"}", tensor(4, (4,), (1,), offset=1)),
    "a stride beyond the storage": content(b"}", tensor(4, (2,), (4,))),
    "a negative size": content(b"}", tensor(4, (-1,), (1,))),
    "more strides than sizes": content(b"}", tensor(4, (1,), (1, 1))),
    "lists in lists": named(DEEP),
    "lists in lists for a root": b"\x80\x02" + DEEP + b".",
    "a number of 3 million digits": content(b"}" + text("model") + number(1 << 9_000_000) + b"s"),
    "numbers that collide": content(b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(100_000)) + b"u"),
    "a memo of four billion": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a text of four billion": b"\x80\x02X\xff\xff\xff\xffabc.",
    "an opcode that torch.save never uses": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    "an empty stack": b"\x80\x020.",
    "two results": b"\x80\x02NN.",
    "no end": b"\x80\x02}",
    "a call of a type": b"\x80\x02c__builtin__\nint\n" + text("9" * 100_000) + b"\x85R.",
    "a pickle of 3 MiB": b"\x80\x02" + b"N0" * 1_600_000 + b"N.",
    "laughs": named(laughs(40)),
    "no cfg": b"\x80\x02}" + text("model") + b")s.",
    "a cfg that refers to itself": content(
        b"}(" + text("a") + text("${b.b}") + text("b") + b"}" + text("b") + text("${a}") + b"s"
        + text("model") + text("${a}") + b"u"
    ),
    "a cfg that refers to itself very often": content(
        b"}(" + text("a") + text("${" + ".".join("a" * 1000) + "}") + text("model") + text("${a}") + b"u"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_MADE)
def test_pickles_by_hand(tmp_path: Path, name: str) -> None:
    for whole in (archive(HAND_MADE[name], **{"0": bytes(16)}), HAND_MADE[name]):
        refused(tmp_path / "x.pth", whole)


def test_the_hand_made_pickles_are_what_they_should_be() -> None:
    """Without their one fault they are read by torch: the tests above do not fail at something else."""
    good = archive(content(b"}", tensor(4, (2, 2), (2, 1))), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    read = torch.load(io.BytesIO(good), weights_only=True)
    assert read["model"].tolist() == [[1, 2], [3, 4]]
    assert pickle.loads(b"\x80\x02" + number(1 << 3000) + b".") == 1 << 3000


# -- archives ------------------------------------------------------------------------------------------------------


def test_packed_members(tmp_path: Path, tiny: bytes) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(tiny)) as source, zipfile.ZipFile(packed, "w", method) as out:
            for name in source.namelist():
                out.writestr(name, source.read(name))
        assert "is packed, which torch.save never does" in refused(tmp_path / "x.pth", packed.getvalue())


@pytest.mark.parametrize(
    ("offset", "value", "words"), [(8, b"\x01\x00", "is encrypted"), (10, b"\x63\x00", "is packed")]
)
def test_encrypted_members_and_unknown_methods(
    tmp_path: Path, tiny: bytes, offset: int, value: bytes, words: str
) -> None:
    data = bytearray(tiny)
    at = data.rindex(b"PK\x01\x02") + offset
    data[at : at + 2] = value
    assert words in refused(tmp_path / "x.pth", bytes(data))


def test_members_that_overlap(tmp_path: Path) -> None:
    """2,000 names for the same 4 MiB."""
    whole = archive(content(b"}"), **{"0": bytes(4 << 20)})
    begin = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entry = whole[begin:end]
    entries = b"".join(entry.replace(b"a/data/0", b"a/%06d" % i) for i in range(2000))
    directory = whole[whole.index(b"PK\x01\x02") : begin] + entries
    first = whole.index(b"PK\x01\x02")
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2001, 2001, len(directory), first, 0)
    refused(tmp_path / "x.pth", whole[:first] + directory + tail)


def test_a_directory_that_takes_long_to_read(tmp_path: Path) -> None:
    directory = struct.pack("<4s", b"PK\x01\x02") + bytes(42)
    many = directory * 200_000
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(many), 4, 0)
    assert "the directory of its archive has" in refused(tmp_path / "x.pth", b"PK\x03\x04" + many + tail)


def test_a_file_of_a_terabyte_that_is_mostly_hole(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 40)
    refused(path)
    with path.open("ab") as file:
        file.write(tiny)
    assert "belong to no member" in refused(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    assert "it is not a file" in refused(tmp_path / "x.pth")
    assert "it is not a file" in refused(Path("/dev/zero"))
    assert "no such name" in refused(tmp_path / "x\0.pth")


# -- at random -----------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A bit flipped, bytes overwritten, left out or doubled, or the end cut off; mostly where sizes and names stand."""
    out = bytearray(data)
    directory = data.rindex(b"PK\x05\x06") - 3000 if data.startswith(b"PK") else 0
    at = rng.choice([rng.randrange(len(out)), rng.randrange(3000), max(0, directory) + rng.randrange(3000)])
    at = min(at, len(out) - 1)
    kind = rng.randrange(5)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at : at + 4] = rng.randbytes(4)
    elif kind == 2:
        del out[at : at + rng.randrange(1, 200)]
    elif kind == 3:
        out[at:at] = out[at : at + rng.randrange(1, 200)]
    else:
        del out[at:]
    return bytes(out)


def repacked(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An archive with right checksums and another pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            member = source.read(name)
            target.writestr(name, change(member) if name.endswith("data.pkl") else member)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["archive", "pickle", "legacy"])
def test_random_damage_is_one_sentence_or_harmless(tmp_path: Path, tiny: bytes, kind: str) -> None:
    """Run by hand with BALANCE_FUZZ=20000."""
    rng = random.Random(kind)
    path = tmp_path / "x.pth"
    path.write_bytes(tiny)
    state = read_checkpoint(path).state
    if kind == "legacy":
        file = io.BytesIO()
        torch.save(torch.load(io.BytesIO(tiny), weights_only=False), file, _use_new_zipfile_serialization=False)
        tiny = file.getvalue()
    said: set[str] = set()
    for _ in range(int(os.environ.get("BALANCE_FUZZ", "150"))):
        path.write_bytes(repacked(tiny, lambda data: mutated(data, rng)) if kind == "pickle" else mutated(tiny, rng))
        try:
            read = read_checkpoint(path).state
        except UserError as error:
            said.add(str(error))
            continue
        assert {name: x.shape for name, x in read.items()} == {name: x.shape for name, x in state.items()}
        if kind == "archive":  # its checksums cover everything that is read
            assert all(torch.equal(read[name], state[name]) for name in state)
    assert len(said) > 10
    assert all(len(words.splitlines()) <= 2 for words in said)

"""balance.data.precomputed: each form of the user's own vectors against the matrix that it was written from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balance.data import flat_vectors
from balance.data.locate import NoSuchIndex
from balance.data.precomputed import read_ids, read_vectors, refuse_other_dims
from balance.errors import UserError

IDS = ["--a_b", "zz", "b-c", "naïve", "id.with.dots"]
X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


def write_npy(root: Path, name: str, x=X, ids=IDS, end="\n") -> None:
    np.save(root / f"{name}.npy", x)
    (root / f"{name}.ids.txt").write_bytes("".join(i + end for i in ids).encode())


def write_parquet(root: Path, name: str, ids=IDS, rows=None, kind=None) -> None:
    rows = X.tolist() if rows is None else rows
    table = pa.table({"id": ids, "embedding": pa.array(rows, type=kind or pa.list_(pa.float32()))})
    pq.write_table(table, root / f"{name}.parquet", row_group_size=2)


def write_folder(root: Path, name: str, x=X, ids=IDS) -> None:
    (root / name).mkdir()
    for id, row in zip(ids, x, strict=True):
        np.savez(root / name / f"{id}.npz", v=row)


@pytest.mark.parametrize("form", ["npy", "parquet", "fixed", "folder"])
def test_forms(tmp_path, form):
    if form == "npy":
        write_npy(tmp_path, "s")
    elif form == "folder":
        write_folder(tmp_path, "s")
    else:
        write_parquet(tmp_path, "s", kind=pa.list_(pa.float32(), 7) if form == "fixed" else None)
    order = sorted(range(5), key=lambda i: IDS[i]) if form == "folder" else list(range(5))
    want = X[order]
    split = read_vectors(tmp_path, "s", scratch=tmp_path)
    assert split.index.ids.to_pylist() == [IDS[i] for i in order]
    assert split.index.lines is None
    assert split.index.paths.to_pylist() == [""] * 5
    assert len(split.index.labels) == 5
    assert split.sha256 == hashlib.sha256(want.tobytes()).hexdigest()
    assert split.vectors.shape == (5, 7)
    for start in range(6):
        for stop in range(start, 6):
            np.testing.assert_array_equal(split.vectors.read(start, stop), want[start:stop])
    for rows in ([], [3], [4, 0, 1, 2], [2, 2, 3, 2]):
        np.testing.assert_array_equal(split.vectors.take(np.array(rows, dtype=np.int64)), want[rows])
    assert IDS[order[2]] in split.vectors.name(2)
    assert split.vectors.read(0, 1).flags.writeable


WIDE = np.random.default_rng(1).normal(size=(5, 7))


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_are_converted(tmp_path, monkeypatch, caplog, dtype, order, block_bytes):
    monkeypatch.setattr(flat_vectors, "BLOCK_BYTES", block_bytes)
    x = np.array(WIDE, dtype=dtype, order=order)
    write_npy(tmp_path, "s", x)
    want = x.astype(np.float32)
    split = read_vectors(tmp_path, "s", scratch=tmp_path)
    np.testing.assert_array_equal(split.vectors.read(0, 5), want)
    assert split.sha256 == hashlib.sha256(want.tobytes()).hexdigest()
    assert ("converted to float32" in caplog.text) == ((dtype, order) != ("<f4", "C"))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64()])
def test_other_floats_of_parquet_are_converted(tmp_path, caplog, kind):
    x = WIDE.astype(kind.to_pandas_dtype())
    write_parquet(tmp_path, "s", rows=list(x), kind=pa.list_(kind))
    np.testing.assert_array_equal(read_vectors(tmp_path, "s").vectors.read(0, 5), x.astype(np.float32))
    assert "converted to float32" in caplog.text


def test_other_floats_of_npz_are_converted(tmp_path, caplog):
    write_folder(tmp_path, "s", WIDE, [f"{i}.p0" for i in range(5)])
    (tmp_path / "s" / "._0.p0.npz").write_bytes(b"macOS was here")
    split = read_vectors(tmp_path, "s")
    assert split.index.ids.to_pylist() == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(split.vectors.read(0, 5), WIDE.astype(np.float32))
    assert caplog.text.count("converted to float32") == 1


def test_what_float32_cannot_hold_is_infinite(tmp_path):
    write_npy(tmp_path, "s", X.astype(np.float64) * 1e300)
    assert np.isinf(read_vectors(tmp_path, "s").vectors.read(0, 5)).all()


def flips(data: bytes, limit: int):
    """Copies with one bit flipped each, of the first `limit` bytes."""
    for bit in np.random.default_rng(0).permutation(8 * min(limit, len(data)))[:500]:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        yield bytes(broken)


@pytest.mark.parametrize("form", ["npy", "parquet", "folder"])
def test_bit_flips_are_errors_that_name_the_file_or_leave_the_shape(tmp_path, form):
    if form == "npy":
        write_npy(tmp_path, "s")
        path, limit = tmp_path / "s.npy", 128
    elif form == "parquet":
        write_parquet(tmp_path, "s")
        path, limit = tmp_path / "s.parquet", 1 << 20
    else:
        write_folder(tmp_path, "s")
        path, limit = tmp_path / "s" / "zz.npz", 1 << 20
    refused: list[str] = []
    for broken in flips(path.read_bytes(), limit):
        path.write_bytes(broken)
        try:
            split = read_vectors(tmp_path, "s")
        except UserError as error:
            refused.append(str(error))
            continue
        assert split.vectors.shape == (5, 7)
        if form == "folder":  # checksums: what is accepted is the vectors
            order = sorted(range(5), key=lambda i: IDS[i])
            np.testing.assert_array_equal(split.vectors.read(0, 5), X[order])
    assert len(refused) > 100
    assert all(path.name in message and "\n" not in message for message in refused)


def test_a_path_is_also_one_of_the_root(tmp_path):
    (tmp_path / "sub").mkdir()
    write_npy(tmp_path / "sub", "s")
    assert read_vectors(tmp_path, "sub/s.npy").index.ids.to_pylist() == IDS


def test_a_name_that_is_not_utf8(tmp_path):
    write_folder(tmp_path, "s", X[:1], ["\udcff"])
    with pytest.raises(UserError, match="its name is not UTF-8"):
        read_vectors(tmp_path, "s")


def test_blocks_do_not_change_the_hash(tmp_path, monkeypatch):
    write_npy(tmp_path, "s")
    monkeypatch.setattr(flat_vectors, "BLOCK_BYTES", 60)
    assert read_vectors(tmp_path, "s").sha256 == hashlib.sha256(X.tobytes()).hexdigest()


@pytest.mark.parametrize("value", ["sub/s", "sub/s.npy", "sub/s.csv"])
def test_a_path_is_relative_to_the_working_directory(tmp_path, monkeypatch, value):
    (tmp_path / "sub").mkdir()
    write_npy(tmp_path / "sub", "s", end="\r\n")
    monkeypatch.chdir(tmp_path)
    assert read_vectors(Path("elsewhere"), value).index.ids.to_pylist() == IDS


def lines(ids, labels=("x",)) -> str:
    return "".join(json.dumps({"id": i, "dir": "", "aclip": ["p0.wav"], "labels": list(labels)}) + "\n" for i in ids)


def test_labels_come_from_the_csv_in_the_order_of_the_vectors(tmp_path):
    write_npy(tmp_path, "s")
    (tmp_path / "s.csv").write_text(lines(["more", *reversed(IDS)]))
    index = read_vectors(tmp_path, "s").index
    assert index.ids.to_pylist() == IDS
    assert [json.loads(line)["id"] for line in index.lines.to_pylist()] == IDS
    assert index.labels[3] == ("x",)
    assert index.paths[0].as_py() == "aclip/--a_b.p0.wav"


def test_csv_lacks_ids(tmp_path):
    write_npy(tmp_path, "s")
    (tmp_path / "s.csv").write_text(lines(IDS[:3]))
    with pytest.raises(UserError, match=r"lacks 2 of the 5 ids of s\.npy: naïve, id\.with\.dots"):
        read_vectors(tmp_path, "s")


def test_guard_needs_no_vectors(tmp_path):
    (tmp_path / "a.ids.txt").write_text("x\ny")
    assert read_ids(tmp_path, "a").ids.to_pylist() == ["x", "y"]
    (tmp_path / "b.csv").write_text(lines(["q"]))
    assert read_ids(tmp_path, "b").ids.to_pylist() == ["q"]
    with pytest.raises(NoSuchIndex):
        read_ids(tmp_path, "c")
    (tmp_path / "d.ids.txt").write_text("")
    with pytest.raises(UserError, match="holds no id"):
        read_ids(tmp_path, "d")


def npy_as_npz(root):
    (root / "s").mkdir()
    np.save(root / "a.npy", X[0])
    (root / "a.npy").rename(root / "s" / "a.npz")


def npz(**arrays):
    def write(root: Path) -> None:
        write_folder(root, "s")
        np.savez(root / "s" / "zz.npz", **arrays)

    return write


def junk(name: str):
    def write(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"junk junk junk")
        (root / "s.ids.txt").write_text("x\n")

    return write


def cut(root: Path) -> None:
    write_npy(root, "s")
    data = (root / "s.npy").read_bytes()
    (root / "s.npy").write_bytes(data[:-8])


def longer(root: Path) -> None:
    write_npy(root, "s")
    with (root / "s.npy").open("ab") as file:
        file.write(bytes(4))


def no_embedding(root: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), root / "s.parquet")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: write_npy(r, "s", X.astype(np.int32)), "int32 of shape (5, 7)"),
        (lambda r: write_npy(r, "s", X[0]), "float32 of shape (7,)"),
        (lambda r: write_npy(r, "s", X.astype(np.longdouble)), "of shape (5, 7)"),
        (lambda r: write_npy(r, "s", X[:0], []), "holds no vectors"),
        (lambda r: write_npy(r, "s", X, IDS[:4]), "5 vectors, but s.ids.txt has 4 ids"),
        (lambda r: write_npy(r, "s", X, ["a", "b", "a", "c", "d"]), "more than once: a"),
        (lambda r: write_npy(r, "s", X, ["a", "b", "", "c", "d"]), "s.ids.txt line 3: empty line"),
        (lambda r: np.save(r / "s.npy", X), "s.ids.txt: no such file"),
        (cut, "cut short"),
        (longer, "more than its vectors"),
        (junk("s.npy"), "not a .npy file"),
        (junk("s.parquet"), "not a parquet file"),
        (junk("s/a.npz"), "cannot be read as .npz"),
        (npy_as_npz, "cannot be read as .npz"),
        (no_embedding, "no column 'embedding'; it has id, vector"),
        (lambda r: write_parquet(r, "s", kind=pa.list_(pa.int32()), rows=[[1]] * 5), "it must be a list of floats"),
        (lambda r: write_parquet(r, "s", ids=list(range(5))), "column 'id' is int64"),
        (lambda r: write_parquet(r, "s", rows=[[1.0]] * 4 + [[1.0, 2.0]]), "row 4: a vector of 2 values"),
        (lambda r: write_parquet(r, "s", rows=[[1.0]] * 4 + [[None]]), "null in rows"),
        (lambda r: write_parquet(r, "s", ids=["a"] * 5), "more than once"),
        (lambda r: write_parquet(r, "s", ids=["a", "b", "", "c", "d"]), "s.parquet row 2: '' is no id"),
        (lambda r: write_parquet(r, "s", ids=["a", "b", "c", "d\ne", "f"]), "s.parquet row 3: 'd\\ne' is no id"),
        (lambda r: write_parquet(r, "s", ids=["a", "b", "c", "d\x1b", "f"]), "s.parquet row 3: 'd\\x1b' is no id"),
        (lambda r: write_npy(r, "s", X, ["a", "b ", "c", "d", "e"]), "s.ids.txt line 2: 'b ' is no id"),
        (npz(v=np.zeros(3, np.float32)), "zz.npz: a vector of 3 values"),
        (npz(w=X[0]), "no key 'v'"),
        (npz(v=np.float32(3)), "float32 of shape ()"),
        (npz(v=X), "one vector of floats is expected"),
        (npz(v=X[0].astype(np.int64)), "int64 of shape (7,)"),
        (lambda r: (r / "s").mkdir(), "holds no .npz"),
    ],
)
def test_mistakes(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        read_vectors(tmp_path, "s")
    assert str(caught.value).count("\n") == 0


def test_absent_vectors_list_those_there(tmp_path):
    write_npy(tmp_path, "other")
    with pytest.raises(NoSuchIndex, match=r"no vectors 's' .*There are: other\.npy"):
        read_vectors(tmp_path, "s")


def test_other_dims(tmp_path):
    write_npy(tmp_path, "a")
    write_npy(tmp_path, "b", X[:, :3])
    a, b = (read_vectors(tmp_path, name) for name in "ab")
    refuse_other_dims(seeds=a, pool=a)
    with pytest.raises(UserError, match=r"seeds \(a\.npy\) have 7, pool \(b\.npy\) have 3"):
        refuse_other_dims(seeds=a, pool=b)

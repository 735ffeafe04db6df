"""Files that appear complete or not at all, in a folder that others write to as well; arrays that prove their bytes."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from balance.runtime import files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with files.atomic_text(path) as text:
        text.write("näch\n")
        text.flush()
        assert path.read_text() == "before"
    assert path.read_bytes() == "näch\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, ["half a file", float("nan")])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_is_the_umask_s(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.atomic(tmp_path / "file") as file:
            file.write(b"x")
        files.write_npz(tmp_path / "file.npz", {"a": np.arange(3)})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o640, 0o640]


def test_two_writers_use_different_temporary_names(tmp_path: Path) -> None:
    with files.draft(tmp_path / "a.b.csv") as one, files.draft(tmp_path / "a.b.csv") as other:
        assert one.name != other.name
        assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["tmp-a-", "tmp-a-"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [files.write_json, lambda path, value: files.write_npz(path, {"a": value})])
def test_a_link_under_a_guessed_name_is_not_written_through(
    write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user who knew the temporary name could have laid a link there."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("another's")
    (tmp_path / "tmp-x-guessed.json").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write(tmp_path / "x.json", [1])  # type: ignore[operator]
    assert victim.read_text() == "another's"
    assert not (tmp_path / "x.json").exists()


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float64(0.5), "c": np.array("text")}
    path = tmp_path / "folder" / "kept.npz"
    files.write_npz(path, arrays)
    found, numpys = files.read_npz(path), np.load(path)
    assert found is not None
    for name, array in arrays.items():
        for read in (found[name], numpys[name]):
            np.testing.assert_array_equal(read, array)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert set(found) == set(arrays)
    again = tmp_path / "again.npz"
    files.write_npz(again, arrays)
    assert again.read_bytes() == path.read_bytes()
    assert files.read_npz(tmp_path / "none.npz") is None
    assert files.read_npz(path / "none.npz") is None


def test_every_flipped_bit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """numpy alone reads many of these files without an error, and some of them wrongly."""
    path = tmp_path / "kept.npz"
    files.write_npz(path, {"positions": np.arange(8, dtype=np.int32), "similarities": np.arange(8, dtype=np.float32)})
    whole = bytearray(path.read_bytes())
    for bit in range(8 * len(whole)):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        assert files.read_npz(path) is None, bit
    assert len(caplog.records) == 8 * len(whole)
    assert all("computed anew" in record.message for record in caplog.records)
    path.write_bytes(whole)
    assert files.read_npz(path) is not None


def test_any_other_damage_is_noticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "kept.npz", random.Random(1)
    files.write_npz(path, {"a": np.random.default_rng(1).standard_normal(40_000)})
    whole = path.read_bytes()
    assert len(whole) > 300_000
    for _ in range(50):
        at, length = rng.randrange(len(whole)), rng.choice([1, 1, 64, 4096])
        path.write_bytes(whole[:at] + rng.randbytes(len(whole[at : at + length])) + whole[at + length :])
        assert path.read_bytes() == whole or files.read_npz(path) is None
        path.write_bytes(whole[:at])
        assert files.read_npz(path) is None
    path.write_bytes(whole + b"x")
    assert files.read_npz(path) is None


def test_a_file_without_a_checksum_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "old.npz", a=np.arange(3))
    assert files.read_npz(tmp_path / "old.npz") is None
    assert "an earlier version wrote it without one" in caplog.text

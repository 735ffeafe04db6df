"""Size and modification time of listed files, against what `os.stat` says of each."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.data.stamps import file_stamps


def stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def test_each_file_has_its_own_and_a_missing_one_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{folder}{i}.wav" for folder in ("", "a/", "a/b/", "ü/") for i in range(300)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(int(rng.integers(0, 50))))
        os.utime(tmp_path / name, ns=(0, int(rng.integers(0, 2**60))))
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "absent")
    (tmp_path / "link.wav").symlink_to(tmp_path / "a/7.wav")
    missing = ["nowhere.wav", "a/absent.wav", "absent/x.wav", "a/7.wav/x.wav"]
    asked = [*names, "link.wav", *missing, names[5]]
    order = rng.permutation(len(asked))
    found = file_stamps(tmp_path, "vipant", pa.array([asked[i] for i in order]))
    assert found.dtype == np.int64
    for i, row in zip(order, found.tolist(), strict=True):
        assert row == ([-1, -1] if asked[i] in missing else stamp(tmp_path / asked[i])), asked[i]


def test_a_member_has_its_container_s(tmp_path: Path) -> None:
    for name in ("x.tar", "y.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    tars = file_stamps(tmp_path, "webdataset", pa.array(["x.tar: a.flac", "x.tar: b.flac", "z.tar: a.flac"]))
    assert tars.tolist() == [stamp(tmp_path / "x.tar")] * 2 + [[-1, -1]]
    rows = file_stamps(tmp_path, "parquet", pa.array(["y.parquet row 0", "y.parquet row 7"]))
    assert rows.tolist() == [stamp(tmp_path / "y.parquet")] * 2


def test_nothing_asked_is_nothing_found(tmp_path: Path) -> None:
    assert file_stamps(tmp_path, "vipant", pa.array([], pa.string())).shape == (0, 2)


def test_a_stretch_has_its_file_s(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"x")
    (tmp_path / "y#t=z.wav").write_bytes(b"yy")
    found = file_stamps(tmp_path, "vipant", pa.array(["x.wav#t=0,1", "x.wav#t=1.5,2", "y#t=z.wav", "z.wav#t=0,1"]))
    assert found.tolist() == [stamp(tmp_path / "x.wav")] * 2 + [stamp(tmp_path / "y#t=z.wav"), [-1, -1]]

"""The embedding store: readable with pyarrow alone, found by path, damaged parts not used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from balance.embed.parts import ToEmbed, plan_name, plan_parts
from balance.embed.store import Store
from balance.embed.store_files import PartRows, part_done, write_part
from balance.errors import UserError
from balance.records import QUALITY, DecodeFailure, Facts, Index, Labels


def _rows(names: list[str], dim: int, seed: int) -> PartRows:
    rng = np.random.default_rng(seed)
    n = len(names)
    facts = Facts(
        rng.integers(8000, 48000, n).astype(np.int32),
        rng.integers(1, 2**40, n),
        np.where(rng.random(n) < 0.3, -np.inf, rng.normal(size=n)).astype(np.float32),
        rng.integers(0, 256, (n, 20), dtype=np.uint8),
    )
    return PartRows([f"id-{x}" for x in names], names, rng.normal(size=(n, dim)).astype(np.float32), facts)


def _write(folder: Path, names: list[str], *, dim: int = 5, seed: int = 0, failures: tuple[str, ...] = ()) -> Path:
    failed = [DecodeFailure(f"id-{x}", x, "undecodable", "why") for x in failures]
    return write_part(folder, plan_name(names), _rows(names, dim, seed), failed, {"device": "test"})


def test_a_part_is_the_contract_s_arrow_file(tmp_path: Path) -> None:
    names = ["a/aclip/1.p0.mp3", "b/aclip/-2.p0.wav", "ü.flac"]
    file = _write(tmp_path, names, dim=3, seed=1)
    expected = _rows(names, 3, 1)
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    schema = {field.name: str(field.type) for field in table.schema}
    assert schema == {
        "id": "string",
        "path": "string",
        "embedding": "fixed_size_list<item: float>[3]",
        "sample_rate": "int32",
        "num_samples": "int64",
        "rms_db": "float",
        "pcm_sha1": "fixed_size_binary[20]",
    }
    assert table["path"].to_pylist() == names
    assert np.array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), expected.embeddings)
    assert table["num_samples"].to_pylist() == expected.facts.num_samples.tolist()
    assert table["rms_db"].to_pylist() == expected.facts.rms_db.tolist()
    assert [bytes(x) for x in expected.facts.pcm_sha1] == table["pcm_sha1"].to_pylist()


def test_rows_are_found_by_path_in_any_order_over_many_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    written: dict[str, np.ndarray] = {}
    for part in range(7):
        names = [f"p{part}/{i}" for i in range(int(rng.integers(1, 30)))]
        _write(tmp_path, names, seed=part)
        written.update(zip(names, _rows(names, 5, part).embeddings, strict=True))
    store = Store(tmp_path)
    asked = rng.permutation([*written, "absent/1", "absent/2"]).tolist()
    rows = store.rows(pa.array(asked))
    assert [name for name, row in zip(asked, rows, strict=True) if row < 0] == [x for x in asked if "absent" in x]
    present = [x for x in asked if "absent" not in x]
    vectors = store.vectors(rows[rows >= 0])
    assert np.array_equal(vectors.read(0, len(present)), np.stack([written[x] for x in present]))
    some = rng.integers(0, len(present), 50)
    assert np.array_equal(vectors.take(some), np.stack([written[present[i]] for i in some]))
    assert present[3] in vectors.name(3).replace("id-", "")


def test_a_store_takes_paths_of_either_offset_and_holds_them_with_64_bits(tmp_path: Path) -> None:
    """An Arrow string array ends at 2 GiB of text, which 50 M paths exceed; the parts' columns stay strings."""
    file = _write(tmp_path, ["a", "b"], failures=("c",))
    assert pa.ipc.open_file(str(file)).schema.field("path").type == pa.string()
    store = Store(tmp_path)
    assert pa.types.is_large_string(store.paths.type)
    for kind in (pa.string(), pa.large_string()):
        asked = pa.array(["b", "c", "a", "d"], kind)
        found = store.find(asked, np.full((4, 2), -1))
        assert found.rows.tolist() == [1, -1, 0, -1]
        assert found.failed.tolist() == [False, True, False, False]
        assert store.earlier(asked) == dict.fromkeys("bca", file.name)
        index = Index("lists", asked, asked, Labels((), np.zeros(5, np.int64), np.empty(0, np.int32)))
        plan = plan_parts([ToEmbed("seeds", index, np.array([1])), ToEmbed("pool", index, np.arange(4))], 3)
        assert plan.names == (plan_name(["c"]), plan_name(["b", "a"]), plan_name(["d"]))
        assert pa.types.is_large_string(plan.paths.type)


def test_any_damaged_byte_is_noticed_and_the_part_not_used(tmp_path: Path) -> None:
    names = [f"clip{i}" for i in range(20)]
    whole = _write(tmp_path, names).read_bytes()
    for at in np.linspace(0, len(whole) - 1, 25).astype(int):
        file = _write(tmp_path, names)
        damaged = bytearray(whole)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        assert len(Store(tmp_path)) == 0
        assert not part_done(tmp_path, plan_name(names))
    _write(tmp_path, names).write_bytes(whole[:-7])
    assert len(Store(tmp_path)) == 0


def test_failures_are_remembered_until_an_embedding_supersedes_them(tmp_path: Path) -> None:
    _write(tmp_path, ["a"], failures=("b", "c"))
    assert sorted(Store(tmp_path).failures) == ["b", "c"]
    _write(tmp_path, ["b"])
    assert sorted(Store(tmp_path).failures) == ["c"]


def test_a_failure_of_fewer_decoders_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of versions without FFmpeg remember files that it may read; clips that were too short stay so."""
    monkeypatch.setattr("balance.embed.store_files.DECODERS", "libsndfile")
    failed = [
        DecodeFailure("id-b", "b", "undecodable", "an MP4/M4A file"),
        DecodeFailure("id-c", "c", "too_short", "1"),
    ]
    old = write_part(tmp_path, plan_name(["a", "b", "c"]), _rows(["a"], 5, 0), failed, {})
    monkeypatch.undo()
    asked = pa.array(["a", "b", "c"])
    stamps = np.full((3, 2), 7)
    store = Store(tmp_path)
    assert store.find(asked, stamps).failed.tolist() == [False, False, True]
    earlier = store.earlier(pa.array(["b"]))
    assert earlier == {"b": old.name}
    again = plan_name(["b"], [earlier["b"]])
    write_part(tmp_path, again, _rows([], 5, 0), [DecodeFailure("id-b", "b", "undecodable", "no sound", (7, 7))], {})
    store = Store(tmp_path)
    assert store.find(asked, stamps).failed.tolist() == [False, True, True]
    failure = store.failure("b", (7, 7))
    assert failure is not None
    assert failure.detail == "no sound"


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = _write(tmp_path, ["a", "b"]), _write(tmp_path / "other", ["a", "b"])
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_parts_of_two_dimensions_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, ["a"], dim=4)
    _write(tmp_path, ["b"], dim=8)
    with pytest.raises(UserError, match="different dimensions"):
        Store(tmp_path)


def test_a_part_without_rows_keeps_its_failures(tmp_path: Path) -> None:
    failed = [DecodeFailure("id-x", "x", "too_short", "12 samples")]
    write_part(tmp_path, plan_name(["x"]), _rows([], 5, 0), failed, {})
    store = Store(tmp_path)
    assert len(store) == 0
    assert store.failures["x"].reason == "too_short"
    assert store.rows(pa.array(["x"])).tolist() == [-1]


def test_the_quality_of_the_sound_is_kept_and_unknown_in_earlier_parts(tmp_path: Path) -> None:
    _write(tmp_path, ["old"])
    rows = _rows(["a", "b"], 5, 1)
    quality = np.random.default_rng(2).random((2, len(QUALITY))).astype(np.float32) / 3
    facts = replace(rows.facts, quality=quality)
    write_part(tmp_path, plan_name(["a", "b"]), replace(rows, facts=facts), [], {})
    store = Store(tmp_path)
    found = store.facts(store.rows(pa.array(["b", "old", "a"]))).quality
    assert found is not None
    np.testing.assert_array_equal(found[[2, 0]], [[np.float32(f"{x:.7g}") for x in row] for row in quality])
    assert np.isnan(found[1]).all()

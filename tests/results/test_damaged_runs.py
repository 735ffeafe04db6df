"""A damaged run gives one UserError or a regular answer, never a traceback.

Every value of the manifest in turn, planted damages of every file, and a small seeded fuzz.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balance import pipeline
from balance.config import Settings
from balance.curation.config import AugmentConfig
from balance.data.config import DatasetConfig
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from balance.results.comparison import compare
from balance.results.explain import why
from balance.results.read_run import Run
from balance.results.verification import verify
from balance.runtime import files
from tests import worlds

K = 3
AUGMENTED, NEIGHBOURS, DECISIONS = f"augmented_k{K}.csv", f"neighbours_k{K}.parquet", "decisions.parquet"
ODD = (None, True, -1, 10**30, "", "x\0y", "\ud800", "~nobody-here/x", "../..", ["x"], {"x": 1}, float("nan"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """A run with removals and a failure, and the id of a clip that it took out."""
    base = tmp_path_factory.mktemp("damaged")
    world = worlds.make(base / "world", pool=20)
    pool = world.records("pool")
    world.media(pool[9]).write_bytes(b"no sound")
    settings = Settings(
        k=K,
        dataset=DatasetConfig(name="tiny", root=str(world.root)),
        encoder=EncoderConfig(checkpoint=str(world.checkpoint), device="cpu"),
        augment=AugmentConfig(budget=10),
        cache_dir=str(base / "cache"),
        num_workers=2,
        max_failures=0.1,
    )
    folder = base / "run"
    folder.mkdir()
    pipeline.run(settings, folder)
    return folder, pq.read_table(folder / DECISIONS)["id"][0].as_py()


@pytest.fixture
def run(made, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder, symlinks=True)
    return folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def damage(folder: Path, name: str, data: bytes) -> None:
    """Other bytes in a file, of which the manifest has the hash: so that `verify` reads it."""
    (folder / name).write_bytes(data)
    if name != "manifest.json":
        content = manifest(folder)
        content["outputs"][name] = files.sha256_file(folder / name)
        (folder / "manifest.json").write_text(json.dumps(content))


def answers(folder: Path, clip: str) -> dict[str, str]:
    """The UserErrors of the three questions, by question; whatever else is raised goes through."""
    found = {}
    for name, ask in (
        ("why", lambda: why(str(folder), clip)),
        ("verify", lambda: verify(str(folder))),
        ("compare", lambda: compare(str(folder), str(folder))),
    ):
        try:
            lines = ask()
        except UserError as error:
            found[name] = str(error)
        else:
            "\n".join(lines).encode()  # what is printed
    assert all(len(message.splitlines()) == 1 and len(message) < 1000 for message in found.values())
    return found


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'"x"', b"7", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"config": {}}', b"9" * 5000],
    ids=lambda data: data[:12].decode("latin-1"),
)
def test_a_manifest_that_is_none(run, made, data):
    damage(run, "manifest.json", data)
    found = answers(run, made[1])
    assert set(found) == {"why", "verify", "compare"}
    assert all("manifest.json cannot be read" in message for message in found.values())


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))


def test_every_value_of_the_manifest_in_turn(run, made):
    content = manifest(run)
    read = [path[:2] for path in places(content) if path[:1] in (("inputs",), ("outputs",))]
    read += [("config",), ("fingerprint",), *(("config", key) for key in ("k", "seed", "cache_dir", "dataset"))]
    for path in places(content):
        if not path or path[:2] not in read:
            continue
        for odd in (..., *ODD):
            changed = copy.deepcopy(content)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if odd is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = odd
            damage(run, "manifest.json", json.dumps(changed).encode())
            answers(run, made[1])


@pytest.mark.parametrize(
    "path", [("config",), ("config", "k"), ("config", "dataset", "format"), ("outputs",), ("inputs",)]
)
def test_what_the_manifest_lacks_is_named(run, made, path):
    content = manifest(run)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    damage(run, "manifest.json", json.dumps(content).encode())
    found = answers(run, made[1])
    assert set(found) == {"why", "verify", "compare"}
    assert all(f"it lacks '{path[-1]}'" in message for message in found.values())


def test_a_manifest_that_promises_nothing_is_not_verified(run):
    content = manifest(run)
    content["outputs"] = {}
    damage(run, "manifest.json", json.dumps(content).encode())
    with pytest.raises(UserError, match=f"outputs lacks {AUGMENTED}"):
        verify(str(run))


def not_utf8(table: pa.Table, column: str) -> pa.Table:
    """The table with bytes that are no text in one column, as Arrow takes them without looking."""
    values = [str(x).encode() for x in table[column].to_pylist()]
    values[0] = b"\xff\xfe" + values[0]
    array = pa.array(values, pa.binary()).view(pa.string())
    return table.set_column(table.schema.get_field_index(column), column, array)


def no_row_groups(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


PLANTED = [
    *((name, lambda table, column=column: not_utf8(table, column)) for name, column in (
        (NEIGHBOURS, "seed_id"), (NEIGHBOURS, "neighbour_id"), (DECISIONS, "id"), (DECISIONS, "rule"))),
    (NEIGHBOURS, no_row_groups),
    (NEIGHBOURS, lambda table: table.drop(["rank"])),
    (NEIGHBOURS, lambda table: table.set_column(1, "rank", [pa.array([None] * len(table), pa.int32())])),
    (NEIGHBOURS, lambda table: table.set_column(3, "similarity", [table["similarity"].cast(pa.float64())])),
    (DECISIONS, lambda table: table.set_column(1, "rule", [pa.array(["no rule"] * len(table))])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), PLANTED)
def test_a_parquet_file_of_other_content(run, made, name, change):
    with pa.BufferOutputStream() as stream:
        pq.write_table(change(pq.read_table(run / name)), stream)
        damage(run, name, stream.getvalue().to_pybytes())
    found = answers(run, made[1])
    question = {NEIGHBOURS: "compare", DECISIONS: "why"}[name]
    assert f"{name} cannot be read as a file of a run" in found[question]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (AUGMENTED, b""),
        (AUGMENTED, b"id,source\nx,seed\n"),
        (AUGMENTED, b"\xff\n"),
        (AUGMENTED, b'id,source,num_seeds,best_seed_id,best_rank,best_similarity,labels,audio\n"x,seed\n'),
        (AUGMENTED, b"id,source,num_seeds,best_seed_id,best_rank,best_similarity,labels,audio\nx,nobody,,,,,,\n"),
        ("failures.jsonl", b"null\n"),
        ("failures.jsonl", b'{"id": "x"}\n'),
        ("failures.jsonl", b'{"id": "x", "split": 1, "path": "", "reason": "", "detail": ""}\n'),
        ("failures.jsonl", b"\xff\n"),
        (NEIGHBOURS, b""),
        (NEIGHBOURS, b"PAR1" + bytes(40) + b"PAR1"),
    ],
)
def test_a_file_of_other_bytes(run, made, name, data):
    damage(run, name, data)
    assert f"{name} cannot be read as a file of a run" in answers(run, made[1])["why"]


def test_a_parquet_folder_name_is_no_column(made, tmp_path):
    folder = tmp_path / "seed_id=1" / "rank=2"
    shutil.copytree(made[0], folder, symlinks=True)
    assert answers(folder, made[1]) == {}
    assert Run.read(str(folder)).neighbours.column_names == ["seed_id", "rank", "neighbour_id", "similarity"]


def test_an_id_that_is_no_text(made):
    with pytest.raises(UserError, match="no clip of this run has this id"):
        why(str(made[0]), b"\xff".decode("utf-8", "surrogateescape"))


def test_seeded_fuzz(run, made):
    """Single bits turned over and files cut short."""
    rng = np.random.default_rng(1213)
    whole = {name: (run / name).read_bytes() for name in ("manifest.json", AUGMENTED, NEIGHBOURS, DECISIONS)}
    whole["failures.jsonl"] = (run / "failures.jsonl").read_bytes()
    assert answers(run, made[1]) == {}
    for name, data in whole.items():
        for turn in range(30):
            changed = bytearray(data[: rng.integers(len(data))] if turn % 5 == 0 else data)
            if turn % 5:
                changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            (run / "manifest.json").write_bytes(whole["manifest.json"])
            damage(run, name, bytes(changed))
            answers(run, made[1])
        (run / name).write_bytes(data)


@pytest.mark.parametrize("data", [b"", b"null", b"\xff", b"[1]"])
def test_a_damaged_summary(run, data):
    (run / "summary.json").write_bytes(data)
    with pytest.raises(UserError, match=r"summary\.json cannot be read as a file of a run"):
        _ = Run.read(str(run)).summary

"""`python -m balance.audit`: verdicts and exit status, planted pairs through real files, and what is decoded again."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import soundfile

from balance import config, pipeline
from balance.audit import job
from balance.errors import UserError
from tests import worlds
from tests.command import command
from tests.curation.sounds import sound


@pytest.fixture
def audit(tmp_path, caplog):
    """Overrides -> (status, audit.json or None, what was said); the files are in tmp_path / "audit"."""
    caplog.set_level(logging.INFO)

    def run(*overrides):
        caplog.clear()
        folder = tmp_path / "audit"
        folder.mkdir(exist_ok=True)
        try:
            settings, _ = config.compose("audit", [*overrides, "num_workers=1", f"cache_dir={tmp_path}/cache"])
            status = job.STATUS[job.run(settings, folder)]
        except UserError as error:
            return 1, None, str(error)
        return status, json.loads((folder / "audit.json").read_text()), caplog.text

    return run


def write(path, samples, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


@pytest.fixture
def root(tmp_path):
    """Folders of clips: train/ and more/ to train on, eval/ to evaluate on, without a copy."""
    for number in range(8):
        write(tmp_path / "root" / "train" / f"t{number}.wav", sound(number, 5.0))
        write(tmp_path / "root" / "eval" / f"e{number}.flac", sound(100 + number, 5.0))
    write(tmp_path / "root" / "more" / "m0.wav", sound(50, 5.0))
    return tmp_path / "root"


def of(root, *more):
    return (
        f"dataset.root={root}",
        "dataset.format=folder",
        "dataset.balanced=train",
        "dataset.unbalanced=more",
        "dataset.eval=eval",
        *more,
    )


def test_clean_then_copies_and_only_new_clips_are_decoded(tmp_path, root, audit):
    status, found, said = audit(*of(root))
    assert (status, found["verdict"], found["pairs"]) == (0, "clean", [])
    assert "17 clips to decode, 0 known from earlier audits" in said
    assert (tmp_path / "audit" / "copies.txt").read_text() == ""
    lines = sorted(f"eval/e{i} {sha1(root / 'eval' / f'e{i}.flac')}" for i in range(8))
    assert found["evaluation"][0]["samples_sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()

    late = 0.3 * sound(103, 5.0)[16000:]
    write(root / "more" / "late.wav", late)
    write(root / "more" / "same.flac", soundfile.read(root / "eval" / "e5.flac", dtype="float32")[0])
    write(root / "more" / "fast.wav", np.interp(np.arange(77670) * 1.03, np.arange(80000), sound(106, 5.0)))
    status, found, said = audit(*of(root))
    assert (status, found["verdict"]) == (3, "copies")
    assert "3 clips to decode, 17 known from earlier audits" in said
    pairs = {(pair["training"]["id"], pair["evaluation"]["id"]): pair for pair in found["pairs"]}
    assert set(pairs) == {("more/late", "eval/e3"), ("more/same", "eval/e5"), ("more/fast", "eval/e6")}
    assert pairs["more/same", "eval/e5"]["rule"] == "exact"
    pair = pairs["more/late", "eval/e3"]
    assert pair["correlation"] > 0.95
    assert pair["lag_s"] == pytest.approx(-1.0, abs=0.05)
    assert pair["evaluation"]["stretch_s"] == pytest.approx([1.0, 5.0], abs=0.08)
    assert pair["training"]["stretch_s"] == pytest.approx([0.0, 4.0], abs=0.08)
    pair = pairs["more/fast", "eval/e6"]
    assert (pair["speed"], pair["with_pitch"]) == (pytest.approx(1.03, abs=0.006), True)
    assert (tmp_path / "audit" / "copies.txt").read_text().split() == ["more/fast", "more/late", "more/same"]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("data:audio/mpeg;base64,") == page.count("data:image/png;base64,") == 6

    again = audit(*of(root))[1]
    assert {**again, "made": None} == {**found, "made": None}
    assert again["made"] != found["made"]


def test_exit_status_and_words_for_people(tmp_path, root):
    soundfile.write(root / "more" / "copy.wav", sound(102, 5.0), 16000)
    done = command(tmp_path, *of(root), "num_workers=1", module="balance.audit")
    assert done.returncode == 3, done.stderr
    assert "copies: 1 training clips are copies of evaluation clips (1 pairs: 0 id, 0 exact, 1 acoustic)" in done.stderr
    (folder,) = (tmp_path / "outputs" / "audits").glob("*/*")
    assert {path.name for path in folder.iterdir()} == {"audit.json", "audit.html", "audit.log", "copies.txt"}
    done = command(tmp_path, *of(root), "audit.train=[nothing]", module="balance.audit")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def sha1(path):
    samples = soundfile.read(path, dtype="float32")[0]
    return hashlib.sha1(samples.astype("<f4").tobytes()).hexdigest()


def test_lists_of_other_forms_and_places(tmp_path, root, audit):
    """Training clips by folder and by VIP-ANT index, evaluation clips by parquet: ids, samples, sound."""
    other = tmp_path / "other"
    write(other / "a" / "aclip" / "x1.p0.wav", sound(200, 5.0))
    write(other / "a" / "aclip" / "x2.p0.wav", sound(201, 5.0))
    records = [
        {"id": name, "dir": "a", "aclip": ["p0.wav"], "frame": [], "labels": [], "bos": "0.0", "eos": "5.0"}
        for name in ("x1", "x2")
    ]
    (other / "src_list.csv").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = [(f"q{i}", (root / "eval" / f"e{i}.flac").read_bytes()) for i in range(3)]
    rows.append(("x2", (root / "eval" / "e4.flac").read_bytes()))
    rows.append(("q9", (other / "a" / "aclip" / "x1.p0.wav").read_bytes()))
    table = pa.table({"video_id": [row[0] for row in rows], "audio": [row[1] for row in rows], "labels": [[""]] * 5})
    (tmp_path / "tables").mkdir()
    pq.write_table(table, tmp_path / "tables" / "test.parquet")
    status, found, _ = audit(
        f"dataset.root={root}",
        "dataset.format=folder",
        f"audit.train=[train,{{list: list, root: {other}, format: vipant}}]",
        f"audit.eval=[{{list: test, root: {tmp_path}/tables, format: parquet}}]",
        "dataset.ids=whole",
    )
    assert status == 3
    pairs = [(p["training"]["id"], p["evaluation"]["id"], p["rule"]) for p in found["pairs"]]
    assert pairs == [("x1", "q9", "exact"), ("x2", "x2", "id")]
    assert [one["num_clips"] for one in (*found["training"], *found["evaluation"])] == [8, 2, 5]


def test_what_could_not_be_compared_is_not_clean(tmp_path, root, audit):
    (root / "more" / "broken.wav").write_bytes(b"RIFF nothing")
    write(root / "more" / "silent.wav", np.zeros(16000))
    status, _, said = audit(*of(root))
    assert status == 1
    assert "1 of 3 training clips" in said
    assert "type max_failures=0.34" in said
    status, found, said = audit(*of(root, "max_failures=0.34"))
    assert (status, found["verdict"]) == (0, "incomplete")
    assert "not compared: 1 of 3 training clips of more that cannot be decoded" in said
    assert found["training"][1]["not_compared"]["unreadable"] == 1
    assert found["training"][1]["num_silent"] == 1
    assert "that cannot be decoded" in (tmp_path / "audit" / "audit.html").read_text()
    status, found, _ = audit(*of(root, "audit.level=id"))
    assert (status, found["verdict"]) == (0, "clean"), "by id all could be compared"


def test_a_long_clip_is_heard_to_its_end(tmp_path, root, audit):
    write(root / "train" / "long.wav", np.concatenate([0.2 * sound(60, 30.0), sound(105, 5.0), sound(61, 6.0)]))
    status, found, _ = audit(*of(root))
    assert status == 3
    (pair,) = found["pairs"]
    assert (pair["training"]["id"], pair["evaluation"]["id"]) == ("train/long", "eval/e5")
    assert pair["lag_s"] == pytest.approx(30.0, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset.eval=null"], "an audit compares with evaluation clips: type dataset.eval=LIST"),
        (["audit.train=[{root: x}]"], "names or paths of lists"),
        (["audit.eval=[{list: eval, format: cassette}]"], "format: cassette is none of a list's formats"),
        (["audit.eval=[nothing]"], "nothing"),
    ],
)
def test_mistakes(root, audit, overrides, said):
    status, _, stderr = audit(*of(root, *overrides))
    assert status == 1
    assert said in stderr


def test_own_vectors_have_no_sound(tmp_path, audit):
    for name, ids in (("a", ["x", "y"]), ("b", ["y", "z"])):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 4), np.float32))
        (tmp_path / f"{name}.ids.txt").write_text("\n".join(ids))
    given = [f"dataset.root={tmp_path}", "dataset.format=embeddings", "audit.train=[a]", "audit.eval=[b]"]
    status, _, said = audit(*given)
    assert status == 1
    assert "type audit.level=id" in said
    status, found, _ = audit(*given, "audit.level=id", "dataset.ids=whole")
    assert status == 3
    assert [(p["training"]["id"], p["evaluation"]["id"]) for p in found["pairs"]] == [("y", "y")]


def test_own_vectors_with_an_index_have_sound(tmp_path, audit):
    for name, clip in (("a", "x"), ("b", "z")):
        write(tmp_path / name / "aclip" / f"{clip}.p0.wav", sound(1, 5.0))
        record = {"id": clip, "dir": name, "aclip": ["p0.wav"], "frame": [], "labels": [], "bos": "0.0", "eos": "5.0"}
        (tmp_path / f"{name}.csv").write_text(json.dumps(record) + "\n")
        np.save(tmp_path / f"{name}.npy", np.zeros((1, 4), np.float32))
        (tmp_path / f"{name}.ids.txt").write_text(clip)
    given = [f"dataset.root={tmp_path}", "dataset.format=embeddings", "audit.train=[a]", "audit.eval=[b]"]
    status, found, _ = audit(*given)
    assert status == 3
    assert [(p["training"]["id"], p["evaluation"]["id"], p["rule"]) for p in found["pairs"]] == [("x", "z", "exact")]


def test_a_damaged_part_is_heard_again(tmp_path, root, audit):
    assert audit(*of(root))[0] == 0
    part = min((tmp_path / "cache" / "sounds").glob("*/part-*.arrow"))
    data = bytearray(part.read_bytes())
    num_rows = len(pa.ipc.open_file(part).read_all())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    status, _, said = audit(*of(root))
    assert status == 0
    assert "is damaged" in said
    assert f"{num_rows} clips to decode" in said


# An audit whose parts hold 4 clips; with a second argument it writes one part, says so and waits.
IN_PARTS = """
import sys, time
from balance.audit.__main__ import main
from balance.curation import sounds
from balance.runtime import command
sounds.PART_CLIPS, wait, write = 4, sys.argv.pop(1) == "wait", sounds.Sounds._write

def one_part(self, *given):
    done = write(self, *given)
    print("a part is written", flush=True)
    time.sleep(60)
    return done

if wait:
    sounds.Sounds._write = one_part
command.start(main)
"""


def in_parts(tmp_path, name, root, wait):
    typed = [*of(root), "num_workers=1", f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/{name}"]
    return subprocess.Popen(
        [sys.executable, "-c", IN_PARTS, wait, *typed], cwd=tmp_path, stdout=-1, stderr=-1, text=True
    )


def test_a_killed_audit_goes_on_where_it_was_and_two_at_once_share_the_work(tmp_path, root, audit):
    write(root / "more" / "copy.wav", 0.5 * sound(103, 5.0))
    (root / "train" / "t7.wav").unlink()  # still 17 clips
    killed = in_parts(tmp_path, "killed", root, "wait")
    assert killed.stdout.readline() == "a part is written\n"
    killed.kill()
    killed.communicate(timeout=60)
    assert not (tmp_path / "killed" / "audit.json").exists()
    both = [in_parts(tmp_path, name, root, "on") for name in ("one", "other")]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [3, 3], said
    assert any("13 clips to decode, 4 known from earlier audits" in words for words in said)
    parts = (tmp_path / "cache" / "sounds").glob("*/part-*.arrow")
    paths = [path for part in parts for path in pa.ipc.open_file(part).read_all()["path"].to_pylist()]
    assert len(paths) == len(set(paths)) == 17, "each clip is heard once"
    found = [json.loads((tmp_path / name / "audit.json").read_text()) for name in ("one", "other")]
    shutil.rmtree(tmp_path / "cache")
    _, whole, _ = audit(*of(root))
    assert {**found[0], "made": None} == {**found[1], "made": None} == {**whole, "made": None}


def test_equal_samples_are_taken_from_what_runs_embedded(tmp_path, audit):
    world = worlds.make(tmp_path / "world", seeds=3, pool=9, evaluation=2)
    pool, evaluation = world.records("pool"), world.records("eval")
    shutil.copy(world.media(evaluation[0]), world.media(pool[4]).with_suffix(world.media(evaluation[0]).suffix))
    pool[4]["aclip"] = evaluation[0]["aclip"]
    world.write("pool", pool)
    typed = (*world.overrides()[:2], "audit.level=exact")
    status, from_sound, said = audit(typed[0], "audit.level=exact")
    assert (status, len(from_sound["pairs"])) == (3, 1)
    assert "14 clips to decode" in said
    shutil.rmtree(tmp_path / "cache")
    settings, _ = config.compose("run", [*typed[:2], "k=2", "num_workers=1", f"cache_dir={tmp_path}/cache"])
    folder = tmp_path / "run"
    folder.mkdir()
    pipeline.run(settings, folder)
    status, found, said = audit(*typed)
    assert status == 3
    assert "audit: 0 clips to decode" in said
    assert "unbalanced_train_segments: 9 clips known from embeddings" in said
    assert {**found, "made": None} == {**from_sound, "made": None}
    changed = world.media(pool[2])
    stamp, samples = changed.stat(), changed.read_bytes()
    changed.write_bytes(samples[:-8] + bytes(8))  # other samples under the same size and time
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    _, found, said = audit(*typed)
    assert "is of other files: it is left out" in said
    assert "9 clips to decode" in said


def test_how_ids_are_compared_is_said_once(root, audit):
    _, _, said = audit(*of(root))
    assert said.count("ids are compared") == 1
    assert "train with eval, more with eval" in said
    assert "augment." not in said, "an audit compares sound itself"

"""Files behind URLs, from real servers on the loopback, against the same files on disk."""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from balance.errors import UserError
from balance.runtime import files, remote
from balance.runtime.remote import RemotePath, Unreachable, check_url, is_url, place, redacted
from tests import object_store
from tests.object_store import Bucket, Faulty

NAMES = ("a/x.wav", "a/y #?%41&+z é.wav", "a/deep/z.wav", "b/x.flac", "src_X.csv")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with object_store.s3() as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    """Credentials and address in the libraries' own variables; no connection of another test; short pauses."""
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    for scheme in ("s3", "http"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * (100 + number))
    return tmp_path


def through(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)


def test_a_bucket_is_read_like_the_folder_it_was_made_of(bucket: Bucket, tree: Path) -> None:
    bucket.upload(tree, "like/")
    root = place("s3://bucket/like/")
    assert isinstance(root, RemotePath)
    assert str(root) == "s3://bucket/like"
    assert sorted(root.walk()) == sorted(NAMES)
    assert sorted((root / "a").names("file")) == sorted(p.name for p in (tree / "a").iterdir() if p.is_file())
    assert root.names("directory") == ["a", "b"]
    for name in NAMES:
        there, here = root / name, tree / name
        assert (there.name, there.stem, there.suffix) == (here.name, here.stem, here.suffix)
        assert there.relative_to(root) == name
        assert there.is_file()
        assert not there.is_dir()
        assert there.read_bytes() == there.read_bytes(here.stat().st_size) == here.read_bytes()
        assert there.read_range(3, 50) == here.read_bytes()[3:50]
    assert (root / "a").is_dir()
    assert (root / "a").exists()
    for absent in (root / "c", place("s3://no-such-bucket/x")):
        assert not absent.exists()
    with pytest.raises(FileNotFoundError):
        (root / "c").read_bytes()


def test_http_is_read_without_listings(tree: Path) -> None:
    with object_store.files_over_http(tree) as url:
        root = place(url)
        assert isinstance(root, RemotePath)
        for name in NAMES:
            assert (root / name).is_file()
            assert (root / name).name == (tree / name).name
            assert (root / name).read_bytes() == (tree / name).read_bytes()
            assert (root / name).read_range(3, 50) == (tree / name).read_bytes()[3:50]
        stamps = root.stamps([*NAMES, "a/absent.wav"])
        assert {name: size for name, (size, _) in stamps.items()} == {n: (tree / n).stat().st_size for n in NAMES}
        assert not root.is_dir()
        assert not (root / "absent").is_file()


def test_an_open_file_seeks_and_reads_like_one_on_disk(
    bucket: Bucket, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_GET_BYTES", 64)  # several requests for one read
    bucket.upload(tree, "open/")
    for name in NAMES:
        with (place("s3://bucket/open") / name).open() as there, (tree / name).open("rb") as here:
            for read in (
                lambda file: file.read(10),
                lambda file: (file.seek(-7, 2), file.read()),
                lambda file: (file.seek(5), file.read(200), file.tell()),
                lambda file: file.read(),
                lambda file: file.read(1),
            ):
                assert read(there) == read(here)
        assert (place("s3://bucket/open") / name).read_bytes((tree / name).stat().st_size) == (tree / name).read_bytes()


def test_a_stamp_is_of_the_content(bucket: Bucket, tree: Path) -> None:
    bucket.upload(tree, "stamps/")
    root = RemotePath("s3://bucket/stamps")
    before = root.stamps([*NAMES, "a/absent.wav", "nowhere/x.wav"])
    assert {name: size for name, (size, _) in before.items()} == {n: (tree / n).stat().st_size for n in NAMES}
    other = b"z" * before["a/x.wav"][0]
    bucket.client.put_object(Bucket="bucket", Key="stamps/a/x.wav", Body=other)
    bucket.upload(tree / "b", "stamps/b/")  # the same again
    after = root.stamps(NAMES)
    assert [name for name in NAMES if after[name] != before[name]] == ["a/x.wav"]


@pytest.mark.parametrize("fault", ["500", "cut", "short"])
def test_what_fails_for_a_while_is_asked_again(
    fault: str, bucket: Bucket, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(tree, "again/")
    count = itertools.count(1)
    server = Faulty(bucket.address, lambda method, path: fault if next(count) % 3 else None)
    with server.serving() as url:
        through(monkeypatch, url)
        for name in NAMES:
            wanted = (tree / name).read_bytes()
            assert (RemotePath("s3://bucket/again") / name).read_bytes(len(wanted)) == wanted
            assert (RemotePath("s3://bucket/again") / name).read_range(10, 90) == wanted[10:90]


@pytest.mark.parametrize(("fault", "words"), [("500", "Internal Server Error"), ("short", "checksum")])
def test_what_fails_for_good_names_the_url_and_no_secret(
    fault: str, words: str, bucket: Bucket, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(tree, "good/")
    with Faulty(bucket.address, lambda method, path: fault).serving() as url:
        through(monkeypatch, url)
        with pytest.raises(
            Unreachable, match=r"s3://bucket/good/a/x.wav: .*asked 6 times.*run the same command again"
        ) as raised:
            RemotePath("s3://bucket/good/a/x.wav").read_bytes(700)
    assert words in str(raised.value)
    assert "testing" not in str(raised.value)


def test_a_server_that_is_gone_and_one_that_hangs(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_REQUEST_LIMIT_S", 0.3)
    monkeypatch.setattr(remote, "LIMIT_S", 2.0)
    bucket.client.put_object(Bucket="bucket", Key="slow", Body=b"x")
    server = Faulty(bucket.address, lambda method, path: "hang", hang_s=2.0)
    with server.serving() as url:
        through(monkeypatch, url)
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"no answer within 0 s, asked \d times"):
            RemotePath("s3://bucket/slow").read_bytes(1)
        assert time.monotonic() - started < 10
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setattr(remote, "_REQUEST_LIMIT_S", 10.0)  # a busy machine may need a second for the refusal
    with pytest.raises(Unreachable, match="s3://bucket/slow: Could not connect"):
        RemotePath("s3://bucket/slow").read_bytes(1)


def test_files_are_written_listed_and_removed(bucket: Bucket) -> None:
    folder = RemotePath("s3://bucket/written")
    assert list(folder.glob("*")) == []
    names = ["part-a-1.arrow", "part-b-2.arrow", "use-a", "meta.json"]
    for name in names:
        (folder / name).write_bytes(name.encode() * 7)
        assert (folder / name).read_whole() == name.encode() * 7
    (folder / "deeper/part-c-3.arrow").write_bytes(b"x")
    assert sorted(path.name for path in folder.glob("part-*-*.arrow")) == names[:2]
    assert [path.url for path in folder.glob("part-b-*.arrow")] == ["s3://bucket/written/part-b-2.arrow"]
    assert sorted(path.name for path in folder.glob("*")) == sorted(names)
    (folder / "use-a").write_bytes(b"")
    assert (folder / "use-a").read_whole() == b""
    (folder / "use-a").unlink()
    (folder / "use-a").unlink(missing_ok=True)
    folder.remove(names[:2])
    folder.remove([])
    assert folder.walk() == ["deeper/part-c-3.arrow", "meta.json"]


@pytest.mark.parametrize("fault", ["500", "half"])
def test_what_cannot_be_written_for_a_while_is_sent_again(
    fault: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count(1)
    server = Faulty(bucket.address, lambda method, path: fault if method == "PUT" and next(count) < 3 else None)
    with server.serving() as url:
        through(monkeypatch, url)
        RemotePath(f"s3://bucket/sent-{fault}").write_bytes(b"0123456789" * 99)
    assert [method for method, _ in server.seen].count("PUT") >= 2
    found = bucket.client.get_object(Bucket="bucket", Key=f"sent-{fault}")["Body"].read()
    assert found == b"0123456789" * 99


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", "cannot be written: there is no such bucket, or it is gone"),
        ("500", "Internal Server Error, asked 6 times"),
        ("half", "495 of 990 bytes arrived, asked 6 times"),
    ],
)
def test_what_cannot_be_written_names_the_url(
    fault: str, words: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Faulty(bucket.address, lambda method, path: fault if method == "PUT" else None).serving() as url:
        through(monkeypatch, url)
        with pytest.raises(Unreachable, match=f"s3://bucket/never.*{words}.*run the same command again"):
            RemotePath("s3://bucket/never").write_bytes(b"0123456789" * 99)


def test_a_large_file_has_more_time_to_be_written(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_REQUEST_LIMIT_S", 0.2)
    monkeypatch.setattr(remote, "_LEAST_BYTES_PER_S", 1000.0)
    server = Faulty(bucket.address, lambda method, path: "hang" if method == "PUT" else None, hang_s=1.0)
    with server.serving() as url:
        through(monkeypatch, url)
        RemotePath("s3://bucket/large").write_bytes(bytes(60_000))
        assert [method for method, _ in server.seen].count("PUT") == 1


def test_kept_files_are_the_same_bytes_in_a_bucket_and_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float64(0.5)}
    there = RemotePath("s3://bucket/kept")
    for folder in (there, tmp_path):
        files.write_npz(folder / "x.npz", arrays)
        files.write_json(folder / "x.json", {"é": [1, None]})
    for name in ("x.npz", "x.json"):
        assert (there / name).read_whole() == (tmp_path / name).read_bytes()
    found = files.read_npz(there / "x.npz")
    assert found is not None
    assert found["a"].tobytes() == arrays["a"].tobytes()
    assert files.read_npz(there / "absent.npz") is None
    (there / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-1])
    assert files.read_npz(there / "x.npz") is None
    with pytest.raises(TypeError):
        files.write_json(there / "bad.json", object())
    assert not (there / "bad.json").exists()


def test_a_failed_head_over_http_is_no_missing_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec itself says FileNotFoundError of any failure."""
    with object_store.files_over_http(tree) as there:
        address = ("127.0.0.1", int(there.rpartition(":")[2]))
        count = itertools.count(1)
        flaky = Faulty(address, lambda method, path: "500" if next(count) % 2 else None)
        with flaky.serving() as url:
            assert RemotePath(url).stamps(["src_X.csv", "absent"]).keys() == {"src_X.csv"}
        with Faulty(address, lambda method, path: "500").serving() as url, pytest.raises(Unreachable, match="500"):
            RemotePath(url).stamps(["src_X.csv"])


def test_a_server_without_ranges_is_no_place_for_containers(tree: Path) -> None:
    with object_store.files_over_http(tree) as there:
        address = ("127.0.0.1", int(there.rpartition(":")[2]))
        with Faulty(address, without="Range").serving() as url:
            assert (RemotePath(url) / "src_X.csv").read_bytes(9 * 104) == (tree / "src_X.csv").read_bytes()
            with pytest.raises(Unreachable, match="it knows no ranges"):
                (RemotePath(url) / "src_X.csv").read_range(1, 9)


def test_a_body_that_is_well_formed_but_short_is_noticed(tree: Path) -> None:
    with object_store.files_over_http(tree) as there:
        short = Faulty(("127.0.0.1", int(there.rpartition(":")[2])), lambda method, path: "short")
        with short.serving() as url, pytest.raises(Unreachable, match="468 of 936 bytes came, asked 6 times"):
            (RemotePath(url) / "src_X.csv").read_bytes(936)
        with short.serving() as url, pytest.raises(Unreachable, match="4 of 8 bytes came, asked 6 times"):
            (RemotePath(url) / "src_X.csv").read_range(1, 9)


def test_files_that_changed_since_they_were_listed_stop_the_run(bucket: Bucket) -> None:
    bucket.client.put_object(Bucket="bucket", Key="grown", Body=b"12345678")
    with pytest.raises(Unreachable, match="larger than when it was listed"):
        RemotePath("s3://bucket/grown").read_bytes(7)


def test_an_absent_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://b/x: a package is absent: type pip install 'audio-balance\[gcs\]'"):
        RemotePath("gs://b/x").read_bytes()
    with pytest.raises(UserError, match=r"nonsense://x: Protocol not known: nonsense; s3://, .* are known"):
        RemotePath("nonsense://x").read_bytes()


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://me:w0rd@host/x", "w0rd"),
        ("https://t0ken@host/x", "t0ken"),
        ("s3://key:w0rd@bucket/x", "w0rd"),
        ("abfs://container:w0rd@account/x", "w0rd"),
        ("https://host/x?X-Amz-Signature=abc", "abc"),
        ("s3://bucket/x?token=abc", "abc"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_said(url: str, secret: str) -> None:
    with pytest.raises(ValueError, match=r"dataset.media=.*must not hold") as raised:
        check_url("dataset.media", url)
    assert secret not in str(raised.value)
    assert secret not in redacted(f"at {url} and '{url}'")


@pytest.mark.parametrize(
    "url", ["abfs://container@account/x", "hf://datasets/a/b@main/x", "s3://bucket/a@b", "/a?b", None]
)
def test_what_holds_none_passes(url: str | None) -> None:
    check_url("dataset.media", url)


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/x")
    assert not is_url("/data/s3://x")
    assert not is_url("data/x.csv")
    assert place("file:///data/a%20b") == Path("/data/a b")
    assert place("~/x") == Path.home() / "x"
    assert place(RemotePath("s3://b")) == RemotePath("s3://b")

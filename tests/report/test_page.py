"""The page: its numbers against loops, the same bytes twice, and how it behaves in a real browser."""

import csv
import html
import json
import math
import re
import shlex
import urllib.parse
import xml.etree.ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from balance.curation.config import AugmentConfig, Copies
from balance.curation.curate import curate
from balance.curation.removed import Removals, Rule
from balance.data.config import ColumnsConfig, Format, Ids, MediaSource
from balance.data.ontology import read_parents
from balance.errors import UserError
from balance.prepared import Embedded, Prepared
from balance.records import Facts, Failure, Index, Labels, Neighbours, Split
from balance.report import figures, listening
from balance.report.page import About, _rules, render, write_report
from balance.report.sound import Sound
from balance.report.sweep import write_sweep
from balance.results.summary import summarise
from balance.search.top_k import ArrayVectors
from balance.stats import run_stats
from balance.stats.run_stats import LabelCounts
from tests import browser

NAMES = [f"/m/{i:02d}" for i in range(30)]
ONTOLOGY = [
    {"id": "/m/top", "name": "Everything", "child_ids": ["/m/00", "/m/mid"]},
    {"id": "/m/mid", "name": "Middle <b>&", "child_ids": ["/m/01", "/m/02", "/m/00"]},
    *({"id": name, "name": f"A sound called {name} & more $x$", "child_ids": []} for name in NAMES),
]


def make_split(prefix, n, rng, folder):
    ids = [f"{'-' if i % 3 == 0 else ''}{prefix}{i:04d}<i>" for i in range(n)]
    sets = [rng.permutation(NAMES)[: rng.integers(0, 4)].tolist() for _ in range(n)]
    frames = [
        {"id": x, "dir": "d", "aclip": ["p0.wav"], "frame": ["p0.3_0.jpg", "p0.3_1.jpg", "p0.3_2.jpg"]} for x in ids
    ]
    index = Index(
        file="x.csv",
        ids=pa.array(ids),
        paths=pa.array([f"d/aclip/{x}.p0.wav" for x in ids]),
        labels=Labels.of(sets),
        lines=pa.array([json.dumps(x).encode() for x in frames], pa.large_binary()),
    )
    facts = Facts(
        rng.choice([8000, 44100], n).astype(np.int32),
        np.full(n, 80000),
        np.where(np.arange(n) == 1, -np.inf, -20).astype(np.float32),
        rng.integers(0, 256, (n, 20)).astype(np.uint8),
    )
    (folder / "d/frame").mkdir(parents=True, exist_ok=True)
    for x in ids[::2]:
        (folder / f"d/frame/{x}.p0.3_1.jpg").write_bytes(JPEG)
    return Split(index, np.arange(n), ArrayVectors(np.ones((n, 4), np.float32)), facts)


JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d1a"
    "1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffc0000b080001000101011100ffc4001f0000010501010101"
    "010100000000000000000102030405060708090a0bffc400b5100002010303020403050504040000017d010203000411051221314106135161"
    "07227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a53545556575859"
    "5a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6"
    "c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9faffda0008010100003f00fbd3ffd9"
)
K = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root with ümlaut & <x>")
    (root / "ontology.json").write_text(json.dumps(ONTOLOGY))
    return root


@pytest.fixture(scope="module")
def run(root):
    rng = np.random.default_rng(0)
    seeds, pool = make_split("s", 40, rng, root), make_split("p", 300, rng, root)
    weights = rng.random(300) ** 4
    rows = np.stack([rng.choice(300, 20, replace=False, p=weights / weights.sum()) for _ in range(40)])
    neighbours = Neighbours(
        np.arange(40), rows.astype(np.int32), -np.sort(-rng.random((40, 20)), axis=1).astype(np.float32)
    )
    config = AugmentConfig(copies=Copies.exact, budget=120)
    prepared = Prepared(
        embedded=Embedded(
            splits={"seeds": seeds, "pool": pool},
            failures=(Failure("x", "pool", "x.mp3", "missing", ""),),
            ontology={x["id"]: x["name"] for x in ONTOLOGY},
            ids_as=Ids.whole,
            fingerprint="f",
            identity="",
            device="cpu",
            precision="float32",
            precision_report=None,
            inputs={},
            times_s={},
        ),
        times_s={},
        decontaminated=Removals.of(np.array([5]), Rule.leak_id, pa.array(["e<1>"])),
        eligible=np.arange(300),
        neighbours=neighbours,
    )
    curated = curate(
        config, rng_seed=1, seeds=seeds, pool=pool, eligible=prepared.eligible, neighbours=neighbours.top(K)
    )
    return prepared, curated, summarise(prepared, K, curated, 1)


def about(root, media_base=None, sound=None, num_embedded=0):
    return About(
        dataset="audioset",
        is_demo=False,
        media_root=root,
        media_base=media_base,
        parents=read_parents(root / "ontology.json"),
        sound=sound,
        num_embedded=num_embedded,
        rng_seed=1213,
    )


@pytest.fixture(scope="module")
def page(run, root, tmp_path_factory):
    prepared, curated, summary = run
    folder = tmp_path_factory.mktemp("run")
    return write_report(folder, about(root), prepared=prepared, k=K, curated=curated, summary=summary)


def test_same_bytes_twice_and_small(run, root, page, tmp_path):
    prepared, curated, summary = run
    again = write_report(tmp_path, about(root), prepared=prepared, k=K, curated=curated, summary=summary)
    assert again.read_bytes() == page.read_bytes()
    assert len(page.read_bytes()) < 5_000_000
    assert not [x for x in page.parent.iterdir() if x != page]


def test_text_is_escaped_and_pairs_are_there(page):
    text = page.read_text()
    assert "<i>" not in text
    assert "&lt;i&gt;" in text
    assert "e&lt;1&gt;" in text
    assert "Beyond the budget" in text


def test_both_clips_of_a_pair_can_be_heard(run, root, page):
    """A clip and the one that it copies each have a player, wherever the page knows both."""
    prepared, _, _ = run
    ids = prepared.pool.index.ids
    pair = Removals.of(np.array([7]), Rule.copy_acoustic, ids.take(pa.array([9])), np.array([0.95]))
    (rule,) = _rules(prepared.embedded.splits, pair, listening.Links(root, ("https://example.org/",)))
    (row,) = rule.rows
    assert unquote(row.audio[0]) == f"https://example.org/{prepared.pool.index.paths[7].as_py()}"
    assert unquote(row.its_audio[0]) == f"https://example.org/{prepared.pool.index.paths[9].as_py()}"
    unknown = Removals.of(np.array([7]), Rule.leak_id, pa.array(["nobody"]))
    assert _rules(prepared.embedded.splits, unknown, listening.Links(root, ("x/",)))[0].rows[0].its_audio == ()


def test_acoustic_pairs_in_doubt_come_first(run, root):
    values = np.array([0.99, 0.91, 0.95])
    pairs = Removals.of(np.arange(3), Rule.leak_acoustic, pa.array(["a", "b", "c"]), values)
    (rule,) = _rules(run[0].embedded.splits, pairs, listening.Links(root, ("x/",)))
    assert [(row.because_of, row.value) for row in rule.rows] == [("b", 0.91), ("c", 0.95), ("a", 0.99)]


def test_media_links(run, root, page):
    prepared, _, _ = run
    text = page.read_text()
    assert text.count('<source src="file:///') == text.count("<audio") > 0
    assert "p0.3_1.jpg" in text
    moved = render(page.parent, about(root, "https://example.org/media"), prepared, K, run[1], run[2])
    assert 'src="https://example.org/media/d/aclip/' in moved
    assert 'src="file:' not in moved


def test_spectrograms_are_inlined_and_the_page_stays_small(run, root, tmp_path):
    prepared, curated, summary = run
    rng = np.random.default_rng(0)
    media = tmp_path / "media"
    (media / "d" / "aclip").mkdir(parents=True)
    for split in (prepared.seeds, prepared.pool):
        for path in split.index.paths.to_pylist()[:-1]:
            soundfile.write(media / path, rng.normal(0, 0.1, 4000), 8000)
    sound = Sound(MediaSource(root=media, format=Format.vipant, columns=ColumnsConfig()), 2, 1 << 24, 60.0)
    text = render(tmp_path, about(root, sound=sound), prepared, K, curated, summary)
    assert text.count('<img class="sound" src="data:image/png;base64,') >= 71  # of 72 clips, at most one without sound
    assert "one scale" in text
    assert "one scale" not in render(tmp_path, about(root), prepared, K, curated, summary)
    assert len(text.encode()) < 2_000_000, "noise, the largest pictures there are"
    text = render(tmp_path, about(root, sound=sound, num_embedded=10), prepared, K, curated, summary)
    assert text.count('<source src="data:audio/mpeg;base64,') == 10


def test_links_to_media_near_the_page_are_relative_first_and_lead_there(tmp_path):
    media = tmp_path / "data: a#b?%41"
    page = tmp_path / "outputs" / "runs" / "day" / "time"
    (media / "d").mkdir(parents=True)
    page.mkdir(parents=True)
    (media / "d" / "x y#.wav").write_bytes(b"RIFF")
    index = Index(file="x", ids=pa.array(["x"]), paths=pa.array(["d/x y#.wav"]), labels=Labels.of([()]))
    relative, absolute = listening.Links.to(media, None, page).audio(index, 0)
    assert relative.startswith("./")
    base = page.as_uri() + "/report.html"
    for link in (relative, absolute):
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(base, link))
        assert Path(urllib.parse.unquote(parts.path)).read_bytes() == b"RIFF"
        assert parts.scheme == "file"
    assert len(listening.Links.to(media, None, page / "1" / "2").audio(index, 0)) == 1, "far away: absolute only"
    assert listening.Links.to(media, "https://example.org/a b/", page).audio(index, 0) == (
        "https://example.org/a b/d/x%20y%23.wav",
    )


def test_names_are_drawn_as_they_are_and_nothing_of_theirs_is_markup():
    names = ["$$", "$x^2$ and $", "</text><script>alert(1)</script>", "a\nb\tc", "鳥の声", "x" * 90]
    drawn = figures.labels([LabelCounts(id=name, name=name, before=1, after=2, pool=3) for name in names])
    inside = xml.etree.ElementTree.fromstring(f'<x xmlns:xlink="http://www.w3.org/1999/xlink">{drawn}</x>')
    texts = [element.text.strip() for element in inside.iter() if element.text]
    assert {"$$", "$x^2$ and $", "</text><script>alert(1)</script>", "a b c", "鳥の声", "x" * 33 + "…"} <= set(texts)


def test_ancestors_against_loops():
    parents = {"a": ["b"], "b": ["c", "d"], "d": ["e"], "x": ["x2"], "e": ["b"]}
    labels = Labels.of([("a",), (), ("d", "x"), ("z", "a")])
    got = run_stats.with_ancestors(labels, parents)
    expected = [{"a", "b", "c", "d", "e"}, set(), {"d", "e", "b", "c", "x", "x2"}, {"z", "a", "b", "c", "d", "e"}]
    assert [set(got[i]) for i in range(4)] == expected


def test_parents_of_an_ontology(root):
    parents = read_parents(root / "ontology.json")
    assert parents["/m/00"] == ["/m/top", "/m/mid"]
    assert read_parents(root / "none.json") == {}


def test_measurements_against_loops(run):
    prepared, curated, _ = run
    parents = {"/m/00": ["/m/mid"], "/m/01": ["/m/mid"]}
    seeds, pool = prepared.seeds, prepared.pool
    found = run_stats.measure(
        splits=prepared.embedded.splits,
        eligible=prepared.eligible,
        neighbours=prepared.neighbours,
        k=K,
        chosen=curated.union.pool_rows,
        ontology=prepared.embedded.ontology,
        parents=parents,
    )
    rows = prepared.neighbours.pool_rows[:, :K].tolist()
    mine = [set(seeds.index.labels[i]) for i in range(40)]
    theirs = [set(pool.index.labels[i]) for i in range(300)]
    up = (
        [{"/m/mid"} if x & set(parents) else set() for x in mine],
        [{"/m/mid"} if x & set(parents) else set() for x in theirs],
    )
    for r in range(K):
        raw = [len(mine[s] & theirs[rows[s][r]]) / len(mine[s]) for s in range(40) if mine[s]]
        full = [
            len((mine[s] | up[0][s]) & (theirs[rows[s][r]] | up[1][rows[s][r]])) / len(mine[s] | up[0][s])
            for s in range(40)
            if mine[s]
        ]
        lifts = []
        for name in set().union(*mine):
            with_it = [s for s in range(40) if name in mine[s]]
            share = np.mean([name in x for x in theirs])
            lifts.append(np.mean([name in theirs[rows[s][r]] for s in with_it]) / share)
        assert found.labels_by_rank.raw.by_rank[r] == pytest.approx(np.mean(raw))
        assert found.labels_by_rank.ancestors.by_rank[r] == pytest.approx(np.mean(full))
        assert found.labels_by_rank.lift[r] == pytest.approx(np.mean(lifts))
    times = Counter(x for row in rows for x in row)
    assert found.hubs.top[0].times == max(times.values())
    every = np.array([times[i] for i in range(300)])
    assert found.hubs.skewness == pytest.approx(((every - every.mean()) ** 3).mean() / every.std() ** 3)
    assert found.hubs.never == int((every == 0).sum())
    assert dict(zip(found.hubs.times.tolist(), found.hubs.clips.tolist(), strict=True)) == Counter(times.values())
    rate_a, rate_b = seeds.facts.sample_rate, pool.facts.sample_rate
    same = np.mean([rate_a[s] == rate_b[x] for s in range(40) for x in rows[s]])
    assert found.rates.same == pytest.approx(same)
    assert found.rates.chance == pytest.approx(np.mean(rate_a[:, None] == rate_b[None]))
    union = {x for row in prepared.neighbours.pool_rows.tolist() for x in row}
    assert found.saturation.union[-1] == len(union)
    after = Counter(x for s in mine for x in s)
    after.update(x for row in curated.union.pool_rows.tolist() for x in theirs[row])
    table = {row.id: (row.before, row.after) for row in found.balance.rows}
    assert table == {n: (sum(n in s for s in mine), after[n]) for n in table}
    shares = np.array(list(after.values())) / sum(after.values())
    assert found.balance.effective[1] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_gini_against_all_pairs():
    counts = np.array([0, 3, 9, 1, 1])
    expected = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert run_stats.gini(counts) == pytest.approx(expected)
    assert run_stats.gini(np.zeros(3, dtype=np.int64)) is None


def test_listening_takes_the_best_and_the_worst(run):
    prepared, _, _ = run
    measured = [
        np.mean([len(a & set(prepared.pool.index.labels[x])) / len(a) for x in prepared.neighbours.pool_rows[s, :K]])
        if (a := set(prepared.seeds.index.labels[s]))
        else math.nan
        for s in range(40)
    ]
    parts = listening.choose(
        prepared.seeds,
        prepared.pool,
        prepared.neighbours.top(K),
        np.array(measured),
        names={},
        links=listening.Links.to(Path("/nowhere"), None, Path("/elsewhere")),
        sound=None,
        num_embedded=0,
        rng_seed=1,
    )
    ids = prepared.seeds.index.ids.to_pylist()
    by_part = {part.title: [measured[ids.index(group.seed.id)] for group in part.groups] for part in parts}
    known = sorted(x for x in measured if not math.isnan(x))
    assert by_part["Best label agreement"] == known[::-1][:4]
    assert by_part["Worst label agreement"] == known[:4]
    seen = [group.seed.id for part in parts for group in part.groups]
    assert len(seen) == len(set(seen)) == 12
    first = parts[0].groups[0]
    assert [clip.rank for clip in first.neighbours] == [1, 2, 3, 4, 5]
    assert not any(clip.frame for clip in (first.seed, *first.neighbours))  # no such files there


def test_a_run_without_labels_or_media(run, root):
    prepared, _, _ = run
    bare = {
        name: Split(
            Index(file="x", ids=s.index.ids, paths=s.index.paths, labels=Labels.of([()] * len(s.index))),
            s.embedded,
            s.vectors,
            None,
        )
        for name, s in prepared.embedded.splits.items()
    }
    nothing = replace(prepared, embedded=replace(prepared.embedded, splits=bare, failures=()))
    curated = curate(
        AugmentConfig(),
        rng_seed=1,
        seeds=bare["seeds"],
        pool=bare["pool"],
        eligible=prepared.eligible,
        neighbours=prepared.neighbours.top(1),
    )
    summary = summarise(nothing, 1, curated, 1)
    text = render(Path("/run"), about(root), nothing, 1, curated, summary)
    said = (
        "No clip has labels: label agreement and recall, labels by rank and label balance are left out.",
        "no labels",
    )
    shown = re.sub(r"<(style|script)>.*?</\1>|aria-label", "", text, flags=re.S)
    assert said[0] in " ".join(shown.split())
    assert "abel" not in " ".join(shown.split()).replace(said[0], "").replace(said[1], "")
    assert "The embeddings were given" in text


def test_sweep(run, page, tmp_path):
    _, _, summary = run
    for name, k in (("k=32", 32), ("k=8", 8), ("k=100", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({**summary.as_json(), "k": k, "label_recall": None}))
    (tmp_path / "k=8/report.html").write_bytes(page.read_bytes())
    assert [row.run for row in write_sweep(tmp_path)] == ["k=8", "k=32", "k=100"]
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["k"] for row in rows] == ["8", "32", "100"]
    assert float(rows[0]["label_agreement"]) == summary.label_agreement
    assert rows[0]["label_recall"] == ""
    text = (tmp_path / "report.html").read_text()
    assert text.count("<a href=") == 1
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert titles == ["Share of the pool chosen", "Label agreement at K", "Label entropy of the augmented set"]
    for k in (8, 32, 100):
        assert len(re.findall(rf'id="[^"]*-k{k}"', text)) == 3
    marked = 100 if summary.pool_share <= 0.5 else 8
    assert re.findall(r'id="mark(\d+)" checked', text) == [str(marked)]
    first = (tmp_path / "report.html").read_bytes()
    write_sweep(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert write_sweep(page.parent) == []


@pytest.mark.parametrize("text", ['{"k": 1', "[]", '{"k": 3}', "\x00"])
def test_a_damaged_summary_is_a_sentence(tmp_path, text):
    (tmp_path / "0-k3").mkdir()
    (tmp_path / "0-k3" / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json cannot be read as the summary of a run"):
        write_sweep(tmp_path)


def test_a_run_folder_of_any_name_is_linked_as_a_folder(run, page, tmp_path):
    _, _, summary = run
    names = ["javascript:alert(1)", "a b#c?d%41", "x=1,dataset.root='\"><script>"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary.as_json()))
        (tmp_path / name / "report.html").write_bytes(page.read_bytes())
    write_sweep(tmp_path)
    sweep = tmp_path / "report.html"
    text = sweep.read_text()
    assert "<script" not in text
    links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', text)]
    to = [urllib.parse.urlsplit(urllib.parse.urljoin(sweep.as_uri(), link)) for link in links]
    assert {Path(urllib.parse.unquote(x.path)) for x in to} == {tmp_path / name / "report.html" for name in names}
    assert all(x.scheme == "file" and not x.query and not x.fragment for x in to)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium(chromium, page, width, dark):
    chromium.open(page.as_uri(), width, dark=dark)
    chromium.evaluate("document.querySelectorAll('details').forEach(x => x.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # nothing sticks out of the page but inside a region that scrolls by itself
    outside = """[...document.querySelectorAll('body *')].filter(x => !x.closest('.scroll') &&
        x.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
    assert chromium.evaluate(outside) == 0
    assert chromium.messages == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []
    ink, paper = chromium.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(x => x.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
    )
    assert (ink > paper) == dark


def test_every_control_has_a_name_and_ids_are_unique(chromium, page):
    chromium.open(page.as_uri(), 1280)
    nameless = """[...document.querySelectorAll('audio, svg[role=img], .scroll')]
        .filter(x => !x.getAttribute('aria-label')).length + [...document.querySelectorAll('img:not([alt])')].length"""
    assert chromium.evaluate(nameless) == 0
    assert chromium.evaluate("document.querySelectorAll('svg[role=img]').length") == 6
    ids = "[...document.querySelectorAll('[id]')].map(x => x.id)"
    assert chromium.evaluate(f"{ids}.length == new Set({ids}).size")
    assert chromium.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].every(x => document.querySelector(x.hash))"
    )


def test_an_id_of_a_table_leads_to_its_card_or_to_its_why(chromium, page):
    chromium.open(page.as_uri(), 1280)
    codes = "[...document.querySelectorAll('tbody code')]"
    assert chromium.evaluate(f"{codes}.length") > 15
    assert chromium.evaluate(f"{codes}.every(x => x.closest('a'))")
    to_cards = "[...document.querySelectorAll('tbody a[href^=\"#card\"]')]"
    assert chromium.evaluate(f"{to_cards}.length") > 0
    card_id = "document.querySelector(x.hash).querySelector('code').textContent"
    assert chromium.evaluate(f"{to_cards}.every(x => {card_id} === x.textContent)")
    failed = "document.querySelector('[aria-label=\"Table: clips without embedding\"] tbody a')"
    assert chromium.evaluate(f"{failed}.textContent") == "x"
    chromium.evaluate(f"{failed}.click()")
    assert chromium.evaluate("document.activeElement.id") == "why"
    asked = chromium.evaluate("document.querySelector('#why code').textContent")
    assert shlex.split(asked) == ["python", "-m", "balance.why", str(page.parent), "x"]
    assert chromium.messages == []


def test_tables_sort_and_search_and_keys_step_through_the_cards(chromium, page):
    chromium.open(page.as_uri(), 1280)
    chromium.evaluate("document.querySelectorAll('details').forEach(x => x.open = true)")
    table = "document.querySelector('[aria-label=\"Table: all labels\"] table')"
    column = f"[...{table}.tBodies[0].rows].map(row => row.cells[5].textContent)"
    before = [int(x.replace(",", "")) for x in chromium.evaluate(column)]
    for order in ("descending", "ascending"):
        chromium.evaluate(f"{table}.querySelectorAll('thead button')[5].click()")
        assert chromium.evaluate(f"{table}.querySelectorAll('thead th')[5].getAttribute('aria-sort')") == order
        after = [int(x.replace(",", "")) for x in chromium.evaluate(column)]
        assert after == sorted(before, reverse=order == "descending")
    chromium.evaluate(f"""{{ const box = {table}.closest('.scroll').previousElementSibling;
        box.value = '/M/07'; box.dispatchEvent(new Event('input')); }}""")
    shown = f"[...{table}.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[1].textContent)"
    assert chromium.evaluate(shown) == ["/m/07"]
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    for key, card in (("n", "card-0"), ("j", "card-1"), ("p", "card-0")):
        chromium.evaluate(press % key)
        assert chromium.evaluate("document.activeElement.id") == card
    chromium.evaluate("document.querySelector('input[type=search]').focus()")
    chromium.evaluate(press % "n")
    assert chromium.evaluate("document.activeElement.tagName") == "INPUT"
    assert chromium.messages == []

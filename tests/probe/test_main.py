"""The command: its files twice alike, other embeddings, curated runs, refusals, and the page."""

import csv
import html.parser
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from balance.config import ProbeSettings
from balance.curation.config import AugmentConfig, Leaks
from balance.data.config import DatasetConfig, Format
from balance.encoders.config import EncoderConfig
from balance.errors import UserError
from balance.probe import training_sets
from balance.probe.config import Guard, ProbeConfig
from balance.probe.findings import ArmFindings, Comparison, Findings, Interval
from balance.probe.intervals import Verdict
from balance.probe.job import guard_of
from balance.probe.job import run as probe_run
from balance.probe.page import render
from tests import browser, worlds
from tests.command import command, run
from tests.paths import REPOSITORY
from tests.worlds import World

SMALL = {
    "k": [2, 4],
    "draws": 2,
    "network_steps": 20,
    "rivals": [],
    "leaks": Guard.id,
    "penalties": [1.0, 0.1, 0.01],
    "folds": 3,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small products: threads that wait for each other on a busy machine cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("world"), seeds=16, pool=60, evaluation=24)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was made, and a probe by the command."""
    folder = tmp_path_factory.mktemp("work")
    run(folder, world)
    typed = [f"probe.{key}={getattr(value, 'value', value)}".replace(" ", "") for key, value in SMALL.items()]
    done = command(folder, *world.overrides(), *typed, module="balance.probe")
    assert done.returncode == 0, done.stderr
    assert "same space: optimistic or pessimistic, not evidence" in done.stderr
    return folder


def settings(folder: Path, world: World, **changes: object) -> ProbeSettings:
    dataset = DatasetConfig(root=str(world.root), eval=changes.pop("eval", "eval_segments"))  # type: ignore[arg-type]
    return ProbeSettings(
        dataset=dataset,
        encoder=EncoderConfig(checkpoint=str(world.checkpoint)),
        num_workers=2,
        cache_dir=str(folder / "outputs" / "cache"),
        probe=ProbeConfig(**{**SMALL, **changes}),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def found(world: World, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """What that probe found, from the same cache."""
    return probe_run(settings(folder, world), tmp_path_factory.mktemp("out"))


def probe(cache: Path, world: World, out: Path, **changes: object) -> Path:
    """A probe in this process that succeeds; its folder."""
    out.mkdir(exist_ok=True)
    probe_run(settings(cache, world, **changes), out)
    return out


def latest(folder: Path) -> Path:
    return max((folder / "outputs" / "probes").glob("*/*/probe.json")).parent


def results(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("probe.") and p.suffix != ".log"}


def test_the_files_and_their_bytes_from_another_cache(world: World, folder: Path, tmp_path: Path) -> None:
    first = latest(folder)
    assert sorted(results(first)) == ["probe.csv", "probe.html", "probe.json"]
    assert results(probe(tmp_path, world, tmp_path / "out")) == results(
        first
    )  # nothing cached there: embedded, searched, fitted anew
    found = json.loads((first / "probe.json").read_text())
    with open(first / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["readings"]) * len(found["arms"])
    by_arm = {r["arm"]: r for r in rows if r["reading"] == "logistic"}
    assert list(by_arm) == [
        "seeds", "neighbours k=2", "random k=2", "neighbours k=4", "random k=4", "pool", "pool, weighted"
    ]  # fmt: skip
    for arm in found["arms"]:
        row = by_arm[arm["arm"]]
        assert float(row["map"]) == arm["readings"]["logistic"]["map"]["value"]
        assert int(row["num_clips"]) == 16 + arm["num_pool_clips"]
    assert by_arm["neighbours k=2"]["num_clips"] == by_arm["random k=2"]["num_clips"]
    assert by_arm["neighbours k=2"]["verdict"] == "too few to judge"


def test_other_embeddings_make_the_headline(world: World, folder: Path, tmp_path: Path) -> None:
    (store,) = (folder / "outputs" / "cache" / "embeddings").iterdir()
    own = json.loads((latest(folder) / "probe.json").read_text())
    same_vectors = json.loads((probe(folder, world, tmp_path, embeddings=str(store)) / "probe.json").read_text())
    assert not same_vectors["same_space"]
    assert own["same_space"]
    for both, alone in zip(same_vectors["arms"], own["arms"], strict=True):
        readings = both.pop("readings")  # the same vectors are read in both spaces
        expected = alone.pop("readings")
        assert readings == {**expected, **{f"{name}, selecting space": found for name, found in expected.items()}}
        assert both == alone


def test_a_folder_of_vectors_and_clips_that_it_lacks(world: World, folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, name in worlds.SPLITS.items():
        ids = [str(r["id"]) for r in world.records(split)][::-1]
        ids = ids[1:] if split == "pool" else ids
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((len(ids), 7)).astype(np.float32))
        (tmp_path / f"{name}.ids.txt").write_text("".join(f"{x}\n" for x in ids))
    found = json.loads((probe(folder, world, tmp_path / "out", embeddings=str(tmp_path)) / "probe.json").read_text())
    assert found["counts"]["without_vector"] == {"seeds": 0, "pool": 1, "eval": 0}
    assert found["counts"]["pool"] == 59
    assert any("1 clips of the pool have no vector in probe.embeddings" in w for w in found["warnings"])


def test_a_finished_run_is_one_more_arm(world: World, folder: Path, tmp_path: Path) -> None:
    (done,) = (folder / "outputs" / "runs").glob("*/*")
    found = json.loads((probe(folder, world, tmp_path, runs=[str(done)]) / "probe.json").read_text())
    arms = {a["arm"]: a for a in found["arms"]}
    own, draws = arms[f"{done.name} k=5"], arms[f"random as {done.name} k=5"]
    ids = (done / "ids_k5.csv").read_text().splitlines()
    assert own["num_clips"] == draws["num_clips"] == len(ids)
    assert any(c["arm"] == f"{done.name} k=5" and c["against_rule"] == "random" for c in found["comparisons"])


def test_the_guard_hears_where_there_is_sound_and_is_never_less_than_the_runs(world: World, folder: Path) -> None:
    given = settings(folder, world, leaks=Guard.auto)
    assert guard_of(given) is Leaks.acoustic
    vectors = replace(given, dataset=replace(given.dataset, format=Format.embeddings))
    assert guard_of(vectors) is Leaks.id
    strict = replace(given, probe=replace(given.probe, leaks=Guard.id), augment=AugmentConfig(leaks=Leaks.exact))
    assert guard_of(strict) is Leaks.exact


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": [2, 100]}, r"of probe.k=\[2, 100\]: k=100 is more than the 60 pool clips"),
        ({"runs": ["/nowhere"]}, "probe.runs=/nowhere: no such folder"),
        ({"embeddings": "/nowhere"}, "probe.embeddings=/nowhere: no such folder"),
        ({"eval": None}, "balance.probe judges on dataset.eval"),
        ({"folds": 17}, "there are only 16 seeds"),
    ],
)
def test_refusals(world: World, folder: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        probe_run(settings(folder, world, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_a_mistake_in_one_line(world: World, folder: Path) -> None:
    done = command(folder, *world.overrides(), "probe.draws=1", module="balance.probe")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: probe.draws=1: at least 2"


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(str(values["id"]))
        self.sources += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "path", "use", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(str(values["id"]))
        self.sources += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def judged(found: Findings) -> Findings:
    """The same where there were clips enough, so that every figure of the page has something to show."""
    comparisons = tuple(
        replace(row, low=(row.value or 0) - 0.02, high=(row.value or 0) + 0.02, verdict=Verdict.not_resolved)
        for row in found.comparisons
    )
    labels = tuple(replace(x, gain=0.1, low=0.05, high=0.2, p=0.01, resolved=True) for x in found.labels)
    return replace(found, comparisons=comparisons, labels=labels)


def test_the_page_is_well_formed_and_self_contained(found: Findings) -> None:
    found = judged(found)
    text = render("demo", found)
    assert text == render("demo", found)
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(x.startswith(("#", "data:")) for x in page.sources)
    for reference in re.findall(r"url\(#([^)]+)\)", text) + [x[1:] for x in page.sources if x.startswith("#")]:
        assert reference in page.ids
    assert text.count('role="img"') == len(found.readings) + 2
    assert not re.search(r"#0[1-9a]0[1-9a]0[1-9a]\b", text), "a sentinel colour is left"
    for sentence in found.sentences:
        assert html.escape(sentence[1:], quote=False).replace('"', "&#34;").replace("'", "&#39;") in text


def test_names_of_users_are_shown_as_they_are(found: Findings) -> None:
    found = judged(found)
    names = ["$$", "<b>", "鳥の声", "$\\frac{", "a\nb"]
    arms = tuple(
        replace(arm, arm=f"$$<i>{arm.arm}", rule=training_sets.RUN) if arm.rule == training_sets.NEIGHBOURS else arm
        for arm in found.arms
    )
    labels = tuple(replace(x, name=name) for x, name in zip(found.labels * 2, names, strict=False))
    comparisons = tuple(replace(row, arm=f"$$<i>{row.arm}") for row in found.comparisons)
    conclusions = tuple(replace(one, arm=f"$$<i>{one.arm}") for one in found.conclusions)
    text = render("<b>$$", replace(found, arms=arms, labels=labels, comparisons=comparisons, conclusions=conclusions))
    assert "<b>" not in text
    assert "<i>" not in text
    for name in ("$$ (", "鳥の声 (", "$\\frac{ (", "a b (", "&lt;b&gt; (", "$$&lt;i&gt;neighbours k=2"):
        assert f">{name}" in text


def test_numbers_that_do_not_exist_are_left_out_of_the_page(found: Findings) -> None:
    nothing = Interval(None, None, None, None)
    figures = ("map", "map_prior", "d_prime")

    def arm(one: ArmFindings) -> ArmFindings:
        return replace(one, heldout_map=None, readings={r: dict.fromkeys(figures, nothing) for r in one.readings})

    def comparison(one: Comparison) -> Comparison:
        return replace(one, value=None, low=None, high=None, error=None)

    text = render(
        "empty",
        replace(
            found,
            arms=tuple(map(arm, found.arms)),
            comparisons=tuple(map(comparison, found.comparisons)),
            labels=(),
            headline=None,
            recommended_k=None,
        ),
    )
    assert "None" not in text.split("</style>")[1]
    assert "nan" not in re.sub(r"<[^>]+>", "", text.split("</style>")[1]).lower().split()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_in_chromium(chromium: browser.Browser, folder: Path, width: int, dark: bool) -> None:
    chromium.open((latest(folder) / "probe.html").as_uri(), width, dark=dark)
    chromium.evaluate("document.querySelectorAll('details').forEach(x => x.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    outside = """[...document.querySelectorAll('body *')].filter(x => !x.closest('.scroll') &&
        x.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
    assert chromium.evaluate(outside) == 0
    assert chromium.messages == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []
    named = "[...document.querySelectorAll('svg[role=img], .scroll')].every(x => x.getAttribute('aria-label'))"
    assert chromium.evaluate(named)
    # the figures follow the page's colours: axis text is light on dark, dark on light
    ink = "getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    assert (chromium.evaluate(ink) > 384) == dark


def test_a_second_encoder_is_a_key(world: World, folder: Path, tmp_path: Path) -> None:
    """`probe.encoder` embeds what is missing and judges there; the same as naming its store by hand."""
    typed = [f"probe.{key}={value}".replace(" ", "") for key, value in SMALL.items()]
    second = ["probe.encoder=plugin", "probe.encoder.target=tests.encoders.plugins:Spectrum"]
    given = [*world.overrides(), *typed, f"cache_dir={folder / 'outputs' / 'cache'}"]
    done = command(tmp_path, *given, *second, module="balance.probe", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert "same space" not in done.stderr
    first = results(latest(tmp_path))
    (store,) = {p.parent for p in (folder / "outputs" / "cache" / "embeddings").glob("*/meta.json")
                if "plugin" in p.read_text()}  # fmt: skip
    assert results(probe(folder, world, tmp_path / "by-hand", embeddings=str(store))) == first
    there = json.loads((latest(tmp_path) / "probe.json").read_text())
    alone = json.loads((probe(folder, world, tmp_path / "alone") / "probe.json").read_text())
    names = alone["readings"]
    assert there["readings"] == [*names, *(f"{name}, selecting space" for name in names)]
    by_title = {arm["arm"]: arm["readings"] for arm in there["arms"]}
    for arm in alone["arms"]:
        if arm["arm"] in by_title:
            assert {name: by_title[arm["arm"]][f"{name}, selecting space"] for name in names} == arm["readings"]
    assert len(by_title) > 5
    for wrong, words in (
        (["probe.encoder=plugin"], "encoder=plugin needs encoder.target"),
        ([*second, f"probe.embeddings={store}"], "type one of them"),
    ):
        done = command(tmp_path, *given, *wrong, module="balance.probe")
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr

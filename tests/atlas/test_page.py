"""The map in a real browser, from the disk: hostile names, click, search, filters, lasso, narrow and wide."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balance.atlas import job
from balance.atlas.config import AtlasConfig, Projection
from balance.config import AtlasSettings
from tests import browser
from tests.command import command, run_dir

HOSTILE = "</script><script>window.bad=1</script>\"'<b>&x"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map of own vectors whose ids and labels are markup."""
    root = tmp_path_factory.mktemp("map")
    rng = np.random.default_rng(0)
    for name, prefix, size in (("balanced", "s", 8), ("unbalanced", "p", 60)):
        ids = [f"{prefix}{i}{HOSTILE}" for i in range(size)]
        np.save(root / f"{name}_train_segments.npy", rng.standard_normal((size, 12)).astype(np.float32))
        (root / f"{name}_train_segments.ids.txt").write_text("".join(f"{x}\n" for x in ids))
        records = [{"id": x, "dir": "d", "aclip": ["wav"], "frame": [], "labels": [f"{HOSTILE}\u2028{i % 3}"]}
                   for i, x in enumerate(ids)]  # fmt: skip
        (root / f"{name}_train_segments.csv").write_text("".join(json.dumps(x) + "\n" for x in records))
    given = ["dataset.root=.", "dataset.format=embeddings", "dataset.eval=null", "k=4", "augment.budget=30"]
    done = command(root, *given)
    assert done.returncode == 0, done.stderr
    settings = AtlasSettings(atlas=AtlasConfig(projection=Projection.pca), num_workers=1)
    return job.run(settings, str(run_dir(root)))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def opened(chromium: browser.Browser, page: Path, width: int, *, dark: bool = False) -> Any:
    chromium.open(page.as_uri(), width, dark=dark)
    for _ in range(200):
        if chromium.evaluate("!!window.atlas && document.getElementById('over').width > 1"):
            return chromium.evaluate("atlas.data")
        time.sleep(0.05)
    raise AssertionError(f"the map did not open: {chromium.messages}")


def mouse(chromium: browser.Browser, kind: str, x: float, y: float, *, shift: bool = False) -> None:
    chromium.call(
        "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1,
        modifiers=8 if shift else 0,
    )  # fmt: skip


def place(chromium: browser.Browser, clip: int) -> tuple[float, float]:
    x, y = chromium.evaluate(
        f"(() => {{ const b = document.getElementById('over').getBoundingClientRect(), p = atlas.place({clip});"
        " return [b.left + p[0], b.top + p[1]]; })()"
    )
    return x, y


def text(chromium: browser.Browser, selector: str) -> str:
    return str(chromium.evaluate(f"document.querySelector({selector!r}).textContent"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_from_the_disk(chromium: browser.Browser, page: Path, width: int, dark: bool) -> None:
    opened(chromium, page, width, dark=dark)
    assert chromium.messages == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert chromium.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert chromium.evaluate("window.bad === undefined")
    colours = chromium.evaluate(
        "(() => { const c = document.getElementById('points');"
        " const drawn = c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer;"
        " return new Set(new Uint32Array(drawn)).size; })()"
    )
    assert colours >= 4, "paper, and three roles"


def test_a_click_shows_the_clip_and_its_exact_neighbours(chromium: browser.Browser, page: Path) -> None:
    data = opened(chromium, page, 1280)
    x, y = place(chromium, 2)
    mouse(chromium, "mouseMoved", x, y)
    mouse(chromium, "mousePressed", x, y)
    mouse(chromium, "mouseReleased", x, y)
    clip = data["id"].index(text(chromium, "#clip .name"))
    assert HOSTILE in text(chromium, "#clip .name")
    assert data["why"][clip] in text(chromium, "#clip")
    chromium.evaluate("atlas.pick(0, false)")
    listed = chromium.evaluate("[...document.querySelectorAll('#list button')].map(x => x.firstChild.textContent)")
    assert listed == [data["id"][at] for at in data["neighbours"][: data["lines_per_seed"]]]
    assert chromium.evaluate("window.bad === undefined")


def test_search_filters_and_the_lasso(chromium: browser.Browser, page: Path) -> None:
    data = opened(chromium, page, 1280)
    chromium.evaluate(
        "(() => { const s = document.getElementById('search'); s.value = 'P1' + String.raw`</SCRIPT>`;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert chromium.evaluate("document.querySelectorAll('#list button').length") == 1
    chromium.evaluate("document.querySelector('input[name=role]').click()")  # seeds
    hidden = chromium.evaluate("atlas.data.id.map((_, i) => i).filter(i => !atlas.isShown(i))")
    assert hidden == [i for i, role in enumerate(data["role"]) if role == 0]
    left, top, right, bottom = chromium.evaluate(
        "(() => { const b = document.getElementById('over').getBoundingClientRect();"
        " return [b.left + 3, b.top + 3, b.right - 3, b.bottom - 3]; })()"
    )
    mouse(chromium, "mousePressed", left, top, shift=True)
    for x, y in ((right, top), (right, bottom), (left, bottom)):
        mouse(chromium, "mouseMoved", x, y, shift=True)
    mouse(chromium, "mouseReleased", left, bottom, shift=True)
    expected = [clip for clip, role in zip(data["id"], data["role"], strict=True) if role != 0]
    assert chromium.evaluate("atlas.chosenIds()") == "".join(f"{clip}\n" for clip in expected)
    assert text(chromium, "#selected").startswith(f"{len(expected)} selected")

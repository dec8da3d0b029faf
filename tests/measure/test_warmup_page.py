"""The page of warm-up: bars as wide as the figures, nothing from outside, readable in a browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from support import fake_engine as fake
from support.browser import BROWSER
from support.warming import warmup
from tilecompile.cli.files import write_whole
from tilecompile.errors import InputError
from tilecompile.measure.warmup.page import page, seconds


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine"))


class Page(HTMLParser):
    """What the page's elements are: bars by row, outside references, the embedded report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[tuple[str, float]]]] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.outside += [f"{tag} {key}" for key in given if key in ("src", "href", "srcset", "action", "data")]
        if "data-system" in given:
            self.rows.append((str(given["data-system"]), []))
        if tag == "i" and given.get("style"):
            width = re.fullmatch(r"width:([0-9.]+)%", str(given["style"]))
            assert width
            self.rows[-1][1].append((str(given["class"]), float(width[1])))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def report_of(*systems: dict[str, Any]) -> dict[str, Any]:
    """A report as the command makes it."""
    first = {"name": "tilecompile", "about": "the engine", "token": 1}
    first |= {"warm": {**state(0.1, None, 0.02, 0.03), "ratio": 1.0}}
    first |= {"cold": {**state(0.3, None, 0.1, 0.05), "ratio": 1.0, "evicted": 0.9, "bytes": 5}}
    head = {
        "model": "m<script>",
        "machine": "A & B",
        "cores": 2,
        "threads": 2,
        "weights": "bf16",
        "date": "2026-01-01T10:20:30+01:00",
    }
    head |= {
        "command": "tilecompile warmup 'x' \"y\"",
        "compile_seconds": 7.0,
        "prompt_ids": [1, 2],
        "tilecompile": "1",
    }
    return {**head, "systems": [first, *systems]}


def state(load: float, compiled: float | None, first: float, imported: float) -> dict[str, Any]:
    """Figures of a state."""
    phases = {"import": imported, "load": load, "compile": compiled, "first_step": first}
    total = sum(value or 0 for value in phases.values())
    return {"seconds": total, "spread": [total, total], "runs": 1, "phases": phases}


SLOW = {
    "name": "slow",
    "about": "a peer",
    "token": 1,
    "warm": {**state(1.0, 25.0, 0.5, 3.5), "ratio": 200.0},
    "cold": {"unavailable": "100% of it stayed"},
}
ABSENT = {"name": "absent", "about": "a peer", "unavailable": "not installed: absent"}


def test_the_pages_bars_are_the_figures() -> None:
    report = report_of(SLOW, ABSENT)
    text = page(report)
    found = Page(text)
    assert found.open == []
    assert found.outside == []
    for outside in ("http:", "https:", "//", "url(", "@import"):
        assert outside not in text.split("<script")[0].replace("</", "")
    assert json.loads(found.scripts[0]) == report
    assert "prefers-color-scheme: dark" in text
    assert "m&lt;script&gt;" in text
    longest, own = 30.0, 0.45
    bars: list[tuple[str, list[tuple[str, float]]]] = []
    for system in report["systems"]:
        for name in ("warm", "cold"):
            if "phases" in system.get(name, {}):
                bars.append((f"{system['name']}-{name}", widths(system[name], longest)))
        if system is report["systems"][0]:
            bars.append(("offline", [("offline", 100 * 7.0 / longest)]))
    bars += [(f"tilecompile-{name}", widths(report["systems"][0][name], own)) for name in ("warm", "cold")]
    assert [name for name, _ in found.rows] == [name for name, _ in bars]
    for (_, have), (_, want) in zip(found.rows, bars, strict=True):
        assert [phase for phase, _ in have] == [phase for phase, _ in want]
        assert [width for _, width in have] == pytest.approx([width for _, width in want], abs=1e-3)
    for words in (
        "not installed: absent",
        "100% of it stayed",
        "7.00 s",
        "200× as long",
        "2026-01-01 10:20 UTC+01:00",
        "A &amp; B",
        "tilecompile warmup",
    ):
        assert words in text


def widths(figures: dict[str, Any], longest: float) -> list[tuple[str, float]]:
    """Bars of a state, in percent."""
    return [(phase, 100 * value / longest) for phase, value in figures["phases"].items() if value is not None]


def test_seconds_have_three_digits() -> None:
    assert [seconds(value) for value in (None, 0.01234, 0.5, 3.456, 4.4, 47.12, 412.3)] == [
        "–",
        "0.012 s",
        "0.500 s",
        "3.46 s",
        "4.40 s",
        "47.1 s",
        "412 s",
    ]


def test_a_page_replaces_the_old_one(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    report = warmup(engine, "--html", str(path))
    assert json.loads(Page(path.read_text()).scripts[0]) == report
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_page_that_cant_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="can't be written: No space left on device"):
        write_whole("--html", path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


PROBE = """<script>
const light = color => color.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(getComputedStyle(document.body).backgroundColor);
parent.document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, inner: innerWidth, paper: paper,
  contrast: Math.min(...[...document.querySelectorAll('h1,h2,h3,p,b,span,li,td,th,figcaption,code')].map(e => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })),
  rows: [...document.querySelectorAll('[data-system]')].map(row => {
    const bar = row.querySelector('.bar').getBoundingClientRect().width;
    return [...row.querySelectorAll('.bar i')].map(i => i.getBoundingClientRect().width / bar); }) });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_and_is_legible_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing is wider than the window, bars are as wide as they should be, and text stands out from the page."""
    report = report_of(SLOW, ABSENT)
    inner = html.escape(page(report).replace("</body>", PROBE))
    frame = (
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>'  # windows aren't as narrow
    )
    (tmp_path / "page.html").write_text(f"<!doctype html><title></title><body>{frame}</body>")
    with tempfile.TemporaryDirectory() as profile:
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1400,1000"]
        command += [f"--user-data-dir={profile}", (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title
    found = json.loads(title[1])
    assert found["wide"] <= found["inner"] == width
    assert found["paper"] < 0.1 if dark else found["paper"] > 0.9
    assert found["contrast"] >= 4.5
    wanted = [[width / 100 for _, width in row] for _, row in Page(page(report)).rows]
    assert [len(row) for row in found["rows"]] == [len(row) for row in wanted]
    for have, want in zip(found["rows"], wanted, strict=True):
        assert have == pytest.approx(want, abs=0.005)

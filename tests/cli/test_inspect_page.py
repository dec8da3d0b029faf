"""The page of an engine: every operator and figure of the tables, nothing from outside, readable in a browser."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.browser import BROWSER
from support.chaos import rehashed
from support.engines import tiny_model
from tilecompile.cli.app import app
from tilecompile.compile import compile_model
from tilecompile.engine.placement_json import read_table
from tilecompile.inspection.layout import GAP, layout
from tilecompile.inspection.picture import short
from tilecompile.inspection.structure import Structure, ranges, shown_name, structure
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.folder.operators import read_operators
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.show.units import size

DEVICES = 4
VOID = ("meta", "br", "img", "link")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers and an MTP layer on four devices, of which one selects and three attend; sums in two steps."""
    folder = tmp_path_factory.mktemp("page")
    options = CompileOptions(
        str(tiny_model(folder / "model")),
        folder / "engine",
        devices=DEVICES,
        workers=2,
        placement="roles",
        reduction="two_step",
        seed=1,
        max_seq_len=64,
    )
    compile_model(options)
    return folder / "engine"


@pytest.fixture(scope="module")
def tables(engine: Path) -> tuple[Manifest, Tables]:
    manifest = read_manifest(engine)
    return manifest, load_tables(manifest)


class Page(HTMLParser):
    """The page's text, boxes and titles; outside references; elements that stay open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.boxes: list[str] = []
        self.titles: list[str] = []
        self.texts: list[str] = []
        self.widths: list[float] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.outside += [key for key in given if key in ("src", "href", "xlink:href", "srcset", "action", "data")]
        if "data-operator" in given:
            self.boxes.append(str(given["data-operator"]))
        width = re.fullmatch(r"width:([0-9.]+)%", given.get("style") or "")
        if width:
            self.widths.append(float(width[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.titles if self.open[-1:] == ["title"] else self.texts).append(data)


def page_of(engine: Path, folder: Path, *options: str) -> tuple[str, Page]:
    path = folder / "page.html"
    path.write_text("old")
    result = CliRunner().invoke(app, ["inspect", str(engine), "--html", str(path), *options])
    assert result.exit_code == 0, result.output
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith((".", "page"))] == ["page.html"]
    return path.read_text(), Page(path.read_text())


def slow_edges(manifest: Manifest, tables: Tables, program: int) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Edges by names of producer and consumer, counted one by one."""
    names = [shown_name(operator) for operator in read_operators(manifest)]
    mine = [s for s in tables["streams"] if s["program"] == program]
    tasks = [(i, int(s["device"])) for s in mine for i in range(s["begin"], s["end"])]
    producer, remote = {}, defaultdict(bool)
    for i, device in tasks:
        row = tables["instructions"][i]
        for n in tables["notifies"][row["notify_begin"] : row["notify_begin"] + row["notify_count"]]:
            event = int(n["event"])
            producer[event] = names[row["op"]]
            remote[event] |= device != tables["events"]["device"][event]
    waits = defaultdict(list)
    for i, _ in tasks:
        row = tables["instructions"][i]
        for w in tables["waits"][row["wait_begin"] : row["wait_begin"] + row["wait_count"]]:
            waits[producer[int(w["event"])], names[row["op"]]].append((int(w["event"]), int(w["count"])))
    found = {}
    for pair, events in waits.items():
        elements = {event for event, _ in events}
        counts = [count for _, count in events]
        tensors = len({int(tables["events"]["tensor"][e]) for e in elements})
        far = sum(remote[e] for e in elements)
        found[pair] = (tensors, len(elements), min(counts), max(counts), len(events), far)
    return found


def slow_reads(found: Structure, tables: Tables, members: set[int]) -> set[tuple[int, int]]:
    """Which operator reads which tensor of which other, region by region."""
    boxes = []
    for row, group in zip(found.tasks, found.of_task.tolist(), strict=True):
        for r in tables["regions"][row["region_begin"] : row["region_begin"] + row["region_count"]]:
            boxes.append(
                (group, *(int(r[f]) for f in ("mode", "buffer", "row_begin", "row_end", "col_begin", "col_end")))
            )
    boxes = list(set(boxes))
    return {
        (w[0], r[0])
        for r in boxes
        if r[0] in members and r[1] == 0
        for w in boxes
        if w[1] == 1 and w[2] == r[2] and r[0] != w[0]
        if r[3] < w[4] and w[3] < r[4] and r[5] < w[6] and w[5] < r[6]
    }


@pytest.mark.parametrize("program", [0, 1])
def test_edges_are_those_of_the_tables(tables: tuple[Manifest, Tables], program: int) -> None:
    found = structure(*tables, program)
    names = [o.name for o in found.operators]
    edges = {(names[e.producer], names[e.consumer]): e for e in found.edges}
    want = slow_edges(*tables, program)
    assert {p: (e.tensors, e.elements, e.least, e.most, e.waits, e.remote) for p, e in edges.items()} == want
    assert any(e.remote for e in found.edges)
    assert sum(e.waits for e in found.edges) == tables[0].data["programs"][program]["edges"]
    for members in found.layers().values():
        assert found.read_from(members) == slow_reads(found, tables[1], set(members))


def test_operators_of_all_devices_are_folded_into_one(tables: tuple[Manifest, Tables]) -> None:
    found = structure(*tables, 0)
    assert len({o.name for o in found.operators}) == len(found.operators)
    assert {shown_name(o) for o in read_operators(tables[0])} >= {o.name for o in found.operators}
    assert sum(sum(o.tasks.values()) for o in found.operators) == tables[0].program()["tasks"]
    streamed = Counter[int]()
    for s in tables[1]["streams"]:
        if s["program"] == 0:
            for row in tables[1]["instructions"][s["begin"] : s["end"]]:
                runs = tables[1]["tape"][row["tape_begin"] : row["tape_begin"] + row["tape_count"]]
                streamed[int(s["device"])] += int(runs["bytes"].sum())
    assert Counter({d: sum(o.weight_bytes.get(d, 0) for o in found.operators) for d in range(DEVICES)}) == streamed
    selection = next(o for o in found.operators if o.name.endswith("layers.0.self_attn.indexer.topk_select.push"))
    assert selection.pushed_bytes == {0: 3 * 8 * 4}  # 8 positions of 4 bytes to each of three


def test_the_page_shows_every_operator_and_figure_and_loads_nothing(
    engine: Path, tables: tuple[Manifest, Tables], tmp_path: Path
) -> None:
    page, parsed = page_of(engine, tmp_path)
    assert parsed.open == []
    assert parsed.outside == []
    for outside in ("http:", "https:", "@import", "//"):
        assert outside not in page.replace("</", "")
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#tip"}
    assert "prefers-color-scheme: dark" in page
    found = structure(*tables, 0)
    assert parsed.boxes == [found.operators[i].name for i in found.layers()[1]]
    shown = " ".join(parsed.texts)
    cells = set(parsed.texts)
    for operator in found.operators:
        assert short(operator.local) in cells
        assert operator.op in cells
    for program in tables[0].data["programs"]:
        for key in ("tasks", "events", "edges"):
            assert str(program[key]) in cells
    for device in range(DEVICES):
        pool, arena = tables[0].pools[device], tables[0].arenas[device]
        total = pool["bytes"] + sum(arena[k] for k in ("activation", "cache", "io"))
        streamed = sum(o.weight_bytes.get(device, 0) for o in found.operators)
        for count in (pool["bytes"], arena["activation"], total, streamed):
            assert size(count) in cells
    stated = read_table(tables[0], "decode")
    for count in (*stated["read"], sum(stated["read"])):
        assert size(count) in cells
    price = f"{stated['exchanges']} exchanges, {stated['chain']} of them one after the other, which push "
    assert price + size(stated["pushed"]) in shown
    assert "two_step" in cells
    assert "rows: 5" in cells  # 20 intermediate rows over 4 devices
    assert "heads: 1" in cells
    assert "Layer 0" in shown
    titles = "\n".join(parsed.titles)
    for edge in found.edges:
        a, b = (found.operators[i] for i in (edge.producer, edge.consumer))
        if b.layer == 1:
            assert f"{a.name} → {b.name}: {edge.tensors} event tensors with {edge.elements} elements" in titles


def test_the_page_shows_the_chosen_program_and_layer(engine: Path, tmp_path: Path) -> None:
    page, parsed = page_of(engine, tmp_path, "--layer", "0")
    assert "Events of layer 0, program decode" in page
    assert all(".layers.0." in name or name.startswith("add") for name in parsed.boxes)
    page, parsed = page_of(engine, tmp_path, "--program", "draft")
    assert "Events of layer 2, program draft" in page
    assert "model.layers.2.eh_proj_hidden" in parsed.boxes


def timeline(tables: tuple[Manifest, Tables], **changes: Any) -> dict[str, Any]:
    """What `timeline --json` prints, as far as the page reads it."""
    ops = [{"op": "linear", "path_tasks": 3, "path_us": 120.0}, {"op": "rope", "path_tasks": 0, "path_us": 0.0}]
    return {
        "source": "measured",
        "machine": {"cpu": "A <CPU>"},
        "context": 32,
        "threads": 2,
        "devices": DEVICES,
        "tasks": tables[0].program()["tasks"],
        "step_us": 240.0,
        "shares": {"work": 0.75, "event": 0.125, "thread": 0.125, "loop": 0.0, "end": 0.0},
        "ops": ops,
        "path": {"tasks": 3},
        **changes,
    }


def test_the_page_shows_measured_and_simulated_times_side_by_side(
    engine: Path, tables: tuple[Manifest, Tables], tmp_path: Path
) -> None:
    (tmp_path / "measured.json").write_text(json.dumps(timeline(tables)))
    result = CliRunner().invoke(app, ["simulate", str(engine), "--machine", "h200x8", "--context", "32", "--json"])
    assert result.exit_code == 0, result.output
    simulated = json.loads(result.stdout)
    (tmp_path / "simulated.json").write_text(result.stdout)
    files = [f"--timeline={tmp_path / name}.json" for name in ("measured", "simulated")]
    page, parsed = page_of(engine, tmp_path, *files)
    cells = parsed.texts
    for words in ("0.24 ms", f"{simulated['step_ms']:.3g} ms", "A <CPU>", "h200x8", "75.0%", "12.5%", "0.12 ms"):
        assert words in cells
    for name, ms in simulated["causes"].items():
        assert name in cells
        assert f"{ms / simulated['step_ms']:.1%}" in cells
    assert {row["op"] for row in simulated["path"]} <= set(cells)
    assert page.index("measured</th>") < page.index("simulated</th>")
    result = CliRunner().invoke(app, ["timeline", str(engine), "--simulated", "h200x8", "--context", "32", "--json"])
    assert result.exit_code == 0, result.output
    (tmp_path / "simulated.json").write_text(result.stdout)
    page, parsed = page_of(engine, tmp_path, *files)
    trace = json.loads(result.stdout)
    for words in ("h200x8", f"{trace['step_us'] / 1e3:.3g} ms", f"{trace['shares']['event']:.1%}", "0.12 ms"):
        assert words in parsed.texts
    assert f"{trace['simulated']['roof_fraction']:.0%}" in parsed.texts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "want what tilecompile timeline --json or"),
        ({"source": "guessed"}, "source is 'guessed', want measured or simulated"),
        ({"tasks": 1}, "is of another engine: tasks is 1, this one's is"),
        ({"devices": 1}, "is of another engine: devices is 1, this one's is 4"),
        ({"step_us": "long"}, 'step_us is "long", want a number'),
        ({"step_us": 0}, "the step takes no time"),
        ({"shares": [1]}, "shares is"),
    ],
)
def test_wrong_timelines_are_refused_by_key(
    engine: Path, tables: tuple[Manifest, Tables], tmp_path: Path, content: Any, words: str
) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(timeline(tables, **content)))
    refused(engine, f"--timeline {re.escape(str(path))}: .*{re.escape(words)}", tmp_path, "--timeline", str(path))


def refused(engine: Path, words: str, folder: Path, *options: str) -> None:
    result = CliRunner().invoke(app, ["inspect", str(engine), "--html", str(folder / "page.html"), *options])
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(words, last), result.stderr
    assert last.startswith("error: ")
    assert not (folder / "page.html").exists()


def test_wrong_page_options_are_refused(engine: Path, tmp_path: Path) -> None:
    refused(engine, "--layer is 7, the program has the layers 0–1", tmp_path, "--layer", "7")
    refused(engine, "has no program 'sample'", tmp_path, "--program", "sample")
    refused(engine, "--html .*: the folder .* is not there", tmp_path / "none")
    for option in (["--layer", "1"], ["--program", "draft"], ["--timeline", "x"]):
        result = CliRunner().invoke(app, ["inspect", str(engine), *option])
        assert result.exit_code == 2
        assert f"{option[0]} is for the page: give --html FILE too" in result.stderr


def test_an_engine_without_its_placement_is_refused(tiny: Path, tmp_path: Path) -> None:
    """An engine of an earlier version is refused, not shown in part."""
    shutil.copytree(tiny, tmp_path / "engine")
    (tmp_path / "engine" / "placement.json").unlink()
    refused(rehashed(tmp_path / "engine"), r"placement.json: missing file; compile the model again", tmp_path)
    (tmp_path / "engine" / "placement.json").write_text('{"format": 4}')
    refused(rehashed(tmp_path / "engine"), r"placement.json: programs is missing", tmp_path)


def test_ranges_joins_consecutive_numbers() -> None:
    assert [ranges(n) for n in ([], [3], [0, 1, 2, 5], [4, 2, 3])] == ["none", "3", "0–2, 5", "2–4"]


@pytest.mark.parametrize("seed", range(8))
def test_layout_leads_lines_down_and_around_boxes(seed: int) -> None:
    """Lines lead down, boxes of a row keep apart, and bends hit no box."""
    draw = random.Random(seed)
    nodes = {n: draw.choice([60.0, 164.0]) for n in range(draw.randint(1, 24))}
    edges = [pair for pair in combinations(nodes, 2) if draw.random() < 0.12]
    found = layout(nodes, edges)
    for a, b in edges:
        assert found.row[a] < found.row[b]
        assert [row for _, row in found.paths[a, b]] == list(range(found.row[a], found.row[b] + 1))
        for x, row in found.paths[a, b][1:-1]:
            for n in nodes:
                assert found.row[n] != row or abs(found.x[n] - x) >= nodes[n] / 2 + 4.9
    for a, b in combinations(nodes, 2):
        if found.row[a] == found.row[b]:
            assert abs(found.x[a] - found.x[b]) >= (nodes[a] + nodes[b]) / 2 + GAP - 1e-6
    assert all(nodes[n] / 2 - 1e-6 <= found.x[n] <= found.width - nodes[n] / 2 + 1e-6 for n in nodes)


def test_layout_refuses_a_cycle() -> None:
    with pytest.raises(ValueError, match="cycle"):
        layout({0: 1.0, 1: 1.0}, [(0, 1), (1, 0)])


PROBE = """<script>
const light = color => color.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const paper = light(getComputedStyle(document.body).backgroundColor);
const ratio = ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
const boxes = [...document.querySelectorAll('.dag [data-operator]')];
parent.document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, inner: innerWidth, paper: paper, boxes: boxes.length,
  over: boxes.filter(g => [...g.querySelectorAll('text')].some(t =>
    t.getBoundingClientRect().right > g.querySelector('rect').getBoundingClientRect().right + 1))
    .map(g => g.dataset.operator),
  contrast: Math.min(...[...document.querySelectorAll('h1,h2,h3,p,b,span,li,td,th,figcaption,code,summary')]
    .map(e => ratio(light(getComputedStyle(e).color))),
    ...[...document.querySelectorAll('.dag text')].map(e => ratio(light(getComputedStyle(e).fill)))) });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_and_is_legible_in_a_browser(engine: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing is wider than the window, texts stay in their boxes and stand out from the page."""
    page, parsed = page_of(engine, tmp_path)
    inner = html.escape(page.replace("</body>", PROBE))
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title><body>{frame}</body>")
    with tempfile.TemporaryDirectory() as profile:
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1400,1000"]
        command += [f"--user-data-dir={profile}", (tmp_path / "frame.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title
    found = json.loads(html.unescape(title[1]))
    assert found["wide"] <= found["inner"] == width
    assert found["boxes"] == len(parsed.boxes)
    assert found["over"] == []
    assert found["paper"] < 0.1 if dark else found["paper"] > 0.9
    assert found["contrast"] >= 4.5

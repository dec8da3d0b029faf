"""The documents describe the repository as it is, and the tutorial's commands print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.documents import (
    DOCUMENTS,
    broken_links,
    code_spans,
    console_steps,
    forbidden_words,
    missing_paths,
    not_shown,
    wrong_commands,
)
from support.paths import ROOT

MAP_LINES = 150

Tutorial = tuple[Path, list[tuple[str, list[str], str]]]
"""The folder in which the tutorial's commands ran, and each command with the lines shown and its output."""


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    folder = tmp_path_factory.mktemp("tutorial")
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and not entry.name.endswith(".engine"):
            (folder / entry.name).symlink_to(entry)
    steps = console_steps((ROOT / "docs" / "tutorial.md").read_text())
    return folder, [(command, shown, run(command, folder)) for command, shown in steps]


def run(command: str, folder: Path) -> str:
    """What a shell command prints in a folder, errors included; it must succeed."""
    binaries = folder / ".bin"
    binaries.mkdir(exist_ok=True)
    script = binaries / "tilecompile"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tilecompile "$@"\n')
    script.chmod(0o755)
    path = f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def test_tutorial_commands_print_the_lines_shown(tutorial: Tutorial) -> None:
    steps = tutorial[1]
    assert len(steps) > 10
    for command, shown, output in steps:
        assert not not_shown(shown, output), f"$ {command}\n{output[:2000]}"


def test_tutorial_reaches_the_loop_in_four_hops(tutorial: Tutorial) -> None:
    """The files that the commands read, in order: the dump, the listing, the kernel, the op's body."""
    named = " ".join(command for command, _, _ in tutorial[1])
    ends = ["dump/05-events.txt", "tiny.engine/listing.txt", "tiny.engine/kernel.cpp", "tilecompile/ops/linear/cpu.h"]
    places = [named.index(end) for end in ends]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["README.md", "docs/serving.md"])
def test_python_examples_run(tutorial: Tutorial, name: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        (tutorial[0] / "example.py").write_text(example)
        run(f"{shlex.quote(sys.executable)} example.py", tutorial[0])


# --- All documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_names_what_exists(document: Path, tutorial: Tutorial) -> None:
    text = document.read_text()
    assert not missing_paths(document, text, tutorial[0])
    assert not broken_links(document, text)
    assert not wrong_commands(text)
    assert not forbidden_words(text)


def test_map_is_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= MAP_LINES


def test_values_of_the_passes_are_those_of_a_dump(tutorial: Tutorial) -> None:
    """Each row of the map's table of passes shows a line, or a part of one, that the tutorial's dump has."""
    section = (ROOT / "ARCHITECTURE.md").read_text().split("## The passes")[1].split("\n## ")[0]
    shown = [code_spans(line)[-1] for line in section.splitlines() if line.startswith("| `")]
    dump = "\n".join(path.read_text() for path in sorted((tutorial[0] / "dump").iterdir()))
    lines = [" ".join(line.split()) for line in dump.splitlines()]
    assert len(shown) == 9
    for value in shown:
        pattern = re.compile(".*".join(map(re.escape, value.split("…"))))
        assert any(pattern.search(line) for line in lines), value


@pytest.mark.parametrize("folder", ["docs/decisions", "docs/lab"])
def test_index_lists_every_page(folder: str) -> None:
    index = (ROOT / folder / "README.md").read_text()
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w.-]+\.md)\)", index))


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=lambda path: path.stem)
def test_decision_has_number_status_and_date(page: Path) -> None:
    head = page.read_text()[:400]
    assert head.startswith(f"# {page.name[:4]}: ")
    assert re.search(r"^- Status: \w+", head, flags=re.MULTILINE)
    assert re.search(r"^- Date: 20\d\d-\d\d-\d\d$", head, flags=re.MULTILINE)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "lab").glob("2*.md")), ids=lambda path: path.stem)
def test_measurements_state_their_kind(page: Path) -> None:
    assert re.search(
        r"\*\*[^*]*\b(?:[Mm]easured|[Cc]ounted|[Ee]stimated|[Ss]imulated|run on a GPU)\b", page.read_text()
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see `ops/linear/cpu.hh/x.h`", "no such path"),
        ("see `passes/nothing.py`", "no such path"),
        ("see `nothing_at_all.py`", "no file"),
        ("```\n$ cat tests/nothing.py\n```", "no such path"),
        ("[there](nowhere.md)", "leads nowhere"),
        ("[there](README.md#nothing-of-the-kind)", "no such heading"),
        ("`tilecompile compute glm-5`", "no command compute"),
        ("    tilecompile compile glm-5 \\\n        --wrong", "no option --wrong"),
        ("`tilecompile verify one.engine two.engine`", "too many"),
        ("stored in /home/someone/models", "path of one machine"),
        ("where the buffer lies", "is stored"),
    ],
)
def test_planted_faults_are_found(text: str, fault: str) -> None:
    document = ROOT / "README.md"
    faults = missing_paths(document, text, ROOT) + broken_links(document, text)
    assert any(fault in found for found in faults + wrong_commands(text) + forbidden_words(text))


def test_planted_line_of_a_tutorial_is_missed() -> None:
    assert not_shown(["a … c", "…", "e"], "a b c\nd\ne\n") == []
    assert not_shown(["a … c"], "a b\nc\n")
    assert not_shown(["e", "a"], "a\ne\n"), "the order counts"

"""The documents describe the repository as it is: paths, links, commands, words, and the tutorial as a reader tries it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from tilecompile.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
)
MAP = ROOT / "ARCHITECTURE.md"
MAP_LINES = 150

SOURCES = (".py", ".h", ".cuh", ".cpp", ".toml", ".md", ".txt", ".json", ".npy", ".bin", ".so")
"""Endings of names that are files."""

FORBIDDEN = {
    r"(?<![\w.])/(?:home|tmp|root|mnt|opt|srv|work)/": "a path of one machine",
    r"\bnot-a-number\b": "NaN",
    r"\b[Ll]ies\b": "is stored, is laid out",
    r"\b[Ii]n turn\b": "alternately",
    r"\b[Nn]obody\b": "nothing, unused",
    r"\bcomes? into being\b": "is created",
    r"\b[Pp]rocessors?\b(?! sharing)": "CPU",
    r"\bwanted\b": "required, expected",
    r"\bpace\b": "rate",
}
"""What no document says, and what it says instead."""


# --- Parts of a document


def code_blocks(text: str) -> Iterator[list[str]]:
    """The lines of each fenced or indented block of code."""
    block: list[str] = []
    fenced, blank = False, True
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and (blank or block)):
            block.append(line.strip())
            continue
        if block:
            yield block
            block = []
        blank = not line.strip()


def code_spans(text: str) -> list[str]:
    """The inline code of a document, without its backticks."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)]


def commands(text: str) -> list[str]:
    """Every `tilecompile …` command that a document names, in code spans and in blocks."""
    found = code_spans(text)
    for block in code_blocks(text):
        lines = "\n".join(block).replace("\\\n", " ").splitlines()
        found += [re.sub(r"\s+#.*| … .*", "", line.removeprefix("$ ")) for line in lines]
    return [line for line in found if re.match(r"tilecompile [a-z]", line)]


# --- Faults of a document; each function returns one line a fault


@cache
def file_names() -> frozenset[str]:
    """Names of all files of the repository."""
    skipped = (".git", ".venv", ".venv-base")
    return frozenset(p.name for p in ROOT.rglob("*") if not any(part in skipped for part in p.parts))


def missing_paths(document: Path, text: str, engine: Path) -> list[str]:
    """Paths in inline code and in commands that are neither in the repository nor in the tutorial's folder."""
    bases = (ROOT, ROOT / "tilecompile", document.parent, engine, engine / "tiny.engine", engine / "dump")
    words = [(word, " " not in span) for span in code_spans(text) for word in span.split()]
    words += [(word, False) for block in code_blocks(text) for line in block for word in line.split()]
    faults = []
    for word, alone in words:
        path = re.sub(r"<\w+>", "*", word.strip("\"',:;()"))
        if not re.fullmatch(r"[\w.*-]+(?:/[\w.*-]+)*/?", path) or path.count("..") or path.startswith("*"):
            continue
        file = path.endswith(SOURCES)
        if "/" not in path:
            known = path in file_names() or any((base / path).exists() for base in bases)
            if alone and file and not path.startswith(".") and not known:
                faults.append(f"{word}: no file has that name")
            continue
        rooted = any((base / path.split("/")[0]).exists() for base in bases)
        if (file or path.endswith("/") or rooted) and not any(any(base.glob(path)) for base in bases):
            faults.append(f"{word}: there is no such path")
    return faults


def broken_links(document: Path, text: str) -> list[str]:
    """Relative links whose file, or whose heading, doesn't exist."""
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists():
            faults.append(f"{target}: leads nowhere")
        elif anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text() if name else text, flags=re.MULTILINE)
            if anchor not in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}:
                faults.append(f"{target}: has no such heading")
    return faults


def wrong_commands(text: str) -> list[str]:
    """Commands that the command line doesn't have, or options that they don't take."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group) or hasattr(root, "commands")
    faults = []
    for line in commands(text):
        try:
            _, name, *args = shlex.split(line)
        except ValueError as error:
            faults.append(f"{line}: {error}")
            continue
        if name not in root.commands:
            faults.append(f"{line}: there is no command {name}")
            continue
        options = {option: p for p in root.commands[name].params for option in (*p.opts, *p.secondary_opts)}
        options |= {"--help": None, "-h": None}
        most = sum(99 if p.nargs == -1 else 1 for p in root.commands[name].params if p.param_type_name == "argument")
        while args:
            word = args.pop(0).split("=")[0]
            if not word.startswith("-"):
                most -= word not in ("…", "|", "2>&1")
            elif word not in options:
                faults.append(f"{line}: {name} has no option {word}")
            elif not getattr(options[word], "is_flag", True) and args:
                args.pop(0)
        if most < 0:
            faults.append(f"{line}: too many arguments")
    return faults


def forbidden_words(text: str) -> list[str]:
    """Words that no document says."""
    return [
        f"{found[0]!r}: say {instead}"
        for word, instead in FORBIDDEN.items()
        for found in [re.search(word, text)]
        if found
    ]


# --- The tutorial, run as a reader runs it


def tutorial_steps() -> list[tuple[str, list[str]]]:
    """The tutorial's commands, each with the lines that are shown of its output."""
    steps: list[tuple[str, list[str]]] = []
    text = (ROOT / "docs" / "tutorial.md").read_text()
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def not_shown(shown: list[str], output: str) -> list[str]:
    """Lines that are shown, but don't occur in an output in that order; `…` stands for any text of a line."""
    lines = iter(output.splitlines())
    patterns = [
        ".*".join(re.escape(part) for part in line.rstrip().split("…")) for line in shown if line.strip() != "…"
    ]
    return [pattern for pattern in patterns if not any(re.fullmatch(pattern, line.rstrip()) for line in lines)]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, list[str], str]]]:
    """The folder in which the tutorial's commands ran, and each command with the lines shown and its output."""
    folder = tmp_path_factory.mktemp("tutorial")
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and not entry.name.endswith(".engine"):
            (folder / entry.name).symlink_to(entry)
    return folder, [(command, shown, run(command, folder)) for command, shown in tutorial_steps()]


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


Tutorial = tuple[Path, list[tuple[str, list[str], str]]]


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
    assert len(MAP.read_text().splitlines()) <= MAP_LINES


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

"""What the documents state, parsed and compared with the repository: paths, links, commands, words, shown output."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer

from support.paths import ROOT
from tilecompile.cli.app import app

FILES = [
    file
    for top in ROOT.iterdir()
    if not top.name.startswith(".") and top.suffix not in (".egg-info", ".engine")
    for file in ([top] if top.is_file() else top.rglob("*"))
]
NAMES = frozenset(file.name for file in FILES)
DOCUMENTS = sorted(file for file in FILES if file.suffix == ".md")

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
"""Words that no document has, and the word for each."""


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
            known = path in NAMES or any((base / path).exists() for base in bases)
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
    """Forbidden words that a document has."""
    found = [(re.search(word, text), instead) for word, instead in FORBIDDEN.items()]
    return [f"{match[0]!r}: say {instead}" for match, instead in found if match]


# --- Commands with the output that a document shows


def console_steps(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a document's console blocks, each with the lines that are shown of its output."""
    steps: list[tuple[str, list[str]]] = []
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
    kept = [line.rstrip().split("…") for line in shown if line.strip() != "…"]
    patterns = [".*".join(map(re.escape, parts)) for parts in kept]
    return [pattern for pattern in patterns if not any(re.fullmatch(pattern, line.rstrip()) for line in lines)]

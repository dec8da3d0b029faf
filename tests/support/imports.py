"""The import graph of a package: every import of every file, lazy ones too, and the rules that it must keep.

Imports inside functions and under TYPE_CHECKING count as those of the head of a file do. So does a string that is the
name of a module, because that is how modules are loaded by name and started as programs.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

Table = Mapping[str, Set[str]]
"""For each room, the rooms that it may import. A room is a file or folder at the package's first level."""


@dataclass(frozen=True, order=True)
class Import:
    """A module that imports another one, both by full name, and the line of the import."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def modules(root: Path) -> dict[str, Path]:
    """The files of the package in `root` by the names of their modules; links to folders are followed."""
    found = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def room(module: str) -> str:
    """The room in which a module is; `__init__` for the package's own."""
    return (*module.split("."), "__init__")[1]


def imports(root: Path) -> list[Import]:
    """All imports within the package in `root`.

    Python initialises the packages around an imported module too: those that aren't around the importer as well are
    imported by it.
    """
    known = modules(root)
    found = set()
    for importer, path in known.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for name, line in _names(ast.parse(path.read_text(), path), package, known.keys()):
            found.add(Import(importer, name, line))
            outer = {name} | _around(name)
            found |= {Import(importer, each, line) for each in outer - {importer} - _around(importer)}
    return sorted(found)


def _names(tree: ast.Module, package: str, known: Set[str]) -> Iterator[tuple[str, int]]:
    """The modules that a file of `package` names, and the lines on which it does."""
    dotted = {name for name in known if "." in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.split(".")
                base = ".".join(filter(None, (*around[: len(around) - node.level + 1], base)))
            for name in (f"{base}.{alias.name}" for alias in node.names):
                if name in known:
                    yield name, node.lineno
                elif base in known:
                    yield base, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in dotted:
            yield node.value, node.lineno


def _around(module: str) -> set[str]:
    """The packages that a module is in."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def forbidden(found: list[Import], table: Table) -> list[str]:
    """The imports from room to room that the table doesn't allow."""
    crossing = [(each, room(each.importer), room(each.imported)) for each in found]
    return [
        f"{each}: {importer} may not import {imported}"
        for each, importer, imported in crossing
        if importer != imported and imported not in table.get(importer, ())
    ]


def unused(found: list[Import], table: Table) -> list[str]:
    """The entries of the table that no import needs."""
    needed = {(room(each.importer), room(each.imported)) for each in found}
    return [f"{a} imports nothing of {b}" for a, row in table.items() for b in sorted(row) if (a, b) not in needed]


def out_of_order(table: Table) -> list[str]:
    """The entries of the table that name a room which isn't above theirs. Without any, it has no circle."""
    rooms = list(table)
    return [f"{a} imports {b}" for a, row in table.items() for b in sorted(row) if b not in rooms[: rooms.index(a)]]


def circles(found: list[Import]) -> list[list[str]]:
    """A shortest circle of modules that import each other, for each set of modules that have one."""
    graph = nx.DiGraph((each.importer, each.imported) for each in found)
    components = [graph.subgraph(c) for c in nx.strongly_connected_components(graph)]
    shortest = [min((nx.shortest_path(c, b, a) for a, b in c.edges), key=len) for c in components if c.edges]
    return sorted(shortest)


def misplaced(root: Path, files: Set[str], folders: Set[str], links: Set[str]) -> list[str]:
    """What is at the package's first level and isn't listed, or is listed and isn't there."""
    entries = [path for path in root.iterdir() if path.name != "__pycache__"]
    kinds = {path.name: "link" if path.is_symlink() else "folder" if path.is_dir() else "file" for path in entries}
    listed = dict.fromkeys(files, "file") | dict.fromkeys(folders, "folder") | dict.fromkeys(links, "link")
    return [
        f"{name}: is {'a ' + kinds[name] if name in kinds else 'missing'}, "
        f"want {'a ' + listed[name] if name in listed else 'nothing of this name'}"
        for name in sorted(kinds.keys() | listed.keys())
        if kinds.get(name) != listed.get(name)
    ]

"""Which package may import which, in a table, and what imports cost: none goes upwards, none loads heavy modules."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import tilecompile
from support.imports import Table, circles, forbidden, imports, misplaced, modules, out_of_order, unused
from support.paths import ROOT

PACKAGE = ROOT / "tilecompile"

FILES = {"__init__.py", "__main__.py", "compile.py", "errors.py", "options.py", "sources.py"}
FOLDERS = {
    *("ir", "ops", "passes", "verify", "targets", "engine", "cost", "interpret", "measure"),
    *("inspection", "show", "cli"),
}
LINKS = {"runtime", "models", "schedules"}

# Each row names only rooms above it. So nothing imports upwards, and there is no circle.
MAY_IMPORT: Table = {
    name: frozenset(row.split())
    for name, row in {
        # what a serving machine needs; it knows nothing of the compiler
        "runtime": "",
        "show": "",
        "errors": "runtime",
        # values of the passes, proofs of tables, ops and machines
        "ir": "runtime",
        "verify": "runtime",
        "ops": "errors ir runtime",
        "models": "ops runtime",
        "schedules": "errors ir ops runtime",
        "targets": "errors ir ops runtime",
        "cost": "errors ir ops runtime schedules targets",
        # the compiler
        "passes": "cost errors ir models ops runtime schedules",
        "options": "errors models runtime schedules targets",
        "sources": "errors models options runtime",
        "engine": "cost errors ir ops options passes runtime sources targets",
        "compile": "cost engine ir models ops options passes runtime schedules sources verify",
        "__init__": "compile errors options runtime",
        # what uses engines
        "interpret": "engine errors ir ops runtime targets",
        "measure": "__init__ compile cost engine errors ir models ops options runtime schedules show targets",
        "inspection": "engine runtime show",
        "cli": "__init__ compile cost engine errors inspection interpret measure models ops options runtime schedules "
        "show verify",
        "__main__": "cli",
    }.items()
}


def test_the_package_imports_what_the_table_allows_and_no_more() -> None:
    found = imports(PACKAGE)
    assert len(found) > 1000
    assert forbidden(found, MAY_IMPORT) == []
    assert unused(found, MAY_IMPORT) == []


def test_the_table_has_no_upward_row() -> None:
    assert out_of_order(MAY_IMPORT) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(imports(PACKAGE)) == []


def test_the_first_level_holds_what_is_listed() -> None:
    assert misplaced(PACKAGE, FILES, FOLDERS, LINKS) == []
    assert [(PACKAGE / name).resolve() for name in sorted(LINKS)] == [ROOT / name for name in sorted(LINKS)]


# The walker, on packages with a fault.

PLANTED: Table = {"errors": frozenset(), "ir": frozenset({"errors"}), "passes": frozenset({"ir"})}
SOUND = {
    "__init__.py": "",
    "errors.py": "",
    "ir/__init__.py": "",
    "ir/node.py": "from tilecompile.errors import InputError\n",
    "ir/graph.py": "import tilecompile.ir.node\n",
    "passes/__init__.py": "",
    "passes/fuse.py": "from tilecompile.ir.graph import OpGraph\nfrom tilecompile.ir import node\n",
}


def planted(folder: Path, changes: Mapping[str, str] = MappingProxyType({})) -> Path:
    """The package in `folder`, with other texts in some of its files."""
    root = folder / "tilecompile"
    for name, text in (SOUND | changes).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_sound_package_has_no_findings(tmp_path: Path) -> None:
    found = imports(planted(tmp_path))
    assert (forbidden(found, PLANTED), unused(found, PLANTED), circles(found)) == ([], [], [])


@pytest.mark.parametrize(
    "text",
    [
        "\nimport tilecompile.passes.fuse\n",
        "\nfrom tilecompile.passes import fuse\n",
        "\nfrom tilecompile.passes.fuse import fuse\n",
        "\nfrom ..passes.fuse import fuse\n",
        "\nfrom ..passes import fuse\n",
        "\nfrom tilecompile.passes.fuse import *\n",
        "def node():\n    from tilecompile.passes.fuse import fuse\n",
        "if TYPE_CHECKING:\n    from tilecompile.passes.fuse import fuse\n",
        "if not TYPE_CHECKING:\n    from tilecompile.passes.fuse import fuse\n",
        "\nfuse = importlib.import_module('tilecompile.passes.fuse')\n",
    ],
    ids=lambda text: text.strip().replace("\n", ";"),
)
def test_an_upward_import_is_found_however_it_is_written(tmp_path: Path, text: str) -> None:
    found = imports(planted(tmp_path, {"ir/node.py": f"import tilecompile.errors\n{text}"}))
    lines = [f"tilecompile.ir.node, line 3, imports tilecompile.passes{name}" for name in ("", ".fuse")]
    assert forbidden(found, PLANTED) == [f"{line}: ir may not import passes" for line in lines]


def test_an_upward_import_is_found_in_a_linked_folder(tmp_path: Path) -> None:
    root = planted(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "glm.py").write_text("import tilecompile.passes.fuse")
    (root / "models").symlink_to(Path("..", "models"))
    found = forbidden(imports(root), PLANTED | {"models": frozenset()})
    assert "tilecompile.models.glm, line 1, imports tilecompile.passes.fuse: models may not import passes" in found


def test_a_room_without_a_row_may_import_nothing(tmp_path: Path) -> None:
    found = forbidden(imports(planted(tmp_path, {"late.py": "import tilecompile.errors"})), PLANTED)
    assert found == ["tilecompile.late, line 1, imports tilecompile.errors: late may not import errors"]


@pytest.mark.parametrize(
    "text",
    [
        "import tilecompile.ir.graph",
        "def node():\n    import tilecompile.ir.graph",
        "if TYPE_CHECKING:\n    from . import graph",
    ],
    ids=["at import time", "lazy", "for types"],
)
def test_a_circle_of_files_is_found(tmp_path: Path, text: str) -> None:
    found = imports(planted(tmp_path, {"ir/node.py": f"import tilecompile.errors\n{text}"}))
    assert forbidden(found, PLANTED) == []
    assert [sorted(circle) for circle in circles(found)] == [["tilecompile.ir.graph", "tilecompile.ir.node"]]


def test_a_circle_through_the_head_of_a_package_is_found(tmp_path: Path) -> None:
    """An import of a module imports its package's `__init__` before it."""
    changes = {
        "passes/__init__.py": "import tilecompile.passes.fuse",
        "passes/tile.py": "",
        "ir/node.py": "import tilecompile.passes.tile",
    }
    (circle,) = circles(imports(planted(tmp_path, changes)))
    assert "tilecompile.passes" in circle


def test_an_entry_that_nothing_needs_is_found(tmp_path: Path) -> None:
    table = PLANTED | {"passes": frozenset({"ir", "errors"})}
    assert unused(imports(planted(tmp_path)), table) == ["passes imports nothing of errors"]


def test_an_upward_row_is_found() -> None:
    assert out_of_order(PLANTED | {"errors": frozenset({"passes"})}) == ["errors imports passes"]
    assert out_of_order({"ir": frozenset({"ir"})}) == ["ir imports ir"]


def test_what_is_at_the_first_level_and_not_listed_is_found(tmp_path: Path) -> None:
    root = planted(tmp_path, {"late.py": ""})
    (root / "models").mkdir()
    assert misplaced(root, {"__init__.py", "errors.py"}, {"ir", "passes", "ops"}, {"models"}) == [
        "late.py: is a file, want nothing of this name",
        "models: is a folder, want a link",
        "ops: is missing, want a folder",
    ]


# What imports cost.

HEAVY = ("torch", "tilelang", "cuda", "tokenizers", "networkx", "safetensors", "numpy", "rich", "typer")


def loaded(statement: str, names: tuple[str, ...]) -> str:
    """Which of the modules a statement loads, in a new interpreter."""
    code = f"import sys; {statement}; print(*(m for m in {names} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_nothing_heavier_than_numpy() -> None:
    # numpy is what the runtime works with; that it is there already is part of what an import costs, not a load.
    assert loaded("import tilecompile", HEAVY) == "numpy"


# CPU time, because what else runs on the machine delays a process, and costs it little.


def test_import_is_quick() -> None:
    code = "import time; t = time.process_time(); import tilecompile; print(time.process_time() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(times) < 0.3


def test_runtime_and_command_line_need_only_the_base() -> None:
    compiler = ("torch", "tilelang", "networkx", "safetensors")
    assert loaded("from tilecompile.runtime.load import load", (*compiler, "cuda", "tokenizers", "rich")) == ""
    assert loaded("import tilecompile.cli.app, tilecompile.cli.output, tilecompile.options", compiler) == ""
    assert loaded("import tilecompile; tilecompile.load, tilecompile.CompileOptions", compiler) == ""


def test_runtime_imports_neither_the_compiler_nor_a_driver() -> None:
    names = "('torch', 'tokenizers', 'cuda', 'rich')"
    code = f"import sys, tilecompile.runtime.engine; print([m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_values_and_proofs_need_no_torch() -> None:
    names = [name for name in modules(PACKAGE) if name.startswith(("tilecompile.ir", "tilecompile.verify"))]
    assert len(names) > 10
    assert loaded(f"import {', '.join(names)}", ("torch", "tilelang")) == ""


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        begin = cpu_seconds()
        subprocess.run([sys.executable, "-m", "tilecompile", "--help"], capture_output=True, check=True)
        times.append(cpu_seconds() - begin)
    assert min(times) < 1


def test_public_names_are_those_of_all() -> None:
    for name in tilecompile.__all__:
        if name not in ("compile_model", "__version__"):
            assert getattr(tilecompile, name).__name__ == name
    assert set(tilecompile.__all__) <= set(dir(tilecompile))
    assert not hasattr(tilecompile, "nothing")

"""Importing the package and asking for help is quick and loads no heavy module."""

from __future__ import annotations

import subprocess
import sys
import time

import tilecompile

HEAVY = ("torch", "tilelang", "cuda", "tokenizers", "networkx", "safetensors", "numpy", "rich", "typer")


def loaded(statement: str, names: tuple[str, ...]) -> str:
    """Which of the modules a statement loads, in a new interpreter."""
    code = f"import sys; {statement}; print(*(m for m in {names} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    # numpy is what the runtime works with; that it is there already is part of what an import costs, not a load.
    assert loaded("import tilecompile", HEAVY) == "numpy"


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import tilecompile; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(times) < 0.3


def test_runtime_and_command_line_need_only_the_base() -> None:
    compiler = ("torch", "tilelang", "networkx", "safetensors")
    assert loaded("from tilecompile.runtime.load import load", (*compiler, "cuda", "tokenizers", "rich")) == ""
    assert loaded("import tilecompile.cli.app, tilecompile.cli.output, tilecompile.options", compiler) == ""
    assert loaded("import tilecompile; tilecompile.load, tilecompile.CompileOptions", compiler) == ""


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tilecompile", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1


def test_names() -> None:
    for name in tilecompile.__all__:
        if name not in ("compile_model", "__version__"):
            assert getattr(tilecompile, name).__name__ == name
    assert set(tilecompile.__all__) <= set(dir(tilecompile))
    assert not hasattr(tilecompile, "nothing")

"""tilecompile: one decode step of a language model as one resident megakernel.

    with tilecompile.load("ENGINE") as engine:
        print(engine.generate("In the beginning").text)

Importing the package loads nothing else; the names below are fetched at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilecompile.compile import compile_model
    from tilecompile.errors import EngineError, EngineStalled, InputError, TilecompileError
    from tilecompile.options import CompileOptions
    from tilecompile.runtime.engine import Engine, load
    from tilecompile.runtime.generate import Output, TokenStream

__version__ = "0.1.0"

_MODULES = {
    "compile_model": "tilecompile.compile",
    "CompileOptions": "tilecompile.options",
    "load": "tilecompile.runtime.engine",
    "Engine": "tilecompile.runtime.engine",
    "Output": "tilecompile.runtime.generate",
    "TokenStream": "tilecompile.runtime.generate",
    "EngineError": "tilecompile.errors",
    "EngineStalled": "tilecompile.errors",
    "InputError": "tilecompile.errors",
    "TilecompileError": "tilecompile.errors",
}

__all__ = [
    "CompileOptions",
    "Engine",
    "EngineError",
    "EngineStalled",
    "InputError",
    "Output",
    "TilecompileError",
    "TokenStream",
    "compile_model",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]

"""tilecompile: one decode step of a language model as one resident megakernel.

    with tilecompile.load("ENGINE") as engine:
        print(engine.generate("In the beginning").text)

Importing the package loads the runtime (numpy, nothing heavier); the other names are fetched at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tilecompile.errors import EngineBusy, EngineError, EngineStalled, InputError, TilecompileError
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.generate import Output, TokenStream
from tilecompile.runtime.load import load
from tilecompile.runtime.version import __version__

if TYPE_CHECKING:
    from tilecompile.compile import compile_model
    from tilecompile.options import CompileOptions
    from tilecompile.runtime.sampling import SamplingParams

_LATER = {
    "compile_model": "tilecompile.compile",
    "CompileOptions": "tilecompile.options",
    "SamplingParams": "tilecompile.runtime.sampling",
}

__all__ = [
    "CompileOptions",
    "Engine",
    "EngineBusy",
    "EngineError",
    "EngineStalled",
    "InputError",
    "Output",
    "SamplingParams",
    "TilecompileError",
    "TokenStream",
    "__version__",
    "compile_model",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_LATER]

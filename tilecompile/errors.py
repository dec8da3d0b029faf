"""Errors that a user can cause: one line that names the thing, what was found and what was expected."""

from tilecompile.runtime.errors import EngineError, EngineStalled, InputError, TilecompileError

__all__ = ["EngineError", "EngineStalled", "InputError", "TilecompileError"]

"""Errors that a user can cause: one line that names the thing, what was found and what was expected."""

from tilecompile.runtime.errors import EngineBusy, EngineError, EngineStalled, InputError, TilecompileError

__all__ = ["EngineBusy", "EngineError", "EngineStalled", "InputError", "TilecompileError"]

"""Errors that users see: one line that names the thing, what was found and what was expected."""


class TilecompileError(Exception):
    """Base of all errors that the package raises on purpose; the command line prints them and exits with 2."""


class InputError(TilecompileError):
    """Something that the user gave can't be used: a path, a model, a prompt, a flag."""


class EngineError(TilecompileError):
    """An engine can't be loaded or used."""


class EngineBusy(EngineError):
    """A request was refused because the engine runs another one; nothing has happened to either."""


class EngineStalled(EngineError):
    """The kernel waited for an event that didn't come; names worker, task, event, have and want."""

"""Machine descriptions: what an engine is compiled for, from TOML files.

name = "cpu"        # what the engine says it was compiled for
target = "cpu"      # target family
devices = 1         # devices of the machine
workers = 8         # optional: workers a device; default: the cores that the compiling process may use
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError

FOLDER = Path(__file__).parent / "machines"
FAMILIES = ("cpu",)

_KEYS: dict[str, type] = {"name": str, "target": str, "devices": int, "workers": int}
_OPTIONAL = ("workers",)


@dataclass(frozen=True)
class Machine:
    """A machine: name, target family, devices, and workers a device (None: chosen when compiling)."""

    name: str
    target: str
    devices: int
    workers: int | None = None


def machine_names() -> list[str]:
    """Names of the machines that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_machine(name_or_path: str) -> Machine:
    """A machine by name, or from a TOML file. InputError that names the file and the key if it can't be used."""
    path = FOLDER / f"{name_or_path}.toml"
    if name_or_path not in machine_names():
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(
                f"machine {name_or_path!r} is unknown and no file; there are: {', '.join(machine_names())}"
            )
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from error
    unknown = sorted(set(values) - set(_KEYS))
    if unknown:
        raise InputError(f"{path}: unknown key {', '.join(unknown)}; keys are: {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in values and key not in _OPTIONAL]
    if missing:
        raise InputError(f"{path}: missing key {', '.join(missing)}")
    for key, value in values.items():
        if type(value) is not _KEYS[key]:
            raise InputError(f"{path}: {key} is {value!r}, want a {'string' if _KEYS[key] is str else 'whole number'}")
        if isinstance(value, int) and value < 1:
            raise InputError(f"{path}: {key} is {value}, want at least 1")
    if values["target"] not in FAMILIES:
        raise InputError(f"{path}: target is {values['target']!r}, want one of: {', '.join(FAMILIES)}")
    return Machine(**values)

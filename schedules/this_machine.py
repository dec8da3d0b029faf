"""Caches and memory of the machine that the process runs on, as the operating system reports them."""

from __future__ import annotations

from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes(folder: Path = CACHES) -> tuple[int, ...]:
    """Sizes of a core's data caches, from the first level on; empty if the system doesn't report them."""
    found: dict[int, int] = {}
    try:
        for index in sorted(folder.glob("index*")):
            if (index / "type").read_text().strip() != "Instruction":
                text = (index / "size").read_text().strip()
                size = int(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else int(text)
                found[int((index / "level").read_text())] = size
    except (OSError, ValueError, IndexError):
        return ()
    return tuple(found[level] for level in sorted(found))


def memory_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory of the machine, or None if the system doesn't report it."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None

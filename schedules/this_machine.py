"""What the machine that the process runs on is made of, as far as the system tells without measuring."""

from __future__ import annotations

from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes(folder: Path = CACHES) -> tuple[int, ...]:
    """Sizes of a core's data caches, from the first level on; empty where the system doesn't tell."""
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
    """All memory of the machine, or None where the system doesn't tell."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None

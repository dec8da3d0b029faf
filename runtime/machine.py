"""What this machine has: CPU features, cores that the process may use, free memory."""

from __future__ import annotations

import os
import platform
import resource
from functools import cache
from pathlib import Path


@cache
def cpu_features() -> frozenset[str]:
    """Feature flags of the CPU as the Linux kernel lists them; empty where it lists none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_name() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that the process may use: its affinity, capped by the cgroup's CPU quota. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def cgroup_quota() -> float | None:
    """CPUs that the process's control group may use (version 2 or 1), or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        return quota_us / int((base / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def free_memory() -> int | None:
    """Bytes of memory that can be allocated without swapping, or None where the system doesn't report it.

    What the machine has available, within the limits of the process and of its control groups.
    """
    found = [size for size in (_available(), cgroup_memory(), _unlimited()) if size is not None]
    return max(0, min(found)) if found else None


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _unlimited() -> int | None:
    """What the process's limits on address space and on data leave, or None without such limits."""
    found = []
    try:
        pages = [int(word) * resource.getpagesize() for word in Path("/proc/self/statm").read_text().split()]
        for limit, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            soft = resource.getrlimit(limit)[0]
            if soft != resource.RLIM_INFINITY:
                found.append(soft - used)
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)


def cgroup_memory(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the process's control groups (version 2 or 1) leave it, page cache that they can drop included."""
    found = []
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            names, base = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *(p for p in group.parents if p.is_relative_to(base))):
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append(limit - used + int(stat.get(names[2], 0)))
            except (OSError, ValueError):
                continue  # no limit, or a group that this container doesn't show
    return min(found, default=None)

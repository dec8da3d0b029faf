"""Too little memory for an engine: limits of the machine, the process and its control groups."""

from __future__ import annotations

from pathlib import Path

from support.using import script
from tilecompile.runtime import machine
from tilecompile.runtime.folder.manifest import read_manifest


def test_cgroup_memory_is_the_least_that_a_group_above_has_free(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "sys"

    def group(path: str, **values: object) -> None:
        (root / path).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (root / path / name.replace("__", ".")).write_text(f"{value}\n")

    own.write_text("0::/a/b\n")
    assert machine.cgroup_memory(own, root) is None
    group("a/b", memory__max="max", memory__current=10, memory__stat="inactive_file 1")
    assert machine.cgroup_memory(own, root) is None
    group("a", memory__max=1000, memory__current=400, memory__stat="anon 5\ninactive_file 50")
    assert machine.cgroup_memory(own, root) == 650
    own.write_text("4:memory:/x/y\n0::/\n")
    v1 = {"memory__usage_in_bytes": 100, "memory__stat": "total_inactive_file 30"}
    group("memory/x/y", memory__limit_in_bytes=0x7FFFFFFFFFFFF000, **v1)
    assert (machine.cgroup_memory(own, root) or 0) > 1 << 60
    group("memory", memory__limit_in_bytes=500, **v1)
    assert machine.cgroup_memory(own, root) == 430
    own.unlink()
    assert machine.cgroup_memory(own, root) is None


def test_load_is_refused_where_process_limits_leave_too_little_memory(tiny: Path) -> None:
    """Limits of the process count; they are met before anything is allocated."""
    needed = read_manifest(tiny).memory(1)
    text = f"""
import resource
from tilecompile.runtime.machine import free_memory
e.close()
for limit, field in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
    used = int(open("/proc/self/statm").read().split()[field]) * 4096
    resource.setrlimit(limit, (used + {needed} // 2, resource.getrlimit(limit)[1]))
    try:
        tilecompile.load({str(tiny)!r}, threads=1)
    except tilecompile.EngineError as error:
        print(error)
    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    lines = script(tiny, text).splitlines()
    assert len(lines) == 2
    for line in lines:
        words = line.split(": the engine needs ")[1].split()
        assert int(words[0]) == needed
        assert 0 < int(words[4]) <= needed // 2 + 4096, line

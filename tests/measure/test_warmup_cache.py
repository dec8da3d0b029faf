"""The processes of warm-up: what is in the file cache and leaves it, and what a process reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile.measure.warmup.marks as marks_program
from support import fake_engine as fake
from support.warming import GOOD, peer, program, warmup
from tilecompile.measure.warmup import file_cache as cache
from tilecompile.measure.warmup.measure import measure
from tilecompile.measure.warmup.systems import System

DISK = ("ext2/ext3", "ext4", "xfs", "btrfs")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine"))


def on_disk(folder: Path) -> bool:
    """Whether a folder is on a file system whose cache is known to evict on request."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()
    return kind in DISK


def test_evict_removes_files_from_the_file_cache(tmp_path: Path) -> None:
    if not on_disk(tmp_path):
        pytest.skip("the temporary folder is on no disk")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "empty"]
    paths[0].write_bytes(os.urandom(1 << 20))
    paths[1].write_bytes(os.urandom((1 << 20) + 17))
    paths[2].write_bytes(b"")
    size = (2 << 20) + 17
    every = [*paths, tmp_path / "missing", tmp_path]
    assert cache.cached(every) == cache.Cached(size, size)
    cache.evict(every)
    assert cache.cached(every) == cache.Cached(0, size)
    code = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); a = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ);"
        "print(sum(a[::4096]), flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(paths[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()  # it has read all pages through its mapping
        cache.evict(every)
        assert cache.cached(every).cached == 1 << 20
        other.communicate(b"\n")


def test_a_cold_start_reads_files_again(engine: str, tmp_path: Path) -> None:
    if not on_disk(tmp_path) or not on_disk(Path(engine)):
        pytest.skip("the temporary folder is on no disk")
    data = tmp_path / "data"
    data.write_bytes(os.urandom(4 << 20))
    text = f"""
        open({str(data)!r}, "rb").read()
        mark("first_token", token=1)
        print(json.dumps({{"files": [{str(data)!r}]}}))
    """
    cold = peer(warmup(engine, "--peer", f"a={program(tmp_path, text)}"), "a")["cold"]
    assert (cold["evicted"], cold["bytes"], cold["files"], cold["runs"]) == (1.0, 4 << 20, 1, 1)


def test_no_cold_start_where_eviction_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System("a", tuple(f"{program(tmp_path, GOOD)} {{ids}}".split()), "")

    def cold() -> dict[str, Any]:
        return dict(measure(system, {"ids": "1,2"}, [], 1, lambda *_: None)["cold"])

    monkeypatch.setattr(cache, "evict", lambda _: None)
    assert cold() == {"unavailable": "100% of what was in the file cache stayed there"}
    monkeypatch.setattr(cache, "_may_ask", lambda _: False)
    assert cold() == {"unavailable": "the system doesn't report what of the files is in its cache"}


def test_eviction_includes_pages_that_the_measuring_process_maps(tmp_path: Path) -> None:
    """The measuring process has libraries mapped that the measured ones read."""
    if not on_disk(Path(np.__file__)):
        pytest.skip("numpy is on no disk")
    library = tmp_path / "library.so"
    shutil.copy(np.linalg._umath_linalg.__file__, library)
    code = (
        "import ctypes, sys; from tilecompile.measure.warmup import file_cache as cache;"
        f"path = {str(library)!r}; ctypes.CDLL(path); before = cache.cached([path]);"
        "cache.evict([path]); print(before.cached == before.known, cache.cached([path]).cached / before.cached)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, share = done.stdout.split()
    assert before == "True"
    assert float(share) < 0.5


def test_marks_import_nothing_of_the_package(tmp_path: Path) -> None:
    """Peers don't import the package, and what they print is no report."""
    marks = Path(marks_program.__file__)
    (tmp_path / "marks.py").write_text(marks.read_text())
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "def main(mark, *words):\n"
        "    print('noise')\n"
        "    os.system('echo noise')\n"
        "    mark('loaded')\n"
        "    mark('first_token', sum(m.split('.')[0] in ('tilecompile', 'numpy', 'json') for m in sys.modules))\n"
        "    if words: raise ValueError('two\\nlines')\n"
    )
    command = [sys.executable, str(tmp_path / "marks.py"), "program"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(one) for one in found] == [{"mark", "time"}, {"mark", "time", "token"}, {"files"}]
    assert found[1]["token"] == 0
    assert os.path.realpath(sys.executable) in found[2]["files"]
    assert done.stderr == "noise\nnoise\n"
    done = subprocess.run([*command, "x"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == {"error": "two lines"}

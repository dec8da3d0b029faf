"""The system's file cache: which part of some files is in it, and evicting them from it.

Eviction is posix_fadvise(DONTNEED), which can't take pages that some process has mapped; those that only this process
has mapped, such as its own libraries, it gives up first with MADV_PAGEOUT (Linux 5.4), and reads them again when it
needs them. mincore reports what is cached. MADV_PAGEOUT and mincore work on files that one owns or may write to. Names
of files and folders stay cached.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MADV_PAGEOUT = 21
"""From Linux's mman-common.h, since Python's mmap doesn't have it. Gives pages back and loses nothing in them."""


@dataclass(frozen=True)
class Cached:
    """How many bytes of some files are in the cache, of `known` bytes that can be asked for."""

    cached: int
    known: int


def evict(paths: Iterable[str | Path]) -> None:
    """Evicts files from the cache, as far as the system can. Files that can't be opened are skipped."""
    paths = list(paths)
    for path in paths:
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            os.fsync(descriptor)  # what isn't on the disk yet stays
    _let_go({os.path.realpath(path) for path in paths})
    for path in paths:
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def cached(paths: Iterable[str | Path]) -> Cached:
    """What is in the cache of some files."""
    inside = known = 0
    for path in paths:
        try:
            with _opened(path) as descriptor:
                size = os.fstat(descriptor).st_size
                pages = _resident(descriptor, size) if size and _may_ask(path) else None
        except (OSError, ValueError):
            continue
        if pages is not None:
            known += size
            inside += min(size, pages * mmap.PAGESIZE)
    return Cached(inside, known)


def _let_go(paths: set[str]) -> None:
    """Drops this process's own mapped pages of files, where they are only read."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for fields in [line.rstrip("\n").split(maxsplit=5) for line in maps]:
            if len(fields) == 6 and fields[5] in paths and "w" not in fields[1]:
                begin, end = (int(word, 16) for word in fields[0].split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_PAGEOUT)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _may_ask(path: str | Path) -> bool:
    """Whether mincore reports the pages of a file; of other files it reports that all of them are cached."""
    return os.geteuid() in (0, os.stat(path).st_uid) or os.access(path, os.W_OK)


def _resident(descriptor: int, size: int) -> int | None:
    """Number of a file's pages that are in the cache; None where the system doesn't report it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    # A private mapping of one's own: ctypes finds the address of writable memory only, and nothing is written.
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as area:
        first = ctypes.c_char.from_buffer(area)
        found = (ctypes.c_ubyte * pages)()
        try:
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found)
        finally:
            del first
        return None if failed else bytes(found).count(1)  # its other bits are reserved


def tree(folder: str | Path) -> list[str]:
    """All files of a folder."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())

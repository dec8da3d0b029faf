"""Memory that a kernel works in: anonymous huge pages, touched before the first step; weight pools read into them.

Weights are copied rather than mapped from their file: a file mapping gets no huge pages, and page faults and address
translation would cost more in every step than one copy costs at the start.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.errors import EngineError

HUGE_PAGE = 2 << 20
READ_BYTES = 16 << 20

Bytes = npt.NDArray[np.uint8]


def allocate(size: int, huge: bool = True) -> Bytes:
    """Zeroed private memory of `size` bytes, aligned to a huge page, in huge pages where the system has them.

    Only whole huge pages are asked for: what doesn't fill one, which is all of a small arena, is in ordinary pages;
    without `huge` all is. Pages are allocated when they are first written: see `touch` and `read_into`.
    """
    try:
        area = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise EngineError(f"can't get {size} bytes of memory: {error}") from error
    whole = np.frombuffer(area, np.uint8)
    start = -address(whole) % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without huge pages: slower, not wrong
            if not huge:
                area.madvise(mmap.MADV_NOHUGEPAGE)
            elif size >= HUGE_PAGE:
                area.madvise(mmap.MADV_HUGEPAGE, start, size // HUGE_PAGE * HUGE_PAGE)
    return whole[start : start + size]


def address(array: npt.NDArray[np.generic]) -> int:
    """Address of an array's first byte."""
    return int(array.__array_interface__["data"][0])


def touch(area: Bytes) -> None:
    """Makes the system provide the pages now, so that no step waits for one."""
    area[:: mmap.PAGESIZE] = 0


def read_into(path: Path, area: Bytes, threads: int) -> None:
    """Fills the memory with a file of the same size, several threads reading different parts."""

    def read(begin: int) -> None:
        end = min(begin + READ_BYTES, area.size)
        while begin < end:
            got = os.preadv(file, [area[begin:end].data], begin)
            if got == 0:
                raise EngineError(f"{path}: ends after {begin} bytes, want {area.size}")
            begin += got

    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror}") from error
    try:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(read, range(0, area.size, READ_BYTES)):
                pass
    except OSError as error:
        raise EngineError(f"{path}: can't be read: {error.strerror}") from error
    finally:
        os.close(file)

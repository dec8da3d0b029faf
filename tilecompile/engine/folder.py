"""Creates an engine folder atomically.

It is built beside its place, in `.NAME.partial-PID` whose lock its compilation holds, and then renamed. An engine that
is replaced changes places with the new one in one call where the system has it (Linux: renameat2 with
RENAME_EXCHANGE); elsewhere the old one is first renamed to `.NAME.old-PID`, and where a compilation ended between the
two renames the next one puts it back. The next compilation also removes whatever an ended one left behind.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tilecompile.errors import InputError
from tilecompile.runtime.folder.manifest import NAME as MANIFEST

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def new_folder(output: Path, force: bool = False) -> Iterator[Path]:
    """A new folder, renamed to `output` when the block succeeds and removed when it doesn't.

    `force` lets it take the place of a folder with content. InputError where it can't be written.
    """
    output = output.absolute()
    folder, old = (output.parent / f".{output.name}.{what}-{os.getpid()}" for what in ("partial", "old"))
    lock = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output.parent):  # so that no one takes the new folder for an ended compilation's
            _clear(output)
            folder.mkdir()
            with suppress(OSError):  # a file system without locks: an ended compilation's folder stays
                lock = _lock(folder)
        yield folder
        _place(folder, output, old, force)
    except OSError as error:
        raise InputError(f"{output}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _place(folder: Path, output: Path, old: Path, force: bool) -> None:
    """Puts the folder in its place."""
    if not output.is_dir() or not any(output.iterdir()):
        folder.rename(output)  # over nothing or an empty folder; not over a file
        return
    if not force or not (output / MANIFEST).is_file():
        raise InputError(f"{output}: was made meanwhile; give --force to replace it, if it is an engine")
    if exchange(folder, output):
        return
    with _locked(output.parent):
        output.rename(old)
        try:
            folder.rename(output)
        except BaseException:
            old.rename(output)
            raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Exchanges two folders atomically; returns False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def _clear(output: Path) -> None:
    """Removes what ended compilations of `output` left, and restores an engine that one of them was replacing."""
    for what in ("old", "partial"):
        for path in sorted(output.parent.glob(f".{glob.escape(output.name)}.{what}-*")):
            with suppress(OSError):
                lock = _lock(path)
                try:
                    if what == "old" and not output.exists():
                        path.rename(output)
                    else:
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)


def _lock(folder: Path) -> int:
    """Takes a folder's lock: a descriptor that holds it. OSError if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(folder: Path, seconds: float = 10.0) -> Iterator[None]:
    """Holds a folder's lock when its turn comes; goes on without it if that takes long or there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                    break
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)

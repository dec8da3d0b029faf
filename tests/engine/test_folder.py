"""An engine folder is created atomically, whatever ends the process that makes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tilecompile
from support import fake_engine as fake
from support.paths import TESTS
from support.using import left
from tilecompile.engine import folder as output_module
from tilecompile.engine.folder import exchange, new_folder
from tilecompile.errors import EngineError, InputError
from tilecompile.runtime.folder.check import check_engine

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support import fake_engine
from tilecompile.engine import folder as output

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

renames = []

def rename(path, target, old=Path.rename):
    renames.append(path)
    return old(path, target) if len(renames) < 2 else kill()

with output.new_folder(Path({output!r}), force=True) as folder:
    fake_engine.make_engine(folder, has_kernel=False)
    {then}
"""


def killed(output: Path, then: str) -> None:
    """A process that is killed while it makes `output`."""
    text = KILLED.format(tests=str(TESTS), output=str(output), then=then)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("there", [False, True])
def test_a_process_killed_amid_writing_leaves_the_old_engine(tmp_path: Path, there: bool) -> None:
    place = tmp_path / "out"
    if there:
        fake.make_engine(place / "e")
    killed(place / "e", "kill()")
    assert len(left(place)) == 1 + there
    assert (place / "e").exists() == there
    if there:
        check_engine(place / "e")
    with new_folder(place / "e", force=True) as folder:
        assert left(place) == [folder.name, "e"][: 1 + there]
        fake.make_engine(folder, text=False)
    assert left(place) == ["e"]
    assert check_engine(place / "e").manifest.tokenizer is None


def test_a_process_killed_after_the_exchange_leaves_the_new_engine(tmp_path: Path) -> None:
    """The new engine is there, the old one still under the temporary name."""
    engine = fake.make_engine(tmp_path / "out" / "e")
    killed(engine, "output.shutil.rmtree = kill")
    assert len(left(engine.parent)) == 2
    assert not check_engine(engine).manifest.has_kernel
    with pytest.raises(ZeroDivisionError), new_folder(engine, force=True):
        raise ZeroDivisionError
    assert left(engine.parent) == ["e"]
    assert not check_engine(engine).manifest.has_kernel


def test_a_process_killed_between_two_renames_leaves_the_old_engine_recoverable(tmp_path: Path) -> None:
    """Where the system can't exchange folders: the next compilation puts the old engine back."""
    engine = fake.make_engine(tmp_path / "out" / "e")
    killed(engine, "output.exchange = lambda a, b: False; Path.rename = rename")
    assert not engine.exists()
    assert len(left(engine.parent)) == 2
    with pytest.raises(
        EngineError, match=r"e: is not there, .*; the compilation that was replacing it was ended, and it is in"
    ):
        tilecompile.load(engine)
    with pytest.raises(ZeroDivisionError), new_folder(engine):
        raise ZeroDivisionError
    assert left(engine.parent) == ["e"]
    assert check_engine(engine).manifest.has_kernel


# Places


@pytest.mark.parametrize("can", [True, False])
def test_an_engine_is_replaced_while_it_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    if not can:
        monkeypatch.setattr(output_module, "exchange", lambda a, b: False)
    engine = fake.make_engine(tmp_path / "out" / "e[1]*")
    (tmp_path / "out" / ".e1.partial-5").mkdir()
    with tilecompile.load(engine) as loaded:
        with new_folder(engine, force=True) as folder:
            fake.make_engine(folder, text=False)
        assert loaded.generate([1], 5).tokens == fake.greedy([1], 5), "an engine in use outlives its files"
    assert check_engine(engine).manifest.tokenizer is None
    assert left(engine.parent) == [".e1.partial-5", "e[1]*"]


def test_a_folder_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    for force, words in ((False, "was made meanwhile"), (True, "if it is an engine")):
        place = tmp_path / f"out{force}"
        making = new_folder(place / "e", force)
        fake.make_engine(making.__enter__(), has_kernel=False)
        (place / "e").mkdir()
        (place / "e" / "file").write_text("mine")
        with pytest.raises(InputError, match=words):
            making.__exit__(None, None, None)
        assert left(place) == ["e"]
        assert (place / "e" / "file").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(InputError, match="file: can't be written: Not a directory"),
        new_folder(tmp_path / "file", True),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_two_compilations_of_one_output_keep_apart(tmp_path: Path) -> None:
    """Neither removes the other's partial folder; that of an ended process goes, even if its number is used again."""
    place = tmp_path / "out"
    text = f"""
from pathlib import Path
from tilecompile.engine.folder import new_folder
with new_folder(Path({str(place / "e")!r})) as folder:
    print(folder, flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    stale = place / f".e.partial-{os.getppid()}"
    stale.mkdir()
    with new_folder(place / "e") as folder:
        assert left(place) == sorted([theirs.name, folder.name])
        fake.make_engine(folder, has_kernel=False)
    other.communicate("\n")
    assert other.returncode == 1, "the second to finish finds an engine there"
    assert left(place) == ["e"]
    assert not check_engine(place / "e").manifest.has_kernel


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert left(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")

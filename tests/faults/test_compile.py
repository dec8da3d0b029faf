"""Failures while an engine is compiled: full disks, interrupts, killed processes, false checkpoints.

The compiler of the machine is replaced by a copy of a kernel, except where the build is tested.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tilecompile
from support import damage
from support import fake_engine as fake
from support.engines import TINY_POSITIONS, tiny_model
from support.using import left
from tilecompile.compile import compile_model
from tilecompile.engine import kernels
from tilecompile.errors import EngineError, InputError
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.check import check_engine

STAGES = ("trace", "tile", "events", "schedule", "verify", "build", "pack")


@pytest.fixture
def quick(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No C++ compiler is run."""
    monkeypatch.setattr(kernels, "build", lambda source, output, isa: shutil.copyfile(tiny / "kernel.so", output))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", max_position_embeddings=TINY_POSITIONS)


def options(model: Path, output: Path, **more: Any) -> CompileOptions:
    """The options of the tiny engine."""
    settings: dict[str, Any] = {"seed": 1, "max_seq_len": TINY_POSITIONS, "workers": 4, "target": "cpu-portable"}
    return CompileOptions(str(model), output, **{**settings, **more})


def test_compiling_leaves_the_engine_folder_and_nothing_else(
    quick: None, model: Path, tmp_path: Path, tiny: Path
) -> None:
    compile_model(options(model, tmp_path / "out" / "deep" / "e"))
    assert left(tmp_path / "out" / "deep") == ["e"]
    names = ("kernel.so", "tables/waits.npy", "weights/device0.bin")
    files = [check_engine(path).manifest.data["files"] for path in (tmp_path / "out" / "deep" / "e", tiny)]
    assert [files[0][name] for name in names] == [files[1][name] for name in names]


# Full disks


@pytest.mark.parametrize(
    ("step", "force"),
    [
        ("build", False),
        ("write_graph", True),
        ("np.save", False),
        ("shutil.copyfile", True),
        ("pack", True),
        ("write_manifest", False),
    ],
)
def test_a_full_disk_at_any_step_leaves_no_new_engine(
    quick: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, force: bool
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    if force:
        fake.make_engine(place / "e")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "shutil.copyfile":
        monkeypatch.setattr(kernels, "build", lambda source, output, isa: output.write_bytes(b""))
    module = {"build": "kernels", "pack": "weights"}.get(step, "write")
    monkeypatch.setattr(f"tilecompile.engine.{module}.{step}", full)
    with pytest.raises(InputError, match=r"e: can't be written: No space left on device$"):
        compile_model(options(model, place / "e", force=force))
    assert left(place) == (["e"] if force else [])
    if force:
        check_engine(place / "e")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes small file systems; needs the right to mount one."""
    made: list[Path] = []

    def make(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("can't mount a file system here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [60, 300, 400, 600])
def test_a_disk_too_small_for_the_engine_is_refused_and_left_empty(
    quick: None, model: Path, disk: Callable[[int], Path], kilobytes: int
) -> None:
    place = disk(kilobytes)
    with pytest.raises(InputError, match=r"can't be written|the disk has \d+ free|requested and \d+ written"):
        compile_model(options(model, place / "e"))
    assert left(place) == []


def test_a_dump_that_does_not_fit_its_disk_is_refused(
    quick: None, model: Path, tmp_path: Path, disk: Callable[[int], Path]
) -> None:
    with pytest.raises(InputError, match=r"--dump .*: can't be written: No space left"):
        compile_model(options(model, tmp_path / "e", dump=disk(20)))
    assert not (tmp_path / "e").exists()


# Interrupts


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_at_any_stage_leaves_nothing(quick: None, model: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(reached: str, done: int, total: int) -> None:
        if reached == stage:
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        compile_model(options(model, tmp_path / "out" / "e"), interrupt)
    assert left(tmp_path / "out") == []


def test_an_interrupted_compile_command_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """Ctrl-C while the C++ compiler runs: the terminal sends it to both."""
    arguments = f"compile {model} -o {tmp_path / 'out' / 'e'} --seed 1 --max-seq-len 512".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "tilecompile", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith("  build\n"):
            break
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 130
    assert left(tmp_path / "out") == []


def test_a_killed_compilation_is_cleaned_up_by_the_next(quick: None, model: Path, tmp_path: Path) -> None:
    """A real one, in the middle of the weights."""
    text = f"""
import os, signal
from pathlib import Path
from tilecompile import compile as compiler
from tilecompile.engine import kernels
from tilecompile.options import CompileOptions
kernels.build = lambda source, output, isa: output.write_bytes(b"")
def progress(stage, done, total):
    if stage == "pack": os.kill(os.getpid(), signal.SIGKILL)
options = CompileOptions({str(model)!r}, Path({str(tmp_path / "out" / "e")!r}), seed=1, max_seq_len=256, workers=2)
compiler.compile_model(options, progress)
"""
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == -signal.SIGKILL
    assert len(left(tmp_path / "out")) == 1
    with pytest.raises(EngineError, match="is not there"):
        tilecompile.load(tmp_path / "out" / "e")
    compile_model(options(model, tmp_path / "out" / "e"))
    assert left(tmp_path / "out") == ["e"]
    check_engine(tmp_path / "out" / "e")


# Checkpoints


def test_checkpoints_whose_headers_are_false_are_refused(tmp_path: Path) -> None:
    """The index or a file's header contradicts the files; see tests/models/test_checkpoints.py for wrong tensors."""
    model = tiny_model(tmp_path / "model")
    index = model / "model.safetensors.index.json"
    save_file({"lm_head.weight": torch.zeros(300, 72)}, model / "a.safetensors")
    content = (model / "a.safetensors").read_bytes()
    names: tuple[Any, ...] = ("../a.safetensors", "/etc/passwd", "a\0b", "x" * 300, "", ".", "\ud800", 3, None, {})
    for name in names:
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        with pytest.raises(InputError, match=r"weight_map|names files that don't exist") as error:
            Checkpoint(model)
        assert "\n" not in str(error.value)
    index.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not a safetensors index"):
        Checkpoint(model)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors"}}))
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    lies = [
        header.replace(b"[300,72]", b"[300,73]"),
        header.replace(b"86400]", b"86404]"),
        header.replace(b"F32", b"F64"),
    ]
    lies += [header.replace(b'"data_offsets":[0', b'"data_offsets":[9'), b"{" * len(header), b""]
    wrong = [len(lie).to_bytes(8, "little") + lie + content[8 + len(header) :] for lie in lies]
    wrong += [content[:-1], content[:100], content[:4], b"", content + b"x", b"\xff" * 8 + content[8:]]
    for changed in wrong:
        damage.put(model / "a.safetensors", changed)
        with pytest.raises(InputError, match=r"a\.safetensors: not a readable safetensors file"):
            Checkpoint(model)
    (model / "a.safetensors").unlink()
    os.mkfifo(model / "a.safetensors")
    with pytest.raises(InputError, match=r"names files that don't exist: a\.safetensors"):
        Checkpoint(model)

"""Engine folders that the runtime refuses, and weights that it reads into memory, with a stand-in kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import fake_engine as fake
from support.errors import one_line
from tilecompile.errors import EngineError
from tilecompile.runtime import machine
from tilecompile.runtime.cpu.memory import allocate, read_into
from tilecompile.runtime.folder.files import ChunkHasher, file_entry
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.format import FORMAT_VERSION


def refused(path: Path, words: str, check_weights: bool = False) -> str:
    """Loading fails with one line that matches; nothing is launched."""
    with pytest.raises(EngineError, match=words) as error:
        tilecompile.load(path, check_weights=check_weights)
    return one_line(error)


def test_load_refuses_what_is_no_engine_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: is not there, want an engine folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file: is a file, want an engine folder")
    refused(tmp_path, "has no engine.json")
    for content, words in (
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100000, "not valid JSON"),
    ):
        (tmp_path / "engine.json").write_bytes(content)
        refused(tmp_path, f"engine.json: is {words}")
    (tmp_path / "engine.json").write_text("[]")
    refused(tmp_path, "engine.json: the content is a list, want an object")


Edit = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(format=1), f"engine.json: format version is 1, want {FORMAT_VERSION}"),
        (lambda d: d.pop("format"), f"format version is null, want {FORMAT_VERSION}"),
        (lambda d: d.update(format=True), f"format version is true, want {FORMAT_VERSION}"),
        (lambda d: d.pop("vocab_size"), "vocab_size is missing, want a whole number from 0"),
        (lambda d: d["model"].pop("name"), r"model\.name is missing, want a string"),
        (lambda d: d.update(workers="2"), 'workers is "2", want a whole number from 0'),
        (lambda d: d.update(workers=True), "workers is true, want a whole number"),
        (lambda d: d.update(workers=-1), "workers is -1, want a whole number"),
        (lambda d: d.update(workers=0), "workers is 0, want at least 1"),
        (lambda d: d.update(model=3), "model is 3, want an object with name, architecture, config"),
        (lambda d: d["programs"][0].update(ops={"a": "b"}), r'programs\[0\]\.ops\["a"\] is "b", want a whole number'),
        (lambda d: d["weights"]["pools"][0].update(file=3), r"weights\.pools\[0\]\.file is 3, want a string or null"),
        (lambda d: d.update(devices=2), r"weights\.pools name devices \[0\], want one each of 2"),
        (lambda d: d.update(arenas=[]), r"arenas name devices \[\], want one each of 1"),
        (lambda d: d["files"].pop("tables/waits.npy"), "files has no entry for tables/waits.npy"),
        (lambda d: d["files"].pop("weights/device0.bin"), "files has no entry for weights/device0.bin"),
        (lambda d: d["weights"]["pools"][0].update(bytes=7), "weights/device0.bin has 200 bytes, its pool 7"),
        (lambda d: d["files"]["weights/device0.bin"].update(chunk_bytes=0), "chunk_bytes is 0"),
        (lambda d: d["programs"][0]["io"].update(next=6), r"programs\[0\]\.io\.next is 6, want less than 6"),
        (lambda d: d["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "'../x' is not a path inside"),
        (lambda d: d["files"].update({"/etc/passwd": {"bytes": 1, "sha256": ""}}), "'/etc/passwd' is not a path"),
        (lambda d: d["files"].update({"a\\b": {"bytes": 1, "sha256": ""}}), "is not a path inside"),
        (lambda d: d["files"].update({"": {"bytes": 1, "sha256": ""}}), "is not a path inside"),
        (lambda d: d["files"].update({"tables": {"bytes": 1, "sha256": ""}}), "tables: is not a file"),
        (lambda d: d["target"].update(features=["avx9", "zz"]), "this CPU lacks avx9, zz"),
        (
            lambda d: d["arenas"][0].update(cache=1 << 60),
            "the engine needs 1152921504606[0-9]+ bytes of memory, [0-9]+",
        ),
    ],
)
def test_load_refuses_a_bad_manifest(tmp_path: Path, edit: Edit, words: str) -> None:
    path = fake.make_engine(tmp_path / "e")
    fake.edit_manifest(path, edit)
    refused(path, words)


def test_load_refuses_a_manifest_whose_hash_is_wrong(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e")
    fake.edit_manifest(path, lambda d: d.update(vocab_size=10), rehash=False)
    refused(path, "engine.json: sha256 of the content is [0-9a-f]{64}, manifest_sha256 says [0-9a-f]{64}")


@pytest.mark.parametrize("name", ["tables/waits.npy", "kernel.so", "kernel.cpp", "listing.txt", "tokenizer.json"])
def test_load_refuses_damaged_files(tmp_path: Path, name: str) -> None:
    path = fake.make_engine(tmp_path / "e")
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(path, f"{name}: sha256 is [0-9a-f]{{64}}, want [0-9a-f]{{64}}")
    (path / name).write_bytes(content + b"x")
    refused(path, f"{name}: size is {len(content) + 1} bytes, want {len(content)}")
    (path / name).unlink()
    refused(path, f"{name}: missing file, want {len(content)} bytes")
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    (path / name).symlink_to(outside)
    refused(path, f"{name}: is a link to .*outside, want a file inside the engine folder")


def test_load_refuses_damaged_weights_where_it_checks_them(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e")
    weights = path / "weights" / "device0.bin"
    content = bytearray(fake.POOL)
    content[150] ^= 1
    weights.write_bytes(content)
    tilecompile.load(path).close()
    refused(path, r"device0.bin: sha256 of chunk 2 \(bytes 128 to 192\) is", check_weights=True)
    weights.write_bytes(fake.POOL)
    tilecompile.load(path, check_weights=True).close()
    weights.write_bytes(fake.POOL[:-1])
    refused(path, "device0.bin: size is 199 bytes, want 200")


Tables = dict[str, np.ndarray]


def set_field(table: str, field: str, value: int) -> Callable[[Any, Tables], None]:
    return lambda data, tables: tables[table][field].__setitem__(0, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d, t: t.update(waits=np.zeros(1, "<u4")),
            r"waits.npy: dtype is uint32, want event uint32@0, count uint32@4",
        ),
        (lambda d, t: t.update(waits=t["waits"][None]), r"waits.npy: shape is \(1, 1\), want one dimension"),
        (lambda d, t: t.update(waits=t["waits"][:0]), "instructions.npy: waits of entry 1 end at 1, want 0 at most"),
        (
            lambda d, t: t.update(streams=t["streams"][:1]),
            "streams.npy: has 1 streams, want one for each of 2 workers in each of 1 programs",
        ),
        (set_field("streams", "worker", 2), "streams.npy: worker of entry 0 is 2, want less than 2"),
        (set_field("streams", "end", 9), "instructions of entry 0 end at 9, want 3 at most"),
        (set_field("instructions", "kind", 3), "instructions.npy: kind of entry 0 is 3, want less than 3"),
        (set_field("waits", "event", 1), "waits.npy: event of entry 0 is 1, want less than 1"),
        (set_field("buffers", "arena", 4), "buffers.npy: arena of entry 0 is 4"),
        (set_field("buffers", "offset", 4090), "buffers.npy: bytes of entry 0 end at 4122, want 4096 at most"),
    ],
)
def test_load_refuses_tables_that_lead_out_of_range(tmp_path: Path, change: Any, words: str) -> None:
    refused(fake.make_engine(tmp_path / "e", change=change), words)


def test_load_refuses_a_pickled_table(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", change=lambda d, t: t.update(waits=np.array([{}], object)))
    refused(path, "waits.npy: is not a readable table")


def test_load_refuses_an_engine_that_this_machine_can_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = fake.make_engine(tmp_path / "without", weights=False)
    refused(without, "no weights: it was compiled with --no-weights")
    assert read_manifest(without).data["model"]["name"] == "fake"
    refused(fake.make_engine(tmp_path / "kernel", has_kernel=False), "has no kernel")
    path = fake.make_engine(tmp_path / "e")
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    refused(path, "the engine needs 12488 bytes of memory, 1000 are free")
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    refused(path, "kernel.so: is built for .*, this machine is riscv64")


def test_load_refuses_a_file_that_is_no_kernel(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e")
    for content in (b"not a library", b""):
        (path / "kernel.so").write_bytes(content)
        fake.edit_manifest(path, lambda d: d["files"].update({"kernel.so": file_entry(path / "kernel.so")}))
        refused(path, r"kernel.so: can't be loaded: kernel.so: ")


def test_weights_are_read_whole_into_aligned_memory(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, (40 << 20) + 123, np.uint8)
    content.tofile(tmp_path / "pool")
    area = allocate(content.size)
    assert area.ctypes.data % (2 << 20) == 0
    assert not area[:100].any()
    read_into(tmp_path / "pool", area, 2)
    assert (area == content).all()
    with pytest.raises(EngineError, match="ends after"):
        read_into(tmp_path / "pool", allocate(content.size + 1), 2)
    hasher = ChunkHasher(1 << 20)
    for begin in range(0, content.size, 777_777):
        hasher.update(content[begin : begin + 777_777])
    assert hasher.entry() == file_entry(tmp_path / "pool", chunked=True, chunk_bytes=1 << 20)

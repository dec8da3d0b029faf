"""Damaged engine folders, made from a real engine: files missing, cut, altered, exchanged, of another kind."""

from __future__ import annotations

import ast
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import damage
from support import fake_engine as fake
from support.fuzz_server import Server
from support.using import PROMPT
from tilecompile.engine.folder import exchange
from tilecompile.errors import EngineError
from tilecompile.runtime.folder.check import check_engine
from tilecompile.runtime.format import TABLES

FILES = [f"tables/{name}.npy" for name in TABLES]
FILES += [
    "chat.json",
    "engine.json",
    "graph.json",
    "kernel.so",
    "kernel.cpp",
    "listing.txt",
    "placement.json",
    "tokenizer.json",
    "weights/device0.bin",
]


def refused(path: Path, words: str) -> None:
    """Neither `load` nor `check_engine` takes the folder; both say why in one line."""
    for call in (lambda: tilecompile.load(path, check_weights=True), lambda: check_engine(path)):
        with pytest.raises(EngineError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_engine_folder_holds_the_listed_files(tiny: Path) -> None:
    found = {p.relative_to(tiny).as_posix() for p in tiny.rglob("*") if p.is_file()}
    assert found == set(FILES)
    checked = check_engine(tiny)
    assert (checked.files, checked.bytes) == (
        len(found) - 1,
        sum((tiny / name).stat().st_size for name in found if name != "engine.json"),
    )


@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    path = damage.copy(tiny, tmp_path / "e")
    content = (path / name).read_bytes()
    size = len(content)
    manifest = name == "engine.json"
    for position in (0, size // 2, size - 1):
        damage.flip(path / name, position, 0x41)
        refused(path, "engine.json: " if manifest else f"{name}: sha256 of chunk 0|{name}: sha256 is")
        damage.put(path / name, content)
    for changed in (b"", content[:-1] if not manifest else content[:-3], content[: size // 2]):
        damage.put(path / name, changed)
        refused(path, "not valid JSON" if manifest else f"{name}: size is {len(changed)} bytes, want {size}")
    (path / name).unlink()
    refused(path, "has no engine.json" if manifest else f"{name}: missing file, want {size} bytes")
    (path / name).mkdir()
    refused(path, "has no engine.json" if manifest else f"{name}: is not a file")
    (path / name).rmdir()
    (path / name).symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_bytes(content)
    refused(path, f"{name}: is a link to .*outside, want a file inside")
    (path / name).unlink()
    (path / name).symlink_to(name.rpartition("/")[2])
    refused(path, "can't be looked up")


@pytest.mark.parametrize("name", FILES)
def test_pipes_and_devices_in_place_of_files_do_not_hang(tiny: Path, tmp_path: Path, name: str) -> None:
    server = Server()
    try:
        for make in (os.mkfifo, lambda p: os.mknod(p, 0o20666, os.makedev(1, 5))):
            path = damage.copy(tiny, tmp_path / "e")
            (path / name).unlink()
            try:
                make(path / name)
            except PermissionError:
                continue  # devices are for root
            result, detail = server.attempt(path)
            assert result == "refused", detail
            (path / name).unlink()
            (tmp_path / "e").rename(tmp_path / f"old{len(list(tmp_path.iterdir()))}")
    finally:
        server.close()


def test_a_linked_engine_is_loaded_and_links_within_it_are_refused(tiny: Path, tmp_path: Path) -> None:
    """A link to a whole engine is followed; a folder of one that is a link out of it is not."""
    (tmp_path / "link").symlink_to(tiny)
    check_engine(tmp_path / "link")
    path = damage.copy(tiny, tmp_path / "e")
    (path / "tables").rename(tmp_path / "tables")
    (path / "tables").symlink_to(tmp_path / "tables")
    refused(path, "streams.npy: is a link to|tables/.*: is a link to")


def test_files_of_another_engine_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Any file of one engine in another one; also one whose sizes are the same."""
    near = damage.edit_table(damage.copy(tiny, tmp_path / "near"), "waits", lambda t: t["count"].__setitem__(0, 9))
    damage.flip(near / "weights" / "device0.bin", 5)
    damage.rehash(near, "weights/device0.bin")
    far = fake.make_engine(tmp_path / "far")
    for i, other in enumerate((near, far)):
        for name in FILES:
            path = damage.copy(tiny, tmp_path / f"{i}{name.replace('/', '-')}")
            theirs = other / name
            if theirs.exists() and theirs.read_bytes() != (path / name).read_bytes():
                damage.put(path / name, theirs.read_bytes())
                refused(path, "sha256 |size is |sha256 of chunk|missing file")
    mixed = damage.copy(tiny, tmp_path / "mixed")
    damage.put(mixed / "kernel.so", (far / "kernel.so").read_bytes())
    damage.rehash(mixed, "kernel.so")
    refused(mixed, "kernel.so: was built for max_seq_len 64, .*engine.json says 16384")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(vocab_size=299), r"kernel.so: was built for vocab_size 300, .*engine.json says 299"),
        (lambda d: d.update(max_seq_len=1 << 20), "was built for max_seq_len 16384, .* says 1048576"),
        (lambda d: d.update(scratch_bytes=64), "was built for scratch_bytes"),
        (lambda d: d["io"].update(position=d["io"]["ids"]), "was built for io"),
        (lambda d: d["kinds"].reverse(), "was built for kinds"),
        (lambda d: d.update(eos_token_ids=[5]), r"was built for eos_token_ids \[\], .* says \[5\]"),
        (lambda d: d.update(eos_token_ids=[1 << 40]), "eos_token_ids has 1099511627776, want less than"),
        (lambda d: d.update(devices=(1 << 32) - 2), "weights.pools name devices"),
        (lambda d: d.update(workers=(1 << 32) - 2), "streams, want one for each of 4294967294 workers"),
        (lambda d: d.update(workers=1 << 70), "workers is 1180591620717411303424, want a whole number"),
        (lambda d: d.update(programs=[]), "programs is empty"),
        (lambda d: d["programs"][0].update(tokens=33), r"programs\[0\].tokens is 33, want 1 to 32"),
        (lambda d: d["programs"][0].update(tokens=2), r"\.io.logits is buffer \d+ of 1200 bytes, want 2400 for "),
        (lambda d: d["programs"][0].update(on_token="draft"), r"programs\[0\].on_token is 'draft', which samples"),
        (lambda d: d.update(first_program="sample"), r"first_program is 'sample', want one of \['decode', 'verify', "),
        (lambda d: d.update(scratch_bytes=1 << 32), "scratch_bytes is 4294967296, want less than"),
        (lambda d: d["operators"].clear(), "op of entry 0 is 0, want less than 0"),
        (lambda d: d["files"].update({"a\0b": d["files"]["kernel.so"]}), r"'a\\x00b' is not a path inside"),
        (lambda d: d["files"].update({"\ud800": d["files"]["kernel.so"]}), "can't be looked up"),
        (lambda d: d["files"].update({"x" * 300: d["files"]["kernel.so"]}), "can't be read: File name too long"),
        (lambda d: d["files"].update({"engine.json/x": d["files"]["kernel.so"]}), "missing file"),
        (lambda d: d["files"]["kernel.so"].update(chunk_bytes="x"), "nothing"),
        (lambda d: d["files"]["weights/device0.bin"].update(chunk_bytes=1 << 62), "nothing"),
        (lambda d: d["files"]["weights/device0.bin"].update(chunk_bytes=1), "has 1 chunk hashes, want"),
    ],
)
def test_a_wrong_manifest_with_a_correct_hash_is_refused(tiny: Path, tmp_path: Path, change: Any, words: str) -> None:
    path = damage.copy(tiny, tmp_path / "e")
    damage.edit_manifest(path, change)
    if words == "nothing":
        check_engine(path)
    else:
        refused(path, words)


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("operands", "offset", 4, "kernel.so: was built for other tables: sha256 of all addresses is"),
        ("operands", "buffer", 1, "was built for other tables"),
        ("instructions", "tile", 9, "was built for other tables"),
        ("instructions", "kind", 2, "was built for other tables"),
        ("instructions", "operand_count", 0, "was built for other tables"),
        ("tape", "stride", 1 << 40, "was built for other tables"),
        ("tape", "bytes", 1, "was built for other tables"),
        ("buffers", "rows", 77, "was built for other tables"),
        ("tape", "offset", (1 << 64) - 1, "tape.npy: offset of entry 0 is 18446744073709551615, want less than"),
        ("buffers", "bytes", (1 << 64) - 1, "buffers.npy: bytes of entry 0 is 18446744073709551615, want less than"),
        ("streams", "begin", 1, "streams.npy: instruction 0 is not in exactly one stream"),
        ("instructions", "kind", 0, "instructions.npy: program 0 has 2 sinks, want 1"),
        ("instructions", "op", 1 << 20, "instructions.npy: op of entry 0 is 1048576, want less than"),
    ],
)
def test_a_wrong_table_with_a_correct_hash_is_refused(
    tiny: Path, tmp_path: Path, name: str, field: str, value: int, words: str
) -> None:
    path = damage.copy(tiny, tmp_path / "e")
    refused(damage.edit_table(path, name, lambda table: table[field].__setitem__(0, value)), words)


def test_a_wrong_table_header_with_a_correct_hash_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = damage.copy(tiny, tmp_path / "e")
    name = "tables/waits.npy"
    content = (path / name).read_bytes()
    archive = io.BytesIO()
    np.savez(archive, waits=damage.table(tiny, "waits"))
    count = str(len(damage.table(tiny, "waits"))).encode()
    for changed in (
        archive.getvalue(),
        content.replace(b"(" + count + b",)", b"(9" + b"9" * len(count) + b",)"[: len(count) + 2]),
        content.replace(b"{'descr'", b"{' desc'"),
        b"",
    ):
        damage.put(path / name, changed)
        damage.rehash(path, name)
        refused(path, r"waits.npy: is not a readable table: \S")


def test_a_pickle_with_a_correct_hash_is_never_executed(tiny: Path, tmp_path: Path) -> None:
    """A pickle with the right hash isn't opened, and nothing in the package could open one."""

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "executed"),))

    content = io.BytesIO()
    np.save(content, np.array([Payload()], object), allow_pickle=True)
    path = damage.copy(tiny, tmp_path / "e")
    damage.put(path / "tables" / "waits.npy", content.getvalue())
    damage.rehash(path, "tables/waits.npy")
    refused(path, "waits.npy: is not a readable table: Object arrays cannot be loaded")
    assert not (tmp_path / "executed").exists()
    root = Path(tilecompile.__file__).parent
    folders = (root, *(root / name for name in ("runtime", "models", "schedules")))  # rglob doesn't follow links
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(sources) > 50
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & {n.split(".")[0] for n in names}, source
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), source
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is (node.arg == "weights_only"), source


def test_an_engine_replaced_while_it_loads_is_one_of_both_or_refused(
    tiny: Path, tmp_path: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines are swapped continually: a load returns one of them or states what happened."""
    place = damage.copy(tiny, tmp_path / "a")
    other = damage.edit_table(damage.copy(tiny, tmp_path / "b"), "waits", lambda t: t["count"].__setitem__(3, 7))
    stop = threading.Event()

    def turn() -> None:
        while not stop.is_set():
            assert exchange(place, other)
            stop.wait(0.003)

    thread = threading.Thread(target=turn)
    thread.start()
    said = set()
    try:
        for _ in range(60):
            try:
                with tilecompile.load(place) as engine:
                    first = int(engine.tables["waits"]["count"][3])
                    if first != 7:
                        assert engine.generate(PROMPT, 5).tokens == tokens[:5]
            except EngineError as error:
                said.add(str(error).partition(": ")[2][:20])
    finally:
        stop.set()
        thread.join()
    assert all(words.startswith(("sha256 is", "was replaced while")) for words in said), said

"""The runtime by itself: engine folders, requests, text, on a stand-in kernel."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecompile
from support import fake_engine as fake
from tilecompile.errors import EngineError, EngineStalled, InputError
from tilecompile.runtime import machine
from tilecompile.runtime.cpu.memory import allocate, read_into
from tilecompile.runtime.folder.files import ChunkHasher, file_entry
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.runtime.generate import Output
from tilecompile.runtime.text import Text

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("fake") / "engine")


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("slow") / "engine", step_us=20_000)


@pytest.fixture
def engine(folder: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(folder) as engine:
        yield engine


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    """The message, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


# Requests


def test_generate_returns_the_greedy_tokens_and_counts_them(engine: tilecompile.Engine) -> None:
    for prompt, count in ((PROMPT, 10), ([7], 1), (np.array([4, 298], np.int64), 30)):
        out = engine.generate(prompt, max_new_tokens=count)
        assert out.tokens == fake.greedy(list(prompt), count)
        assert out.stats.prompt_tokens == len(prompt)
        assert out.stats.steps == len(prompt) + len(out.tokens) - 1
        assert out.stats.finish == "length"
        assert out.stats.ms_per_step > 0
    stats = engine.stats
    assert (stats.launches, stats.requests, stats.prompt_tokens, stats.tokens) == (1, 3, 6, 41)
    assert stats.steps == 6 + 41 - 3


def test_generation_ends_at_a_stop_id(engine: tilecompile.Engine) -> None:
    before = next(i for i in range(fake.VOCAB) if fake.next_id(i) == fake.EOS)
    out = engine.generate([before], max_new_tokens=10)
    assert out.tokens == [fake.EOS]
    assert out.text == ""
    assert out.stats.finish == "stop"
    assert list(engine.stream([before])) == [fake.EOS]


def test_generation_ends_where_the_context_is_full(engine: tilecompile.Engine) -> None:
    out = engine.generate(PROMPT, max_new_tokens=None)
    assert len(out.tokens) == fake.MAX_SEQ_LEN - len(PROMPT) + 1
    assert out.stats.finish == "context"
    assert len(engine.generate([1] * fake.MAX_SEQ_LEN, None).tokens) == 1


def test_score_returns_the_logits_of_every_position(engine: tilecompile.Engine) -> None:
    logits = engine.score(PROMPT)
    assert logits.dtype == np.float32
    assert logits.shape == (3, fake.VOCAB)
    for i, token in enumerate(PROMPT):
        assert logits[i, fake.next_id(token)] == 1 + i
        assert (np.delete(logits[i], fake.next_id(token)) == token).all()


def test_stream_gives_the_tokens_and_text_of_generate(engine: tilecompile.Engine) -> None:
    out = engine.generate("Hé", 40)
    stream = engine.stream("Hé", 40)
    pieces, tokens = [], []
    for token in stream:
        tokens.append(token)
        pieces.append(stream.piece)
    assert tokens == out.tokens
    assert "".join(pieces) + stream.piece == out.text
    assert stream.stats is not None
    assert stream.stats.finish == "length"
    assert list(stream) == []


def test_unused_stream_does_not_hold_the_engine(engine: tilecompile.Engine) -> None:
    stream = engine.stream(PROMPT)
    assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
    assert next(stream) == fake.next_id(3)


@pytest.mark.parametrize("how", ["close", "with", "drop", "exception"])
def test_a_stream_that_is_given_up_aborts_its_request(slow_folder: Path, how: str) -> None:
    with tilecompile.load(slow_folder) as engine:
        begin = time.perf_counter()
        stream = engine.stream(PROMPT, None)
        assert next(stream) == fake.next_id(3)
        if how == "close":
            stream.close()
            assert stream.stats is not None
            assert stream.stats.finish == "aborted"
        elif how == "with":
            with stream:
                next(stream)
        elif how == "drop":
            del stream
            gc.collect()
        else:
            with pytest.raises(RuntimeError), stream:
                raise RuntimeError("of the caller")
        assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
        assert time.perf_counter() - begin < 1
        assert engine.stats.steps < 16
        assert engine.stats.launches == 1


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
def test_an_interrupt_ends_the_request_and_leaves_the_engine_usable(slow_folder: Path, call: str) -> None:
    with tilecompile.load(slow_folder) as engine:
        calls: dict[str, Callable[[], Any]] = {
            "generate": lambda: engine.generate([1] * 30, None),
            "stream": lambda: list(engine.stream([1] * 30, None)),
            "score": lambda: engine.score([1] * 60),
        }
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        begin = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        assert time.perf_counter() - begin < 0.9
        steps = engine.stats.steps
        assert steps < 30
        assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
        assert engine.stats.steps == steps + 3, "the first id of the prompt is in the caches"


def test_a_second_request_is_refused_while_one_runs(slow_folder: Path) -> None:
    with tilecompile.load(slow_folder) as engine:
        results: list[Output] = []
        thread = threading.Thread(target=lambda: results.append(engine.generate(PROMPT, 10)))
        thread.start()
        time.sleep(0.05)
        for call in (engine.generate, engine.score, lambda ids: next(engine.stream(ids))):
            with pytest.raises(EngineError, match="a request is running") as error:
                call(PROMPT)
            one_line(error)
        thread.join()
        assert results[0].tokens == fake.greedy(PROMPT, 10)
        stream = engine.stream(PROMPT)
        next(stream)
        with pytest.raises(EngineError, match="close its stream"):
            engine.generate(PROMPT)
        stream.close()
        engine.generate(PROMPT, 1)


def test_close_during_a_request_ends_it_with_an_error(slow_folder: Path) -> None:
    engine = tilecompile.load(slow_folder)
    errors: list[str] = []

    def score() -> None:
        try:
            engine.score([1] * 60)
        except EngineError as error:
            errors.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    time.sleep(0.1)
    engine.close()
    thread.join(5)
    assert errors == ["the engine is closed"]
    engine.close()
    for call in (engine.generate, engine.score, lambda ids: next(engine.stream(ids))):
        with pytest.raises(EngineError, match="the engine is closed"):
            call(PROMPT)
    assert engine.stats.launches == 1


def test_a_stall_names_the_waiting_task_and_the_next_request_runs(engine: tilecompile.Engine) -> None:
    wanted = r"worker 1 waits before task k2_linear of layers\.0\.second, tile \(4, 0, 0, 0\).*event 0, have 3, want 4"
    for call in (engine.generate, engine.score, lambda ids: list(engine.stream(ids))):
        with pytest.raises(EngineStalled, match=wanted) as error:
            call([1, fake.VOCAB - 1])
        one_line(error)
    assert engine.generate(PROMPT, 5).tokens == fake.greedy(PROMPT, 5)
    assert engine.stats.launches == 4
    assert engine.stats.steps == 3 + 7


def test_an_engine_that_is_dropped_leaves_another_running(folder: Path, slow_folder: Path) -> None:
    first, second = tilecompile.load(folder), tilecompile.load(slow_folder)
    assert first.generate(PROMPT, 3).tokens == second.generate(PROMPT, 3).tokens
    count = threading.active_count()
    del first
    gc.collect()
    assert second.generate(PROMPT, 3).tokens == fake.greedy(PROMPT, 3)
    assert threading.active_count() == count


def test_replaced_kernel_is_the_one_that_runs(tmp_path: Path) -> None:
    """The system's loader would return the first library for the same path."""
    path = fake.make_engine(tmp_path / "engine")
    old = tilecompile.load(path)
    path.rename(tmp_path / "old")
    fake.make_engine(tmp_path / "engine", change=lambda data, tables: None)
    new = tilecompile.load(path)
    assert old.cpu.library._handle != new.cpu.library._handle


# Bad input


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompt is empty"),
        ("", "prompt is empty"),
        ([1] * 65, "has 65 tokens, the engine's max_seq_len is 64"),
        ([1, 300], "id 300 at position 1 is outside the vocabulary, want 0 to 299"),
        ([-1], "id -1 at position 0 is outside"),
        ([1, 2.5], "position 1 is 2.5, want a whole number"),
        (b"abc", "prompt is bytes"),
        (3, "prompt is a int"),
    ],
)
def test_a_bad_prompt_is_refused_by_every_call(engine: tilecompile.Engine, prompt: Any, words: str) -> None:
    for call in (engine.generate, engine.score, engine.stream):
        with pytest.raises(InputError, match=words) as error:
            call(prompt)
        one_line(error)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_bad_max_new_tokens_is_refused(engine: tilecompile.Engine, value: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens is"):
        engine.generate(PROMPT, value)


@pytest.mark.parametrize("threads", [0, 3, -1, 1.0, True])
def test_a_bad_number_of_threads_is_refused(folder: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="want 1 to 2"):
        tilecompile.load(folder, threads=threads)


def test_stats_state_the_threads_of_load(folder: Path) -> None:
    with tilecompile.load(folder, threads=1) as engine:
        assert engine.stats.threads == 1


def test_an_engine_without_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    with tilecompile.load(fake.make_engine(tmp_path / "e", text=False)) as engine:
        assert engine.generate(PROMPT, 3).text is None
        assert len(list(engine.stream(PROMPT, 3))) == 3
        with pytest.raises(InputError, match="has no tokenizer"):
            engine.generate("text")


def test_load_refuses_a_kernel_that_can_not_be_launched(folder: Path) -> None:
    with pytest.raises(EngineError, match="can't be launched"):
        tilecompile.load(folder, stall_seconds=0.001)


# Engine folders


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


# Text


@pytest.fixture(scope="module")
def text(folder: Path) -> Text:
    return Text(folder / "tokenizer.json")


def check_pieces(text: Text, ids: list[int]) -> list[str]:
    pieces = text.pieces()
    out = [pieces.push(token) for token in ids]
    out.append(pieces.finish())
    assert "".join(out) == text.decode(ids)
    return out


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_streamed_text_has_no_broken_characters(text: Text, string: str) -> None:
    pieces = check_pieces(text, text.encode(string))
    assert "".join(pieces) == string
    assert "\ufffd" in string or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, fake.VOCAB - 1)))
def test_streamed_text_of_any_ids_is_the_decoded_text(text: Text, ids: list[int]) -> None:
    check_pieces(text, ids)


def test_streamed_text_holds_back_incomplete_characters(text: Text) -> None:
    assert check_pieces(text, list("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]
    assert check_pieces(text, list("😀".encode()[:3])) == ["", "", "", "\ufffd"]
    assert check_pieces(text, [fake.EOS, 97, 10**6]) == ["", "a", "", ""]


def test_streamed_text_of_other_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"\u2581In": 0, "\u2581the": 1, "\u2581beginning": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path / "tokenizer.json")
    assert check_pieces(text, text.encode("In the beginning the")) == ["In", " the", " beginning", " the", ""]


def test_text_refuses_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="is not a readable tokenizer"):
        Text(tmp_path / "tokenizer.json")


def test_runtime_imports_neither_the_compiler_nor_a_driver() -> None:
    names = "('torch', 'tokenizers', 'cuda', 'rich')"
    code = f"import sys, tilecompile.runtime.engine; print([m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""tilecompile warmup: marks, phases, peers as commands, what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import fake_engine as fake
from support.commands import refused, run
from support.paths import TINY_CHECKPOINT
from support.warming import GOOD, peer, program, warmup
from tilecompile.compile import compile_model
from tilecompile.measure.warmup import measure
from tilecompile.measure.warmup.marks import MARKS
from tilecompile.measure.warmup.measure import PHASES
from tilecompile.measure.warmup.systems import SYSTEMS, System
from tilecompile.options import CompileOptions


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine"))


# runs


def test_warmup_measures_the_engine_and_a_command(engine: str, tmp_path: Path) -> None:
    report = warmup(engine, "--peer", f"other={program(tmp_path, GOOD)} {{ids}}", "--threads", "1")
    ours, other = report["systems"]
    assert (ours["name"], ours["token"], ours["warm"]["ratio"]) == ("tilecompile", fake.next_id(4), 1.0)
    assert (other["name"], other["token"]) == ("other", 5)
    for state in ("warm", "cold"):
        if "ratio" in other[state]:
            want = other[state]["seconds"] / ours[state]["seconds"]
            assert other[state]["ratio"] == pytest.approx(want, abs=0.001)
    for system in (ours, other):
        phases = system["warm"]["phases"]
        assert list(phases) == list(PHASES)
        assert sum(v for v in phases.values() if v is not None) == pytest.approx(system["warm"]["seconds"], abs=1e-4)
        assert system["warm"]["runs"] == 1
    assert ours["warm"]["phases"]["compile"] is None
    assert 0.02 < ours["warm"]["seconds"] < 20
    phases = other["warm"]["phases"]
    assert phases["load"] >= 0.05
    assert phases["compile"] >= 0.1
    assert phases["first_step"] >= 0.02
    assert (report["threads"], report["prompt_ids"], report["compile_seconds"]) == (1, [1, 2, 3, 4], 1.5)
    assert report["date"].startswith("20")


def test_the_table_fits_80_columns_and_shows_every_system(engine: str, tmp_path: Path) -> None:
    result = run("warmup", engine, "--repeat", "1", "--peer", f"a-name-of-18-chars={program(tmp_path, GOOD)} {{ids}}")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines()[:6])) <= 80
    for words in (
        r"tilecompile +warm .* 1\.0\n",
        r"a-name-of-18-chars +warm ",
        "compiled offline in 1.50 s, once",
        "its first token is 5",
    ):
        assert re.search(words, result.stdout), result.stdout
    assert "tilecompile, warm" in result.stderr
    assert "a-name-of-18-chars, first" in result.stderr


def test_runs_are_repeated_unless_they_are_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System("a", tuple(f"{program(tmp_path, GOOD)} {{ids}}".split()), "")

    def runs() -> list[int]:
        found = measure.measure(system, {"ids": "1,2"}, [], 3, lambda *_: None)
        assert found["warm"]["spread"][0] <= found["warm"]["seconds"] <= found["warm"]["spread"][1]
        return [found[state]["runs"] for state in ("warm", "cold") if "runs" in found[state]]

    assert set(runs()) == {3}
    monkeypatch.setattr(measure, "ONCE_SECONDS", 0.01)
    assert set(runs()) == {1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("print(json.dumps({'error': 'no' + chr(10) + 'luck'}))", "bad: no luck"),
        ("sys.exit('gone wrong')", "bad: ended before its first token: exit code 1: gone wrong"),
        ("mark('imported')", "bad: ended before its first token: exit code 0"),
        ("mark('loaded'); mark('imported'); mark('first_token')", "bad: its marks are not in order"),
        ('print(\'{"mark": "first_token", "time": 0}\')', "bad: its marks are not in order"),
        ('print(\'{"mark": "first_token", "time": "now"}\')', "bad: ended before its first token"),
    ],
)
def test_a_command_that_fails_says_so(tmp_path: Path, text: str, words: str) -> None:
    system = System("bad", tuple(program(tmp_path, text).split()), "")
    with pytest.raises(measure.SystemFailed) as caught:
        measure.run(system, {}, tmp_path)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_peer_that_fails_is_reported(engine: str, tmp_path: Path) -> None:
    bad = peer(warmup(engine, "--peer", f"bad={program(tmp_path, 'sys.exit(3)')}"), "bad")
    assert bad["unavailable"].startswith("bad: ended before its first token: exit code 3")
    assert "warm" not in bad


def test_marks_that_are_left_out_fall_to_the_next(engine: str, tmp_path: Path) -> None:
    command = program(tmp_path, "time.sleep(0.05); mark('first_token')")
    report = warmup(engine, "--peer", f"short={command}")
    short = peer(report, "short")
    assert short["token"] is None
    assert short["warm"]["phases"] == {**dict.fromkeys(PHASES), "first_step": short["warm"]["seconds"]}
    assert short["cold"] == {"unavailable": "the command doesn't report the files that it reads"}


FAKE_PACKAGES = {
    "vllm": """
        class SamplingParams:
            def __init__(self, temperature, max_tokens, detokenize):
                assert (temperature, max_tokens, detokenize) == (0, 1, False)
        class Out:
            def __init__(self, token):
                self.outputs = [self]
                self.token_ids = [token]
        class LLM:
            def __init__(self, model, skip_tokenizer_init, max_model_len):
                assert skip_tokenizer_init and open(model + "/config.json")
                print("noise")
            def generate(self, prompts, params):
                return [Out(prompts[0]["prompt_token_ids"][-1] + 20)]
    """,
    "sglang": """
        class Engine:
            def __init__(self, model_path, skip_tokenizer_init):
                assert skip_tokenizer_init and open(model_path + "/config.json")
            def generate(self, input_ids, sampling_params):
                assert sampling_params == {"temperature": 0, "max_new_tokens": 1}
                return {"output_ids": [input_ids[-1] + 30]}
    """,
}


def test_vllm_and_sglang_where_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the packages."""
    with monkeypatch.context() as absent:
        absent.setattr(importlib.util, "find_spec", lambda _: None)
        assert SYSTEMS["vllm"].unavailable() == "not installed: vllm"
        assert SYSTEMS["sglang"].unavailable() == "not installed: sglang"
    for name, text in FAKE_PACKAGES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, token in (("vllm", 24), ("sglang", 34)):
        assert SYSTEMS[name].unavailable() is None
        found = measure.run(SYSTEMS[name], {"model": str(TINY_CHECKPOINT), "ids": "1,2,3,4"}, tmp_path)
        assert found.token == token
        assert found.files is not None
        assert str(tmp_path / f"{name}.py") in found.files


# On a GPU, as far as it can be tested without one.


def test_a_system_for_gpus_is_refused_beside_a_cpu_engine(engine: str) -> None:
    line = refused("warmup", engine, "--against", "transformers,cuda-graphs")
    assert f"--against: cuda-graphs runs on a GPU, and {engine} is for a CPU" in line


def test_peers_of_an_engine_for_gpus_fail_without_a_gpu(tmp_path: Path) -> None:
    values = {"model": str(TINY_CHECKPOINT), "ids": "1,2,3,4", "threads": "1", "dtype": "bf16", "device": "cuda"}
    with pytest.raises(measure.SystemFailed, match=r"^cuda-graphs: torch has no GPU here$"):
        measure.run(SYSTEMS["cuda-graphs"], values, tmp_path)


def test_a_captured_step_comes_to_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA graphs that runs the captured call again, after the prompt's own tokens."""
    from tilecompile.measure.warmup import run_transformers as program

    calls: list[Callable[[], None]] = []

    class Graph:
        def replay(self) -> None:
            calls[-1]()

    def capture(step: Any, first: Any, reset: Callable[[], None]) -> Any:
        capturing = False

        def recorded(token: Any) -> Any:
            result = None if capturing else step(token)
            if capturing:
                result = torch.zeros_like(token)
                calls.append(lambda: result.copy_(step(token)))  # capturing runs nothing
            return result

        @contextmanager
        def graph(_: Graph) -> Iterator[None]:
            nonlocal capturing
            capturing = True
            yield
            capturing = False

        monkeypatch.setattr(torch.cuda, "graph", graph)
        return real(recorded, first, reset)

    real = program.capture
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(program, "capture", capture)
    threads = torch.get_num_threads()
    tokens = {}
    for how in ("eager", "graph"):
        marks: list[tuple[Any, ...]] = []
        ids = "11,205,7,480,33"
        program.main(
            lambda *mark, seen=marks: seen.append(mark), str(TINY_CHECKPOINT), ids, str(threads), "f32", "cpu", how
        )
        assert [mark[0] for mark in marks] == [name for name in MARKS if name != "compiled" or how == "graph"]
        tokens[how] = marks[-1][1]
    assert tokens["graph"] == tokens["eager"]
    assert len(calls) == 1


@pytest.mark.slow
def test_peers_get_the_weights_that_an_engine_drew(tiny: Path) -> None:
    report = warmup(str(tiny), "--against", "transformers")
    assert peer(report, "transformers")["token"] == report["systems"][0]["token"]
    assert "checkpoint" not in report


# what is refused


def test_bad_arguments_are_refused_in_one_line(engine: str, tmp_path: Path) -> None:
    assert "is not there, want an engine folder" in refused("warmup", str(tmp_path / "none"))
    assert "threads is 3, want 1 to 2" in refused("warmup", engine, "--threads", "3")
    assert "--repeat is 0, want 1 at least" in refused("warmup", engine, "--repeat", "0")
    unknown = "'llama' is unknown, want transformers, torch-compile, torch-compile-kept, cuda-graphs, vllm, sglang"
    assert unknown in refused("warmup", engine, "--against", "llama")
    twice = refused("warmup", engine, "--peer", "a=true", "--peer", "a=true")
    assert "'a' is named twice" in twice
    for text in (",", " "):
        wanted = f"--against is '{text}', want peers with commas between them"
        assert wanted in refused("warmup", engine, "--against", text)
    assert "'tilecompile' is named twice" in refused("warmup", engine, "--peer", "tilecompile=true")
    for text in ("a", "=true", "a="):
        assert f"--peer is '{text}', want NAME=COMMAND" in refused("warmup", engine, "--peer", text)
    assert "No closing quotation" in refused("warmup", engine, "--peer", "a='")
    assert f"the folder {tmp_path / 'no'} is not there" in refused(
        "warmup", engine, "--html", str(tmp_path / "no" / "a.html")
    )
    assert "is a folder, want a file" in refused("warmup", engine, "--html", str(tmp_path))
    assert "is a device or a pipe, want a file" in refused("warmup", engine, "--html", "/dev/null")


def test_an_engine_without_its_checkpoint_is_refused(tmp_path: Path, engine: str) -> None:
    def change(data: dict[str, Any], _: object) -> None:
        data["weights"]["source"] = "checkpoint"
        data["model"]["config"] = json.loads((TINY_CHECKPOINT / "config.json").read_text())

    path = fake.make_engine(tmp_path / "engine", change=change)
    words = "its weights come from a checkpoint, and peers need them too: give --model FOLDER"
    assert words in refused("warmup", str(path), "--against", "transformers")
    assert "--model nowhere: want a folder" in refused("warmup", str(path), "--model", "nowhere")
    absent = warmup(engine, "--peer", "a=no-such-program-here {model}")
    assert peer(absent, "a")["unavailable"] == "no program no-such-program-here"


@pytest.mark.slow
def test_the_tiny_checkpoint_starts_sooner_than_its_peers(tmp_path: Path) -> None:
    compile_model(CompileOptions(str(TINY_CHECKPOINT), tmp_path / "engine"))
    report = warmup(
        str(tmp_path / "engine"),
        "--against",
        "transformers,torch-compile",
        "--model",
        str(TINY_CHECKPOINT),
        "--repeat",
        "3",
    )
    assert len({system["token"] for system in report["systems"]}) == 1
    assert peer(report, "transformers")["warm"]["ratio"] >= 5
    assert peer(report, "torch-compile")["warm"]["ratio"] >= 20
    assert peer(report, "torch-compile")["warm"]["phases"]["compile"] > 1

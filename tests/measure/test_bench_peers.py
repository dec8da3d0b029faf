"""bench beside peers: commands that a user gives, engines for GPUs, and what is refused where."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from support.bench import refused, run, shorten_requests
from support.engines import Built
from support.paths import EXAMPLES, ROOT
from tilecompile.errors import InputError
from tilecompile.measure import peers, roof
from tilecompile.measure.bench import measure, rounds
from tilecompile.measure.bench.command import STEPS, command_peers
from tilecompile.runtime.folder.manifest import Manifest, read_manifest
from tilecompile.runtime.load import load
from tilecompile.runtime.progress import silent
from tilecompile.schedules.machine import load_machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements."""
    monkeypatch.setattr(roof, "SECONDS", 5e-4)
    monkeypatch.setattr(rounds, "ROUND_MS", 3.0)
    shorten_requests(monkeypatch)


def python(code: str, *arguments: str) -> str:
    """A --peer command that runs some Python."""
    return shlex.join([sys.executable, "-S", "-c", code, *arguments])


ECHO = (
    "import json, sys; print('some noise'); print('[1]');"
    "print(json.dumps({'ms_per_step': 2.5, 'first_token_ms': 40})); print(sys.argv[1:], file=sys.stderr)"
)


def test_a_command_is_a_peer(tiny: Path) -> None:
    command = python(ECHO, "{prompt_tokens}", "{new_tokens}", "{other}")
    args = (tiny, "--rounds", 1, "--context", 400, "--peer", f"mine={command}")
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["peers"]
    assert (found["name"], found["ms_per_step"], found["first_token_ms"]) == ("mine", 2.5, 40.0)
    assert found["ratio"] == 2.5 / found["engine_ms_per_step"]
    *_, prompt, new, other = shlex.split(found["settings"]["command"])
    assert (int(new), other) == (STEPS + 1, "{other}")
    # Steps follow the first token, so the first of them sees one position more than the prompt has.
    assert int(prompt) + 1 + (STEPS // 2) == 400
    shown = run(*args)
    assert "mine" in shown.stdout
    assert "mine: the engine before it" in shown.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('out of\\nmemory')", "printed no line with ms_per_step and first_token_ms: exit code 1"),
        ("print('no JSON')", "printed no line with ms_per_step and first_token_ms: exit code 0: nothing on stderr"),
        ("print('{\"ms_per_step\": 3}')", "first_token_ms is None, want milliseconds"),
        ('print(\'{"ms_per_step": "fast", "first_token_ms": 1}\')', "ms_per_step is 'fast', want milliseconds"),
        ('print(\'{"ms_per_step": 0, "first_token_ms": 1}\')', "ms_per_step is 0, want milliseconds"),
        ('print(\'{"ms_per_step": NaN, "first_token_ms": 1}\')', "ms_per_step is nan, want milliseconds"),
        ('print(\'{"error": "no such\\\\nmodel"}\')', "no such model"),
    ],
)
def test_a_command_that_fails_says_so(tiny: Path, code: str, words: str) -> None:
    (peer,) = command_peers([f"bad={python(code)}"])
    with pytest.raises(peers.PeerError) as caught:
        peer.measure(read_manifest(tiny), None, 64, silent)
    assert str(caught.value).startswith("peer bad: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failing_command_costs_no_other_figure(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    options = ("--peer", "gone=no-such-program", "--peer", f"text={text}", "--peer", f"good={python(ECHO)}")
    gone, other, good = json.loads(run(tiny, "--rounds", 1, *options, "--json").stdout)["peers"]
    assert gone == {"name": "gone", "error": "no program no-such-program"}
    assert other == {"name": "text", "error": "peer text: can't be started: Exec format error"}
    assert good["ms_per_step"] == 2.5


def test_a_command_that_names_the_model_needs_a_checkpoint(built: Callable[[str], Built]) -> None:
    engine = built("odd").path
    line = refused(engine, "--peer", "vllm=python x.py {model}")
    assert "peer vllm: its command names {model}: give --model FOLDER, a checkpoint" in line
    line = refused(engine, "--peer", "vllm=python x.py {model}", "--model", EXAMPLES)
    assert f"--model {EXAMPLES}: want a folder with config.json" in line
    folder = engine.parent / "model"
    (peer,) = command_peers([f"mine={python(ECHO, '{model}')}"])
    found = peer.measure(read_manifest(engine), str(folder), 64, silent)
    assert shlex.split(found["settings"]["command"])[-1] == str(folder)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--peer", "vllm"], "--peer is 'vllm', want NAME=COMMAND"),
        (["--peer", "=python"], "--peer is '=python', want NAME=COMMAND"),
        (["--peer", "a='"], '--peer "a=\'": No closing quotation'),
        (["--peer", "a=x", "--peer", "a=y"], "'a' is named twice, want every name once"),
        (["--against", "transformers", "--peer", "transformers=x"], "'transformers' is named twice"),
        (["--against", "cuda-graphs"], "peer cuda-graphs runs on a GPU, and"),
        (["--machine", "h200"], "--machine says what a GPU's memory gives, and"),
        (["--model", "x", "--peer", "a=python"], "--model says where peers get the weights"),
    ],
)
def test_bad_peer_options_are_refused(tiny: Path, args: list[str], line: str) -> None:
    assert line in refused(tiny, *args)


# The examples, over packages that stand in for the real ones.


class Slow:
    """A stand-in engine: 20 ms to the first token, 2 ms for each other."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.now = 0.0

    def clock(self) -> float:
        """Seconds that generating took so far."""
        return self.now

    def work(self, tokens: int) -> None:
        """Generates."""
        self.now += 20e-3 + 2e-3 * (tokens - 1)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_the_example_programs_report_their_steps(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Slow] = []

    class Llm(Slow):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            made.append(self)

        def generate(self, prompts: Any = None, sampling: Any = None, **rest: Any) -> None:
            sampling = sampling or rest["sampling_params"]
            ids = prompts[0]["prompt_token_ids"] if prompts else rest["input_ids"]
            assert len(ids) == 100
            assert sampling["ignore_eos"]
            assert sampling["temperature"] == 0
            self.work(sampling.get("max_tokens") or sampling["max_new_tokens"])

        def shutdown(self) -> None:
            pass

    module = ModuleType(name)
    module.__dict__.update(LLM=Llm, SamplingParams=dict, Engine=Llm)
    monkeypatch.setitem(sys.modules, name, module)
    program: dict[str, Any] = {"__name__": "example"}
    exec(compile((EXAMPLES / "peers" / f"{name}_steps.py").read_text(), name, "exec"), program)
    program["time"] = SimpleNamespace(perf_counter=lambda: made[0].clock())
    program["main"]("folder", 100, 65, 8)
    found = json.loads(capsys.readouterr().out)
    assert found == {"ms_per_step": pytest.approx(2), "first_token_ms": pytest.approx(20)}
    given = made[0].arguments
    assert given.get("model", given.get("model_path")) == "folder"
    assert given.get("tensor_parallel_size", given.get("tp_size")) == 8
    assert given.get("max_model_len", given.get("context_length")) == 165


# Engines for GPUs. Their kernel is a CPU's here; what is tested is what bench does around it.


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes bench take every engine for one on a GPU; the engines that it loads."""
    loaded: list[Any] = []

    def remember(*args: Any, **rest: Any) -> Any:
        loaded.append(load(*args, **rest))
        return loaded[-1]

    monkeypatch.setattr(measure, "device_of", lambda manifest: "cuda")
    monkeypatch.setattr(peers, "device_of", lambda manifest: "cuda")
    monkeypatch.setattr(measure, "load", remember)
    monkeypatch.setattr(measure, "stated_roof", lambda *_: roof.StatedRoof("a card, data sheet", 4800.0))
    return loaded


def test_peers_on_a_gpu_run_after_the_engine_is_closed(
    tiny: Path, on_gpu: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    def bench(name: str, **rest: Any) -> dict[str, Any]:
        closed.append(on_gpu[-1]._requests.kernel.closed)
        return {"name": name, "ms_per_step": 8.0, "spread": [7.0, 9.0], "settings": {}}

    monkeypatch.setattr(peers, "bench", bench)
    args = (
        tiny,
        "--rounds",
        3,
        "--context",
        40,
        "--against",
        "transformers,cuda-graphs",
        "--peer",
        f"a={python(ECHO)}",
    )
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert closed == [True, True]
    assert len(on_gpu) == 1
    assert [peer["name"] for peer in found["peers"]] == ["transformers", "cuda-graphs", "a"]
    for peer in found["peers"]:
        assert peer["engine_ms_per_step"] == found["ms_per_step"]
        assert peer["ratio"] == peer["ms_per_step"] / found["ms_per_step"]
    assert (found["read_kernel"], found["read_bandwidth_gbs"]) == ("a card, data sheet", 4800.0)
    assert found["roof_fraction"] == pytest.approx(found["bytes_per_step"] / 1e6 / found["ms_per_step"] / 4800, rel=0.5)
    assert len(found["rounds"]) == 3
    shown = run(*args)
    assert "4800 GB/s: a card, data sheet" in shown.stdout


def test_options_for_cpus_are_refused_on_a_gpu(tiny: Path, on_gpu: list[Any]) -> None:
    assert "--ablate changes a CPU's kernel, and" in refused(tiny, "--ablate")
    assert "--threads is for CPUs, and" in refused(tiny, "--threads", "2")


def test_the_stated_roof_is_that_of_the_engines_machine(tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny)
    data = {**manifest.data, "target": {"name": "sm_90a", "isa": "sm_90a", "features": []}, "machine": "h200"}
    gpu = Manifest(manifest.folder, {**data, "devices": 8})
    assert roof.stated_roof(gpu, None, 8) == roof.StatedRoof("h200, data sheet", 8 * 4800)
    with pytest.raises(InputError, match=r"--machine b200 is for sm_100a, .* for sm_90a"):
        roof.stated_roof(gpu, "b200", 8)
    text = (ROOT / "schedules" / "machines" / "h200.toml").read_text()
    measured = text.replace("[simulator]\n", '[simulator]\ncalibrated = "2026-11-21 by a test"\n').replace(
        "4416", "4000"
    )
    (tmp_path / "mine.toml").write_text(measured)
    assert load_machine(str(tmp_path / "mine.toml")).simulator
    found = roof.stated_roof(gpu, str(tmp_path / "mine.toml"), 1)
    assert found == roof.StatedRoof("h200, calibrated: 2026-11-21 by a test", 4000)

"""The command line on a stand-in engine and a stand-in compiler: output, errors, exit codes."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from support import fake_engine as fake
from support.commands import refused, run
from support.paths import ROOT, TINY_CHECKPOINT
from tilecompile.errors import InputError
from tilecompile.options import CompileOptions
from tilecompile.runtime import machine
from tilecompile.runtime.format import FORMAT_VERSION
from tilecompile.schedules import PLACEMENTS
from tilecompile.sources import open_model

COMMANDS = ("demo", "compile", "generate", "chat", "inspect", "models")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example:\n +tilecompile {command}", result.stdout)
    assert command in run("--help").stdout


def test_version_prints_name_and_number() -> None:
    assert run("--version").stdout == "tilecompile 0.1.0\n"


def test_usage_errors_are_one_line_that_names_the_help() -> None:
    for args in (["bogus"], ["generate"], ["compile", "glm5-mini"], ["inspect", "x", "--bogus"]):
        assert "; see tilecompile" in refused(*args)
    assert "Usage:" in run().output


# generate


def test_generate_streams_text(engine: str) -> None:
    result = run("generate", engine, "--prompt", "Hé", "--max-new-tokens", "12")
    assert result.exit_code == 0
    with tilecompile.load(engine) as loaded:
        assert result.stdout == loaded.generate("Hé", 12).text + "\n"
    assert re.fullmatch(
        r"12 tokens after a prompt of 2 \(ended by: length\); [0-9.]+ ms per token, [0-9.]+ ms to the first token, "
        r"[0-9]+ ms to load, [12] threads\n",
        result.stderr,
    )


def test_generate_json_states_tokens_times_and_counts(engine: str) -> None:
    result = run("generate", engine, "--ids", "1,2, 3", "--max-new-tokens", "5", "--threads", "1", "--json")
    about = json.loads(result.stdout)
    assert result.stderr == ""
    assert about["tokens"] == fake.greedy([1, 2, 3], 5)
    assert isinstance(about["text"], str)
    assert about["ms_per_step"] > 0
    assert about["time_to_first_token_ms"] > 0
    assert (about["prompt_tokens"], about["threads"], about["launches"], about["steps"]) == (3, 1, 1, 7)


def test_generate_prints_ids_without_a_tokenizer(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", text=False)
    assert run("generate", path, "--ids", "1", "--max-new-tokens", "3").stdout == "15 113 199 \n"
    assert json.loads(run("generate", path, "--ids", "1", "--max-new-tokens", "3", "--json").stdout)["text"] is None
    assert "has no tokenizer" in refused("generate", path, "--prompt", "a")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a" * 65], "the prompt has 65 tokens, the engine's max_seq_len is 64"),
        (["--prompt", "a\udc80"], "the text is not valid Unicode"),
        (["--ids", "1,300"], "prompt id 300 at position 1 is outside the vocabulary, want 0 to 299"),
        (["--ids", "1,x"], "--ids is '1,x', want whole numbers"),
        (["--ids", "299"], "worker 1 waits before task k2_linear of layers.0.second"),
        (["--ids", "1", "--prompt", "a"], "give either --prompt TEXT, --prompt-file FILE or --ids"),
        ([], "give either --prompt TEXT, --prompt-file FILE or --ids"),
        (["--prompt", "a", "--threads", "3"], "threads is 3, want 1 to 2"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0, want a whole number from 1"),
    ],
)
def test_generate_refuses_bad_arguments_in_one_line(engine: str, args: list[str], words: str) -> None:
    assert words in refused("generate", engine, *args)
    assert words in refused("generate", engine, *args, "--json")


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["inspect"]])
def test_a_bad_engine_is_refused_in_one_line(tmp_path: Path, command: list[str]) -> None:
    assert "is not there, want an engine folder" in refused(*command, tmp_path / "none")
    assert "has no engine.json" in refused(*command, tmp_path)
    path = fake.make_engine(tmp_path / "e")
    fake.edit_manifest(path, lambda data: data.update(format=99))
    assert f"engine.json: format version is 99, want {FORMAT_VERSION}" in refused(*command, path)
    path = fake.make_engine(tmp_path / "f")
    (path / "tables" / "waits.npy").unlink()
    assert "tables/waits.npy: missing file" in refused(*command, path)


def process(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tilecompile", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interrupted_generate_exits_at_once_with_130(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", step_us=100_000)
    running = process("generate", str(path), "--ids", "1")
    assert running.stdout is not None
    assert running.stdout.read(2) == "\x0fq"
    running.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    assert running.wait(5) == 130
    assert time.perf_counter() - begin < 1
    assert "Traceback" not in running.communicate()[1]


def test_generate_ends_silently_when_its_reader_goes_away(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", step_us=20_000)
    running = process("generate", str(path), "--ids", "1")
    assert running.stdout is not None
    running.stdout.close()
    assert running.wait(5) == 1
    assert running.stderr is not None
    assert running.stderr.read() == ""


def test_an_unexpected_error_is_one_line_unless_a_traceback_is_asked_for(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("tilecompile.runtime.folder.manifest.read_manifest", broken)
    line = refused("inspect", engine, code=1)
    assert line.startswith("error: unexpected ValueError: first second (set TILECOMPILE_TRACEBACK=1")
    monkeypatch.setenv("TILECOMPILE_TRACEBACK", "1")
    assert isinstance(run("inspect", engine).exception, ValueError)


def test_an_error_after_some_text_is_on_its_own_line(engine: str) -> None:
    result = run("generate", engine, "--ids", "1")
    assert result.exit_code == 2
    assert result.stdout.endswith("\n")
    assert "stalled" in result.stderr


# inspect and models


def test_inspect_shows_the_engine_as_text_and_json(engine: str, tmp_path: Path) -> None:
    about = json.loads(run("inspect", engine, "--json").stdout)
    wanted = {"model": "fake", "target": "cpu", "devices": 1, "workers": 2}
    wanted |= {"tasks": 3, "events": 1, "edges": 1, "bytes_per_step": 200, "ops": {"linear": 2, "commit": 1}}
    assert about.items() >= wanted.items()
    assert about["programs"][0]["name"] == "decode"
    shown = run("inspect", engine).stdout
    for words in ("fake (FakeForCausalLM)", "instruction set portable", "decode", "200 B", "linear 2, commit 1"):
        assert words in shown
    without = fake.make_engine(tmp_path / "e", weights=False)
    assert json.loads(run("inspect", without, "--json").stdout)["weights_source"] == "none"
    assert "has no weights" in refused("generate", without, "--ids", "1")


def test_models_lists_the_named_configurations() -> None:
    about = json.loads(run("models", "--json").stdout)
    assert set(about["named"]) >= {"glm-5", "glm-5.1", "glm-5.2", "glm5-mini"}
    assert about["named"]["glm-5"]["layers"] == 78
    shown = run("models").stdout
    assert "glm5-mini" in shown
    assert "config.json" in shown


# compile


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[CompileOptions]:
    """A stand-in compiler; the options that it was given."""
    seen: list[CompileOptions] = []

    def compile_model(options: CompileOptions, progress: Any) -> Any:
        options.resolve()
        seen.append(options)
        for stage, total in (("trace", 1), ("pack", 10**9)):
            progress(stage, 0, total)
        fake.make_engine(options.output)
        decode = {"name": "decode", "tasks": 3, "events": 2, "edges": 1}
        proof = types.SimpleNamespace(seconds=0.5)
        found = {"programs": [decode], "notes": ("a note",), "seconds": 1.25, "proof": proof}
        return types.SimpleNamespace(output=options.output, **found)

    module = types.ModuleType("tilecompile.compile")
    module.__dict__["compile_model"] = compile_model
    monkeypatch.setitem(sys.modules, "tilecompile.compile", module)
    return seen


def test_compile_passes_its_flags_as_options(compiler: list[CompileOptions], tmp_path: Path) -> None:
    output = tmp_path / "e"
    flags = "--force --target cpu-portable --machine cpu --devices 1 --workers 3 --placement single --max-seq-len 99"
    flags += f" --weights f32 --cache bf16 --seed 7 --dump {tmp_path / 'dump'}"
    result = run("compile", "glm5-mini", "-o", str(output), *flags.split())
    assert result.exit_code == 0, result.output
    assert compiler == [
        CompileOptions(
            model="glm5-mini",
            output=output,
            force=True,
            target="cpu-portable",
            machine="cpu",
            devices=1,
            workers=3,
            placement="single",
            max_seq_len=99,
            weights="f32",
            cache="bf16",
            seed=7,
            dump=tmp_path / "dump",
        )
    ]
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(" s  ")[1] for line in lines[:2]] == ["trace", "pack 1 GB"]
    assert lines[2] == "note: a note"
    assert lines[3].endswith(
        "compiled glm5-mini in 1.2 s; a step runs 3 tasks with 2 events and 1 edges, proved in 0.5 s"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}"], "no config.json"),
        (["examples/tiny-glm5", "--max-seq-len", "999999"], "the model's positions end at 2048"),
        (["examples/tiny-glm5", "--weights", "f32", "--machine", "h200"], "machine h200 takes bf16, fp8"),
        (["glm-5"], "the disk has 1000000000 free"),
    ],
)
def test_compile_refuses_a_model_before_any_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    usage = types.SimpleNamespace(free=10**9)
    monkeypatch.setattr("tilecompile.sources.shutil.disk_usage", lambda path: usage)
    monkeypatch.chdir(ROOT)
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert words in refused("compile", *given, "-o", tmp_path / "e")


def test_compile_without_a_compiler_is_refused_before_any_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler found" in refused("compile", "glm5-mini", "-o", tmp_path / "e")


def test_compile_says_that_weights_are_drawn_from_seed_0(tmp_path: Path) -> None:
    options = CompileOptions("glm5-mini", tmp_path / "e")
    assert open_model(options, options.resolve()).notes == (
        "glm5-mini has no weights of its own: they are drawn from seed 0 (--seed)",
    )
    options = CompileOptions("glm5-mini", tmp_path / "e", seed=0)
    assert open_model(options, options.resolve()).notes == ()


def test_compile_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("tilecompile.compile", "tilecompile.passes.trace"):  # the list of passes, and the first that needs it
        monkeypatch.delitem(sys.modules, name, raising=False)
    line = refused("compile", "glm5-mini", "-o", str(tmp_path / "e"))
    assert "needs the package torch, which is not installed: pip install 'tilecompile[compile]'" in line


def test_demo_compiles_once_and_generates(
    compiler: list[CompileOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = TINY_CHECKPOINT
    prompt = ("--prompt", "In the beginning")  # the stand-in kernel stalls at some ids, which others lead to
    for _ in range(2):
        result = run("demo", "--engine", str(tmp_path / "e"), "--max-new-tokens", "9", *prompt)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("In the beginning")
        assert "ms per token" in result.stdout
        assert "ms to the first token" in result.stdout
    assert len(compiler) == 1
    assert Path(compiler[0].model) == checkpoint
    assert run("demo", *prompt).exit_code == 0
    assert not compiler[1].output.exists()
    monkeypatch.setattr("tilecompile.cli.demo.__file__", str(tmp_path / "package" / "cli" / "demo.py"))
    assert "demo needs a checkout of the repository" in refused("demo")


BAD = [
    ({"model": "glm-9"}, "'glm-9' is neither a checkpoint folder nor a named configuration; there are: glm-5, "),
    ({"model": ""}, "model '' is neither"),
    ({"model": __file__}, "is a file, want a checkpoint folder"),
    ({"target": "gpu"}, "--target 'gpu' is unknown; there are: cpu, cpu-avx2, cpu-portable"),
    ({"placement": "double"}, "--placement 'double' is unknown; there are: single"),
    ({"weights": "fp4"}, "--weights 'fp4' is unknown; there are: f32, bf16, fp8"),
    ({"cache": "fp8"}, "--cache 'fp8' is unknown; there are: f32, bf16"),
    ({"machine": "moon"}, "machine 'moon' is unknown and no file; there are: "),
    ({"devices": 0}, "--devices is 0, want 1 to"),
    ({"devices": 2, "placement": "single"}, "placement single uses 1 device, 2 are requested"),
    ({"devices": 2, "machine": "cpu"}, "--devices 2 contradicts --machine cpu, which has 1"),
    ({"workers": -1}, "--workers is -1, want 1 to"),
    ({"workers": 1, "target": "sm_90a"}, "workers of a device are 1, want 2 or more on a GPU"),
    ({"on_one_gpu": True, "devices": 2}, "--on-one-gpu divides the workers of a GPU over devices: want --devices of 2"),
    ({"on_one_gpu": True, "machine": "h100"}, "--on-one-gpu divides the workers of a GPU over devices: want --devices"),
    (
        {"on_one_gpu": True, "machine": "h100", "devices": 8, "workers": 17},
        "8 devices of 17 workers want 136 SMs, one GPU of machine h100 has 132",
    ),
    ({"max_seq_len": 0}, "--max-seq-len is 0, want 1 to"),
    ({"seed": -1}, "--seed is -1, want 0 to"),
    ({"seed": 1, "no_weights": True}, "--seed draws weights and --no-weights leaves them out"),
    ({"output": Path(__file__)}, "is a file or a link, want a new folder"),
    ({"output": Path(__file__).parent}, "exists, is not empty and is no engine"),
    ({"output": Path(__file__).parent, "force": True}, "exists, is not empty and is no engine"),
    ({"output": Path(__file__) / "e"}, "can't be made: .*test_cli.py is a file"),
    ({"dump": Path(__file__)}, "--dump .*test_cli.py: is a file, want a folder"),
    ({"dump": Path("")}, "--dump is the current folder, want a folder of its own"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_compile_options_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    options = dataclasses.replace(CompileOptions("glm5-mini", tmp_path / "e"), **change)
    with pytest.raises(InputError, match=words) as error:
        options.resolve()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_devices_on_one_gpu_share_its_workers(tmp_path: Path) -> None:
    options = CompileOptions("glm5-mini", tmp_path / "e", target="sm_90a", devices=8, on_one_gpu=True)
    settings = options.resolve()
    assert (settings.devices, settings.workers, settings.placement) == (8, 16, "tensor_parallel")
    assert dataclasses.replace(options, workers=4).resolve().workers == 4


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('name = "m"\ntarget = "cpu"\ndevices = 1\nworkers = 5\n')
    options = CompileOptions("glm5-mini", tmp_path / "e", machine=str(path))
    assert options.resolve().workers == 5
    with pytest.raises(InputError, match="--workers 4 contradicts --machine m, which has 5"):
        dataclasses.replace(options, workers=4).resolve()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_text("")
    with pytest.raises(InputError, match=r"--seed 3 draws weights, but .*checkpoint has its own"):
        CompileOptions(str(checkpoint), tmp_path / "e", seed=3).resolve()
    engine = fake.make_engine(tmp_path / "e")
    with pytest.raises(InputError, match="exists; give --force to replace it"):
        options.resolve()
    assert dataclasses.replace(options, force=True).resolve().devices == 1
    (tmp_path / "link").symlink_to(engine)
    with pytest.raises(InputError, match="is a file or a link"):
        CompileOptions("glm5-mini", tmp_path / "link", force=True).resolve()


def test_the_target_follows_the_cpus_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilecompile import options as module

    for features, isas in (
        ({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2"}, ("avx512", "avx2", "portable")),
        ({"avx2", "fma", "f16c"}, ("avx2", "avx2", "portable")),
        (set(), ("portable", "avx2", "portable")),
    ):
        monkeypatch.setattr(module, "cpu_features", lambda features=features: features)
        for target, isa in zip(("cpu", "cpu-avx2", "cpu-portable"), isas, strict=True):
            settings = CompileOptions("glm5-mini", tmp_path / "e", target=target).resolve()
            assert (settings.target, settings.isa.name) == (target, isa)
            assert settings.workers == machine.usable_cores()
    for target, name, workers in (("sm_90a", "h100", 132), ("sm_100a", "b200", 148)):
        settings = CompileOptions("glm5-mini", tmp_path / "e", target=target).resolve()
        assert (settings.machine.name, settings.isa, settings.devices, settings.workers) == (name, None, 1, workers)
        assert CompileOptions("glm5-mini", tmp_path / "e", target=target, workers=5).resolve().workers == 5


def test_placements_are_the_recipes() -> None:
    from tilecompile.passes.place.place import RECIPES

    assert (*RECIPES, "auto") == PLACEMENTS

"""`tilecompile chat`, and the options of commands that generate, on a stand-in engine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import tilecompile
from support import fake_engine as fake
from support.commands import refused, run
from support.terminal import ALT_ENTER, CONTROL_C, CONTROL_D, ENTER, Terminal
from tilecompile.cli.app import app
from tilecompile.cli.output import timings
from tilecompile.cli.sampling import OPTIONS
from tilecompile.cli.talk import figures
from tilecompile.runtime.run import Stats
from tilecompile.runtime.sampling import SamplingParams

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake.make_engine(tmp_path_factory.mktemp("fake") / "engine", chat=TEMPLATE))


def talk(engine: str, typed: str, *args: str) -> Result:
    return CliRunner().invoke(app, ["chat", engine, *args], input=typed)


# The options of sampling


def test_every_parameter_has_an_option() -> None:
    others = {"max_new_tokens", "logprobs", "allowed_tokens"}  # options of their own, and what is a function
    assert {option.parameter for option in OPTIONS.values()} == {f.name for f in fields(SamplingParams)} - others


def test_options_are_given_to_the_request(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SamplingParams] = []

    def generate(self: tilecompile.Engine, prompt: object, params: SamplingParams) -> object:
        seen.append(params)
        raise tilecompile.InputError("seen")

    monkeypatch.setattr(tilecompile.Engine, "generate", generate)
    typed = """--temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --presence-penalty -1
        --frequency-penalty 2 --logit-bias 5=-1.5 --logit-bias 6=2 --seed 7 --stop a --stop bc --include-stop
        --stop-id 9 --stop-id 8 --min-tokens 3 --ignore-eos --draft auto --logprobs 2 --max-new-tokens 11"""
    assert "seen" in refused("generate", engine, "--prompt", "a", "--json", *typed.split())
    want = SamplingParams(
        max_new_tokens=11,
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={5: -1.5, 6: 2},
        seed=7,
        stop=("a", "bc"),
        include_stop=True,
        stop_token_ids=(9, 8),
        min_tokens=3,
        ignore_eos=True,
        drafts="auto",
        logprobs=2,
    )
    assert seen == [want]
    refused("generate", engine, "--prompt", "a", "--json", "--draft", "2", "--temperature", "0")
    assert seen[1:] == [SamplingParams(drafts=2, temperature=0)]
    refused("generate", engine, "--prompt", "a", "--json")
    assert seen[2:] == [SamplingParams()]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--temperature", "-1"], "temperature is -1.0, want"),
        (["--top-p", "0"], "top_p is 0.0, want"),
        (["--top-p", "2"], "top_p is 2.0, want"),
        (["--draft", "8"], "drafts is 8, want 0 to 7, 'auto' or None"),
        (["--draft", "some"], "drafts is 'some', want 0 to 7"),
        (["--logit-bias", "5"], "--logit-bias is '5', want ID=NUMBER"),
        (["--logit-bias", "300=1"], "logit_bias"),
        (["--stop", ""], "stop has a text of 0 characters"),
        ([word for i in range(65) for word in ("--stop", str(i))], "stop has 65 entries, want at most 64"),
        (["--logprobs", "50", "--json"], "logprobs is 50, want"),
        (["--logprobs", "2"], "--logprobs is shown with --json only"),
        (["--system", "a"], "--system is for --chat"),
    ],
)
def test_bad_options_are_refused_in_one_line(engine: str, args: list[str], words: str) -> None:
    assert words in refused("generate", engine, "--prompt", "a", *args)


# generate


def test_a_prompt_is_read_from_a_file_or_stdin(engine: str, tmp_path: Path) -> None:
    want = run("generate", engine, "--prompt", "a\n", "--max-new-tokens", "5").stdout
    path = tmp_path / "prompt"
    path.write_text("a\n\n")
    assert run("generate", engine, "--prompt-file", str(path), "--max-new-tokens", "5").stdout == want
    args = ["generate", engine, "--prompt-file", "-", "--max-new-tokens", "5"]
    assert CliRunner().invoke(app, args, input="a\n\n").stdout == want
    assert f"{tmp_path}: can't be read: Is a directory" in refused("generate", engine, "--prompt-file", str(tmp_path))
    path.write_bytes(b"a\xff")
    assert "is no UTF-8 text" in refused("generate", engine, "--prompt-file", str(path))
    assert "give either --prompt" in refused("generate", engine, "--prompt-file", str(path), "--prompt", "a")


def test_generate_answers_a_message(engine: str, tmp_path: Path) -> None:
    args = ["--chat", "--system", "s", "--prompt", "1", "--max-new-tokens", "2"]
    assert run("generate", engine, *args).stdout == "3A\n"
    about = json.loads(run("generate", engine, *args, "--json").stdout)
    assert about["text"] == "3A"
    assert about["prompt_tokens"] == len("<s>s<u>1")
    assert about["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "1"}]
    assert about["prompt"] == [*b"<s>s<u>1"]
    assert about["parameters"]["max_new_tokens"] == 2
    assert "--chat is for text" in refused("generate", engine, "--chat", "--ids", "1")
    without = fake.make_engine(tmp_path / "e")
    assert "has no chat template" in refused("generate", without, "--chat", "--prompt", "a")
    assert "has no chat template" in refused("chat", without)


def test_generate_ends_at_a_stop_text(engine: str) -> None:
    args = ["generate", engine, "--prompt", "1", "--max-new-tokens", "9", "--stop", "xx", "--stop", "A"]
    result = run(*args)
    assert result.stdout == "3\n"
    assert "2 tokens after a prompt of 1 (ended by: stop)" in result.stderr
    about = json.loads(run(*args, "--include-stop", "--json").stdout)
    assert (about["text"], about["tokens"], about["finish"]) == ("3A", [51, 65], "stop")


def test_inspect_says_whether_an_engine_can_chat(engine: str, tmp_path: Path) -> None:
    for path, words in ((engine, "yes"), (str(fake.make_engine(tmp_path / "e")), "no")):
        assert re.search(rf"chat template +│ {words} ", run("inspect", path).stdout)


# chat without a terminal


def test_a_chat_answers_line_by_line_and_says_how_fast(engine: str) -> None:
    result = talk(engine, "1\n2\\\n1\n\n", "--max-new-tokens", "2")
    assert result.exit_code == 0
    assert result.stdout == "3A\n3A\n"
    shown = result.stderr.splitlines()
    assert len(shown) == 3
    assert shown[0] == "fake: /help lists the commands, Ctrl-D ends the chat"
    for line in shown[1:]:
        assert re.match(r"2 tokens \(ended by: length\), [0-9]+ tokens/s, [0-9.]+ ms to the first token", line)
    assert shown[2].endswith(", 4 of 15 prompt tokens were in the caches")  # the template has more before an answer


def test_the_figures_of_an_answer_name_what_a_round_of_speculation_gave(engine: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Speculative(Stats):
        accepted_length: float = 0.0

    with tilecompile.load(engine) as loaded:
        values = asdict(loaded.generate([1], 3).stats)
        values |= {"tokens": 5, "total_ms": 50.0, "time_to_first_token_ms": 10.0, "accepted_length": 2.456}
        stats = Speculative(**values)
        want = "5 tokens (ended by: length), 100 tokens/s, 2.46 tokens a round, 10.0 ms to the first token"
        assert figures(stats) == want
        assert "; 10.000 ms per token, 2.46 tokens a round, 10.0 ms to the first token, " in timings(loaded, stats)
        assert "round" not in figures(replace(stats, accepted_length=0.0))


def test_a_full_context_and_a_stall_are_said_and_the_chat_goes_on(engine: str) -> None:
    result = talk(engine, "1\n1\n/clear\ns\n/clear\n/set max_new_tokens 2\n1\n", "--max-new-tokens", "99")
    shown = result.stderr.splitlines()
    assert "(ended by: context)" in shown[1]
    assert shown[2] == "the context is full: /clear begins anew"
    assert "the engine's max_seq_len is 64" in shown[3]
    assert shown[4].startswith("error: ")
    assert "stalled" in shown[4]
    assert shown[5].startswith("2 tokens ")
    assert result.stdout.endswith("\n3A\n")


def test_settings_are_set_and_shown(engine: str) -> None:
    result = talk(engine, '/set max_new_tokens 2\n/set stop "A"\n/set seed 3\n/set seed none\n1\n/set\n')
    assert result.stdout == "3\n"
    shown = result.stderr.splitlines()
    assert {"max_new_tokens 2", 'stop ["A"]', "seed null", "temperature null"} <= set(shown)
    assert talk(engine, "").stderr.count("\n") == 1
    assert "max_new_tokens 16" in talk(engine, "/set\n").stderr.splitlines()  # a quarter of the context


def test_wrong_commands_are_one_line_and_the_chat_goes_on(engine: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text('{"messages": [1], "settings": {}}')
    (tmp_path / "more").write_text('{"messages": [], "settings": {"a": 1}}')
    cases = {
        "/what": "error: /what is no command, want one of: /help, /clear",
        "/set a 1": "error: 'a' is no setting, want one of: max_new_tokens, temperature",
        "/set seed": "error: want a value after /set seed",
        "/set top_p 0": "error: top_p is 0, want",
        "/set temperature hot": "error: temperature is 'hot', want",
        "/set logit_bias 5": "error: logit_bias is 5, want numbers by token id",
        "/save": "error: want the name of a file",
        f"/save {tmp_path}": f"error: {tmp_path}: can't be written: Is a directory",
        f"/load {tmp_path}/none": f"error: {tmp_path}/none: can't be read: No such file",
        f"/load {tmp_path}/bad": f"error: {tmp_path}/bad: messages[0] is 1, want an object",
        f"/load {tmp_path}/more": f"error: {tmp_path}/more: settings has a, want some of",
        "x" * 70: "error: the prompt has 73 tokens, the engine's max_seq_len is 64",
    }
    result = talk(engine, "".join(f"{line}\n" for line in [*cases, "1"]), "--max-new-tokens", "2")
    assert result.stdout == "3A\n"
    shown = result.stderr.splitlines()
    assert len(shown) == len(cases) + 2
    for line, words in zip(shown[1:], cases.values(), strict=False):
        assert line.startswith(words)


def test_a_chat_is_saved_cleared_and_loaded(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    result = talk(engine, f"/system é\n1\n/save {path}\n/clear\n/exit\n2\n", "--max-new-tokens", "2")
    assert result.stdout == "3A\n"
    saved = json.loads(path.read_text())
    want = [
        {"role": "system", "content": "é"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "3A"},
    ]
    assert saved["messages"] == want
    assert saved["settings"]["max_new_tokens"] == 2
    again = tmp_path / "again.json"
    talk(engine, f"/load {path}\n/system\n/save {again}\n/system t\n/clear\n1\n/save {path}\n", "--seed", "5")
    assert json.loads(again.read_text()) == {**saved, "messages": want[1:]}
    assert json.loads(path.read_text())["messages"] == [{"role": "system", "content": "t"}, *want[1:]]


def test_help_lists_every_command(engine: str) -> None:
    shown = talk(engine, "/help\n").stderr
    for command in ("/help", "/clear", "/set NAME VALUE", "/save FILE", "/load FILE", "/system TEXT", "/exit"):
        assert f"\n{command}  " in shown


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An engine whose tokens come every 50 ms, so that an answer takes two seconds."""
    return str(fake.make_engine(tmp_path_factory.mktemp("slow") / "engine", step_us=50_000, chat=TEMPLATE))


def test_an_interrupt_stops_an_answer_without_a_terminal(slow: str) -> None:
    command = [sys.executable, "-m", "tilecompile", "chat", slow, "--max-new-tokens", "40"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"1\n/set max_new_tokens 2\n/clear\n1\n")
        running.stdin.flush()
        assert running.stdout.read(2) == b"3A"
        running.send_signal(signal.SIGINT)
        out, shown = running.communicate(timeout=20)
    assert running.returncode == 0
    assert out.endswith(b"\n3A\n")
    assert b"(ended by: aborted)" in shown
    assert b"; stopped" in shown
    assert b"Traceback" not in shown


# chat in a terminal


def test_ctrl_c_stops_the_answer_and_not_the_chat(slow: str) -> None:
    with Terminal(sys.executable, "-m", "tilecompile", "chat", slow, "--max-new-tokens", "40") as terminal:
        terminal.until("Ctrl-D ends the chat")
        terminal.until(">")
        terminal.type("1" + ENTER)
        terminal.until("3A")
        terminal.type(CONTROL_C)
        assert "(ended by: aborted)" in terminal.until("; stopped")
        terminal.until(">")
        terminal.type("half a line" + CONTROL_C)  # gives up the line, not the chat
        terminal.until("/exit ends the chat")
        terminal.until(">")
        terminal.type("/clear" + ENTER + "/set max_new_tokens 2" + ENTER + "2" + ALT_ENTER + "1" + ENTER)
        terminal.until("3A")
        terminal.until("(ended by: length)")
        terminal.until(">")
        terminal.type(CONTROL_D)
        assert terminal.process.wait(20) == 0

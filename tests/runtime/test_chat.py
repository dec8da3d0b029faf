"""Chat templates: read from checkpoints and rendered as transformers does, and refused in one line where they fail."""

from __future__ import annotations

import enum
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import fake_engine as fake
from support.paths import TINY_CHECKPOINT
from tilecompile.errors import EngineError, InputError
from tilecompile.models.chat import read_chat, unparsable
from tilecompile.runtime.chat import ChatTemplates

PLAIN = """{% for message in messages %}
    {% if message.role not in ["system", "user", "assistant"] %}
        {{ raise_exception("no role " + message.role) }}
    {% endif %}
{{ bos_token }}{{ message['role'] }}: {{ message.content | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
assistant:{% endif %}"""

# What templates of GLM's kind do: macros, namespaces, tools and their calls, reasoning of the last turn only.
AGENT = """[B]
{%- if tools -%}
<|system|>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
{{ tools | tojson }}{{ tools | tojson(indent=2, sort_keys=True, separators=(",", ":"), ensure_ascii=True) }}
{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}{%- elif content is mapping -%}{{ content.text }}
    {%- else -%}{%- for item in content -%}{{- item.text if item is mapping else item }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=-1, seen=dict(a=1)) %}
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last = loop.index0 -%}{%- endif %}{%- endfor %}
{% for m in messages %}
{%- if m.role == 'tool' and m.content is undefined %}{% continue %}{% endif -%}
<|{{ m.role }}|>
{{ visible(m.content) if m.content is defined else "-" }}
{%- if loop.index0 > ns.last and m.reasoning_content -%}
    {{ '\\n<think>' + m.reasoning_content.strip() + '</think>' }}{{ m.thinking }}
{%- endif -%}
{% for call in m.tool_calls or [] %}
{%- set call = call.function if call.function else call %}
{{ '\\n<call>' + call.name }}{% for k, v in call.arguments.items() %}
{{ k }}={{ v | tojson(ensure_ascii=False) if v is not string else v }}
{% endfor %}</call>{% endfor %}
{%- endfor -%}
{%- for d in documents or [] %}[{{ d.title }}] {{ d.text }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- endif -%}"""

MARKED = """{% set x = 1 %}{% for m in messages %}{% if m.role == "assistant" %}
{% generation %}{% set x = 2 %}{{ m.content }} <{{ x }}>{% endgeneration %}{{ x }}
{% else %}{{ m.content }}{{ strftime_now("%Y")[:2] }}{% endif %}{% endfor %}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Größe <b>&'\"",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "Bonn"]}}},
        },
    }
]


class Role(enum.StrEnum):
    USER = "user"


@dataclass
class Block:
    text: str
    kind: str = "text"


CHATS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "one": ([{"role": "user", "content": "Hello "}], {}),
    "turns": (
        [
            {"role": "system", "content": "Be brief.\n"},
            {"role": "user", "content": " Größe? <b>&'\""},
            {"role": "assistant", "content": "\n5 m"},
            {"role": Role.USER, "content": "{{ bos_token }} {% raw %}"},
        ],
        {"add_generation_prompt": True},
    ),
    "tools": (
        [
            {"role": "user", "content": [{"type": "text", "text": "Rain?"}, "Sun?", Block("Wind?").__dict__]},
            {
                "role": "assistant",
                "content": None,
                "reasoning": " hm ",
                "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Köln", "days": 3, "x": [1.5, None, True]}}}
                ],
            },
            {"role": "tool", "content": "wet"},
            {"role": "tool"},
        ],
        {"tools": TOOLS, "add_generation_prompt": True, "enable_thinking": False},
    ),
    "documents": (
        [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "so", "thinking": "why"}],
        {"documents": [{"title": str(i), "text": "t"} for i in range(3)], "enable_thinking": np.bool_(False)},
    ),
    "variables": ([{"role": "user", "content": "a"}], {"bos_token": "<mine>", "eos_token": np.float32(0.5)}),
}


def checkpoint(folder: Path, templates: Any, **config: Any) -> Path:
    """A folder with the tiny checkpoint's tokenizer and the templates in its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY_CHECKPOINT / "tokenizer.json", folder)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": templates}))
    return folder


def templates_of(folder: Path) -> ChatTemplates:
    chat = read_chat(folder)
    assert chat is not None
    return ChatTemplates(folder / "chat.json", json.dumps(chat).encode())


def one_template(source: str, **tokens: str) -> ChatTemplates:
    content = {"templates": {"default": source}, "special_tokens": tokens}
    return ChatTemplates(Path("chat.json"), json.dumps(content).encode())


def transformers_text(folder: Path, messages: list[Any], **how: Any) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, **how))


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", [PLAIN, AGENT, MARKED], ids=["plain", "agent", "marked"])
def test_a_chat_is_rendered_as_transformers_does(tmp_path: Path, template: str, chat: str) -> None:
    messages, how = CHATS[chat]
    if template is not AGENT and chat == "tools":
        template += "{{ tools }}{{ messages[0].content[0].text }}"
        messages = messages[:1]
    token = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False}
    folder = checkpoint(tmp_path / "m", template, bos_token="<s>", pad_token=token)
    want = transformers_text(folder, messages, **how)
    assert templates_of(folder).render(messages, **{"add_generation_prompt": False, **how}) == want


def test_templates_by_name_are_chosen_as_transformers_does(tmp_path: Path) -> None:
    named = [{"name": name, "template": name + " {{ pad_token }}"} for name in ("default", "tool_use", "rag")]
    token = {"__type": "AddedToken", "content": "<|endoftext|>"}
    folder = checkpoint(tmp_path / "config", named, pad_token=token)
    files = checkpoint(tmp_path / "files", "not this one")
    (files / "chat_template.jinja").write_text("default\n")
    (files / "additional_chat_templates").mkdir()
    (files / "additional_chat_templates" / "rag.jinja").write_text("grün")
    for path, how in [
        (folder, {}),
        (folder, {"tools": TOOLS}),
        (folder, {"chat_template": "rag", "tools": TOOLS}),
        (files, {}),
        (files, {"tools": TOOLS}),
        (files, {"chat_template": "rag"}),
    ]:
        want = transformers_text(path, CHATS["one"][0], **how)  # type: ignore[arg-type]
        assert templates_of(path).render(CHATS["one"][0], **how) == want  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no chat template 'none', want one of: default, tool_use, rag"):
        templates_of(folder).render(CHATS["one"][0], chat_template="none")


def test_a_checkpoint_without_template_has_none(tmp_path: Path) -> None:
    assert read_chat(checkpoint(tmp_path, None)) is None
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_chat(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "is a list, want an object"),
        ("{", "not valid JSON"),
        ('{"chat_template": 5}', "chat_template is 5, want a list"),
        ('{"chat_template": [{"name": "a"}]}', "template is missing"),
    ],
)
def test_a_wrong_tokenizer_configuration_is_refused_in_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_chat(tmp_path)
    assert "\n" not in str(error.value)


def test_a_template_that_cannot_be_parsed_is_noted_and_refused() -> None:
    source = {"templates": {"default": "{% if %}", "other": "fine"}, "special_tokens": {}}
    (line,) = unparsable(source)
    assert line.startswith("the chat template 'default' can't be parsed")
    with pytest.raises(InputError, match="the chat template 'default' fails: TemplateSyntaxError"):
        one_template("{% if %}").render(CHATS["one"][0])


class Strange:
    pass


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "how", "words"),
    [
        ([], {}, "the chat is empty, want at least one message"),
        ("hello", {}, "the chat is a str, want a list of messages"),
        (USER, {}, "the chat is a dict, want a list of messages"),
        (["hello"], {}, "the chat[0] is a str, want an object"),
        ([USER, {"content": "a"}], {}, "message 1 has role None, want a word such as 'user'"),
        ([{"role": "user", "content": Strange()}], {}, "the chat[0].content is a Strange, want what JSON has"),
        ([{"role": "wizard", "content": "a"}], {}, "the chat template 'default' refuses this chat: no role wizard"),
        ([{"role": "user", "content": 5}], {"fail": 1}, "the chat template 'default' fails: TypeError"),
        ([{"role": "user"}], {"fail": 1}, "the chat template 'default' fails: UndefinedError"),
        ([USER], {"tools": [len]}, "tools[0] is a builtin_function_or_method, want an object"),
        ([USER], {"tools": TOOLS[0]}, "tools is a dict, want a list of JSON schemas"),
        ([USER], {"documents": ["a"]}, "documents[0] is a str, want an object"),
        ([USER], {"date": Strange()}, "date is a Strange, want what JSON has"),
        ([USER], {"continue_final_message": True}, "continue_final_message is not known"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(messages: Any, how: dict[str, Any], words: str) -> None:
    template = one_template(PLAIN + "{% if fail %}{{ messages[0].content + 'x' }}{% endif %}")
    with pytest.raises(InputError) as error:
        template.render(messages, **how)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages[0].update(a=1) }}", "SecurityError"),
        ("{{ dict.__call__.__globals__ }}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "SecurityError"),
        ("{{ namespace(_a=1) }}", "SecurityError"),
        ("{{ range(99999999) }}", "OverflowError"),
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str, error: str) -> None:
    messages = [dict(USER)]
    with pytest.raises(InputError, match=f"the chat template 'default' fails: {error}"):
        one_template(source).render(messages)
    assert messages == [USER]
    assert one_template("{{ dict.__class__ }}{{ raise_exception.__globals__ }}").render(messages) == ""


def test_templates_get_copies_of_plain_values() -> None:
    block = Block("deep")
    shown = one_template("{{ messages[0].content.text }}{{ x is mapping }}{{ y }}")
    assert shown.render([{"role": "user", "content": block}], x=block, y=np.int64(3)) == "deepTrue3"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not valid JSON"), (b'{"templates": {}}', "special_tokens is missing"), (b"[]", "want an object")],
)
def test_a_damaged_chat_file_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        ChatTemplates(Path("chat.json"), content)


def test_an_engine_answers_a_chat_as_it_continues_the_prompt(tmp_path: Path) -> None:
    path = fake.make_engine(tmp_path / "e", chat=fake.TEMPLATE)
    with tilecompile.load(path) as engine:
        prompt = engine.chat_prompt([USER], x="y")
        assert prompt == [*b"u a y", fake.EOS, *b"\n>"]
        out = engine.chat([USER], 12, x="y")
        assert out.tokens == engine.generate(prompt, 12).tokens
        with engine.stream_chat([USER], 12, x="y") as stream:
            assert list(stream) == out.tokens
        with pytest.raises(InputError, match="the chat is empty"):
            engine.chat([])
        with pytest.raises(InputError, match="the prompt has 106 tokens, the engine's max_seq_len is 64"):
            engine.stream_chat([{"role": "user", "content": "a" * 100}])


def test_an_engine_without_template_or_tokenizer_refuses_a_chat(tmp_path: Path) -> None:
    with (
        tilecompile.load(fake.make_engine(tmp_path / "a")) as engine,
        pytest.raises(InputError, match="the engine has no chat template"),
    ):
        engine.chat([USER])
    with (
        tilecompile.load(fake.make_engine(tmp_path / "b", text=False, chat=fake.TEMPLATE)) as engine,
        pytest.raises(InputError, match="the engine has no tokenizer"),
    ):
        engine.chat([USER])


def test_a_compiled_engine_has_the_chat_templates_of_its_checkpoint(tiny: Path) -> None:
    want = {"templates": {"default": fake.TEMPLATE}, "special_tokens": {"eos_token": "<|end|>"}}
    assert json.loads((tiny / "chat.json").read_text()) == want
    with tilecompile.load(tiny) as engine:
        assert engine.text is not None
        assert engine.chat_prompt([USER], x="y") == [*b"u a y", fake.EOS, *b"\n>"]


def test_the_tiny_checkpoint_has_a_template_that_knows_its_roles(tmp_path: Path) -> None:
    templates = templates_of(TINY_CHECKPOINT)
    messages, how = CHATS["turns"]
    assert templates.render(messages, **how) == transformers_text(TINY_CHECKPOINT, messages, **how)
    assert templates.render([{"role": "system", "content": "Be brief. "}, USER]) == (
        "Be brief.\nThen they said unto him, a\nAnd he answered and said unto them,"
    )
    with pytest.raises(InputError, match="refuses this chat: role is tool, want system, user or assistant"):
        templates.render([USER, {"role": "tool", "content": "x"}])


def test_chat_templates_are_loaded_without_jinja_and_torch() -> None:
    code = "import sys, tilecompile.runtime.chat; print([m for m in ('jinja2', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Files of a checkpoint folder that aren't weights: settings in them that are ignored, and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from typer.testing import CliRunner

from support import fake_engine as fake
from support.engines import tiny_model
from tilecompile.cli.app import app
from tilecompile.errors import InputError
from tilecompile.options import CompileOptions
from tilecompile.runtime.text import Text
from tilecompile.sources import ModelSource, open_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"
TEXT = "à text of more than four tokens, è, é and <|end|>"

TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|end|>",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def opened(model: Path, output: Path) -> ModelSource:
    """The model as `compile` opens it."""
    options = CompileOptions(str(model), output / "e", seed=1, max_seq_len=64, workers=2, no_kernel=True)
    return open_model(options, options.resolve())


def refused(model: Path) -> str:
    with pytest.raises(InputError) as error:
        opened(model, model.parent)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update(truncation=TRUNCATION), "truncation"),
        (lambda t: t.update(padding=PADDING), "padding"),
        (lambda t: t["model"].update(dropout=0.9), "dropout"),
        (lambda t: t.update(truncation=TRUNCATION, padding=PADDING), "truncation, padding"),
    ],
)
def test_settings_of_a_tokenizer_change_nothing_and_are_noted(model: Path, change: Any, named: str) -> None:
    path = model / "tokenizer.json"
    plain = Text(path)
    assert plain.ignored == ()
    assert not any("tokenizer.json" in note for note in opened(model, model.parent).notes)
    want = plain.encode(TEXT)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    library = [list(Tokenizer.from_file(str(path)).encode(TEXT).ids) for _ in range(5)]
    assert any(ids != want for ids in library)
    assert all(Text(path).encode(TEXT) == want for _ in range(5))
    notes = [note for note in opened(model, model.parent).notes if "tokenizer.json" in note]
    assert notes == [f"{path}: settings that change what is encoded are not applied: {named}"]


def test_tokens_that_the_model_has_not_are_noted(model: Path) -> None:
    tokenizer = fake.tokenizer()
    assert tokenizer.get_vocab_size() == fake.VOCAB
    tokenizer.add_special_tokens([AddedToken(f"<|new{i}|>", special=True) for i in range(7)])
    tokenizer.save(str(model / "tokenizer.json"))
    (note,) = [note for note in opened(model, model.parent).notes if "tokenizer.json" in note]
    assert "the model has ids below 300" in note
    assert note.endswith("refused: '<|new0|>', '<|new1|>', '<|new2|>', '<|new3|>', '<|new4|>' and 2 more")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "is a Git LFS pointer"),
        ("", "is empty"),
        ("<!DOCTYPE html><html></html>", "is a web page"),
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_files_that_are_not_what_they_should_be_are_refused(model: Path, name: str, content: str, words: str) -> None:
    (model / name).write_text(content)
    assert refused(model).startswith(f"{model / name}: {words}")


def test_a_tokenizer_that_is_cut_is_refused_and_one_that_is_not_read_noted(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: is not a readable tokenizer" in refused(model)
    path.rename(model / "tokenizer.model")
    source = opened(model, model.parent)
    assert source.tokenizer is None
    assert any("tokenizer.model is not read" in note for note in source.notes)


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        (None, [7, 9], [7, 9]),
        ([5], None, [5]),
        (5, [7, 5], [5, 7]),
        (None, None, []),
        (None, "no file", []),
    ],
)
def test_stop_ids_are_those_of_both_files(
    model: Path, tmp_path: Path, config: Any, generation: Any, stops: list[int]
) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "eos_token_id": config}))
    if generation != "no file":
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    arguments = f"compile {model} -o {tmp_path / 'e'} --seed 1 --max-seq-len 64 --workers 2 --no-kernel".split()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert ("no ids that end a text (eos_token_id) are stated" in " ".join(result.output.split())) == (not stops)
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "e"), "--json"])
    assert json.loads(shown.stdout)["eos_token_ids"] == stops
    text = " ".join(CliRunner().invoke(app, ["inspect", str(tmp_path / "e")]).output.split())
    assert ("no id (only a request's own stops end" in text) == (not stops)

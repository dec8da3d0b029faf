"""The tokenizer of a checkpoint folder, read before anything is compiled."""

from __future__ import annotations

from pathlib import Path

from tilecompile.models.files import not_content
from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.folder.manifest import TOKENIZER

SENTENCEPIECE = "tokenizer.model"


def read_tokenizer(folder: Path, vocab: int) -> tuple[Path | None, tuple[str, ...]]:
    """The tokenizer.json of a folder, if there is one, and notes on it for a model with `vocab` ids.

    InputError for a file that can't be read as a tokenizer.
    """
    from tilecompile.runtime.text import Text

    path = folder / TOKENIZER
    if not path.is_file():
        if not (folder / SENTENCEPIECE).is_file():
            return None, ()
        return None, (f"{folder}: {SENTENCEPIECE} is not read, and there is no {TOKENIZER}: the engine takes ids only",)
    try:
        if wrong := not_content(path):
            raise InputError(f"{path}: {wrong}")
        text = Text(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except EngineError as error:
        raise InputError(str(error)) from error
    notes = []
    if text.ignored:
        notes.append(f"{path}: settings that change what is encoded are not applied: {', '.join(text.ignored)}")
    if beyond := text.beyond(vocab):
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        notes.append(
            f"{path}: the model has ids below {vocab}, and these tokens have others, so a prompt with one of them is "
            f"refused: {', '.join(map(repr, sorted(beyond)[:5]))}{more}"
        )
    return path, tuple(notes)

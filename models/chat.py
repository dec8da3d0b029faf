"""The chat templates of a checkpoint folder and the special tokens that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilecompile.models.files import read_object, read_text
from tilecompile.runtime.chat import DEFAULT
from tilecompile.runtime.errors import InputError
from tilecompile.runtime.validate import mismatch

CONFIG, TEMPLATE, FOLDER = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers gives to templates."""


def read_chat(folder: Path) -> dict[str, Any] | None:
    """The content of an engine's chat.json for a checkpoint folder, or None without a template.

    Templates are in files (`chat_template.jinja`, and others by name in `additional_chat_templates/`), or else in
    tokenizer_config.json as one text or a list of names and texts, as transformers reads them. InputError for files
    that aren't what they should be.
    """
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    templates = {path.stem: read_text(path) for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        templates[DEFAULT] = read_text(folder / TEMPLATE)
    templates = templates or _in_config(folder / CONFIG, config.get("chat_template"))
    if not templates:
        return None
    tokens = {name: _content(token) for name in SPECIAL if (token := config.get(name)) is not None}
    return {"templates": templates, "special_tokens": {name: token for name, token in tokens.items() if token}}


def unparsable(chat: dict[str, Any]) -> tuple[str, ...]:
    """A line for each template of a chat.json that can't be parsed, and so will be refused when it is used."""
    from jinja2.exceptions import TemplateError

    from tilecompile.runtime.sandbox import environment

    out = []
    for name, source in chat["templates"].items():
        try:
            environment().parse(source)
        except TemplateError as error:
            out.append(
                f"the chat template {name!r} can't be parsed, so it can't be used: {' '.join(str(error).split())}"
            )
    return tuple(out)


def _in_config(path: Path, value: Any) -> dict[str, str]:
    """The templates in tokenizer_config.json, by name."""
    if value is None or isinstance(value, str):
        return {} if value is None else {DEFAULT: value}
    found = mismatch(value, [{"name": str, "template": str}], "chat_template")
    if found:
        raise InputError(f"{path}: {found}")
    return {item["name"]: item["template"] for item in value}


def _content(token: Any) -> str | None:
    """The text of a special token, which is written as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None

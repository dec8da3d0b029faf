"""Pieces of the text that the tiny checkpoint was not trained on: every twentieth chapter (`train_tiny_glm5.py`)."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path


@cache
def _text() -> str:
    """The held-out chapters, one after another."""
    package = importlib.util.find_spec("bible")  # not imported: its __init__ needs pkg_resources
    assert package is not None
    assert package.submodule_search_locations is not None
    verses = (Path(package.submodule_search_locations[0]) / "data/kjv.jsonl").read_text().splitlines()
    chapters: dict[str, str] = {}
    for verse in map(json.loads, verses):
        title = f"{verse['book']} {verse['chapter']}"
        chapters[title] = chapters.get(title, title + "\n") + verse["text"].strip() + "\n"
    return "".join(list(chapters.values())[10::20])


def held_out(count: int, characters: int) -> list[str]:
    """`count` pieces of so many characters, spread evenly over the text, each from the begin of a word on."""
    text = _text()
    pieces = []
    for i in range(count):
        begin = text.index(" ", (len(text) - characters - 100) * i // count) + 1
        pieces.append(text[begin : begin + characters])
    return pieces

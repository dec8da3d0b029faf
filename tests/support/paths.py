"""Where the repository's own folders are."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
"""The folder from which tests, and the programs that they start, import `support` and `gpu`."""
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
TINY_CHECKPOINT = EXAMPLES / "tiny-glm5"
"""A trained GLM-5 of a few hundred kilobytes, with its tokenizer."""

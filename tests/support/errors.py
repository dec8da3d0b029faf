"""What an error says."""

from __future__ import annotations

from typing import Any

import pytest


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    """The message, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    return text

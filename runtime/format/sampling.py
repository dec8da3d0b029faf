"""What a kernel takes of a request's parameters for sampling."""

from __future__ import annotations

MAX_LOGPROBS = 20
"""Most ids a token whose log-probabilities a request can ask for."""

MAX_STOP_IDS = 64
"""Most ids that end a request."""

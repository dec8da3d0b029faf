"""bench: an engine's steps against the bandwidth of its machine's memory, against itself without parts, and peers.

Everything is measured alternately within one run (`rounds.py`): the read kernels that make the roof (`roof.py`), the
engine, its variants (`ablate.py`); peers come after it (`against.py`). `report.py` makes the figures out of the rounds.
"""

DEFAULT_CONTEXT = 512
"""Positions, or as many as the engine holds."""

DEFAULT_ROUNDS = 41

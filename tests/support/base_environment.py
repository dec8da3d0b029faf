"""Verifies an engine, loads it, generates, answers a chat and measures, where only the base dependencies are installed.

python tests/support/base_environment.py ENGINE
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BANNED = ("torch", "tilelang", "networkx", "safetensors", "transformers")

if __name__ == "__main__":
    present = [name for name in BANNED if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"this environment has {', '.join(present)}; the check needs one without them")
    import tilecompile
    from tilecompile.cli.bench import bench
    from tilecompile.cli.verify import verify

    verify(Path(sys.argv[1]))
    with tilecompile.load(sys.argv[1]) as engine:
        out = engine.generate("In the beginning", max_new_tokens=16)
        answer = engine.chat([{"role": "user", "content": "Who art thou?"}], max_new_tokens=16)
    assert len(out.tokens) == len(answer.tokens) == 16
    bench(Path(sys.argv[1]), rounds=1, against="transformers")
    print(f"base environment: generated {out.text!r}")

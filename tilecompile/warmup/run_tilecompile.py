"""The engine, from import to the first token: `python -m tilecompile.warmup.run_tilecompile ENGINE IDS THREADS`."""

from __future__ import annotations

import sys

from tilecompile.warmup.marks import failed, files, mark


def main(engine: str, ids: str, threads: str) -> None:
    """Does what a user's program does."""
    from tilecompile import load

    mark("imported")
    with load(engine, int(threads)) as loaded:
        mark("loaded")
        with loaded.stream([int(item) for item in ids.split(",")], 1) as stream:
            token = next(stream)
            mark("first_token", token)
    files()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        failed(error)

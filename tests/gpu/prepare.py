"""Compiles what `run.py` carries to a machine with a GPU and without a compiler.

    python tests/gpu/prepare.py -o FOLDER

Needs the compiler (pip install 'tilecompile[compile]') and no GPU. The folder takes 60 MiB at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:1] = [str(HERE.parent), str(HERE.parents[1])]

import tilecompile  # noqa: E402
from gpu import cases, engines, folder, kernels  # noqa: E402
from tilecompile.errors import TilecompileError  # noqa: E402

ARCHITECTURE = "sm_90a"
PARTS = ("ops", "streams", "smoke", "tiny", "mini", "glm5")
SHARES = {"h200": "h200x8", "h100": "h100x8"}
"""The node of which one device's shard is measured on a GPU."""

Json = dict[str, Any]


def ops(files: Path, progress: engines.Progress, names: tuple[str, ...] = cases.ALL) -> Json:
    """A cubin of `run_tasks` for each op, with the bodies of its trials; the kind of each trial by its node's name."""
    made: Json = {}
    for op in names:
        progress(f"bodies of {op}")
        found = cases.trials(op, 0)
        kinds, of_node, panels = cases.kinds_of(found)
        name = f"ops-{op}.cubin"
        (files / name).write_bytes(kernels.tasks_cubin(kinds, panels, ARCHITECTURE))
        of_name = {node: kind.index for node, kind in of_node.items()}
        made[op] = {"cubin": name, "shared": kernels.SHARED_BYTES, "kinds": of_name}
    return made


def streams(files: Path, progress: engines.Progress) -> Json:
    """The kernels that measure, and the shapes of the rings among them."""
    shapes = kernels.ring_shapes()
    progress(f"{len(shapes)} rings")
    for name, cubin in kernels.stream_cubins(ARCHITECTURE, shapes).items():
        (files / name).write_bytes(cubin)
    rings = [
        {
            "slot": slot,
            "stages": stages,
            "shared": kernels.shared_bytes(slot, stages),
            "cubin": f"stream-{slot}-{stages}.cubin",
        }
        for slot, stages in shapes
    ]
    return {"rings": rings, "cubin": "measure.cubin"}


def prepare(output: Path, parts: tuple[str, ...] = PARTS, progress: engines.Progress = lambda text: None) -> int:
    """Makes the folder; returns the bytes that it takes. `parts` leaves some out."""
    with folder.temporary() as name:
        files = Path(name) / "files"
        files.mkdir()
        index: Json = {"tilecompile": tilecompile.__version__, "architecture": ARCHITECTURE, "parts": list(parts)}
        if "ops" in parts:
            index["ops"] = ops(files, progress)
        if "streams" in parts:
            index["streams"] = streams(files, progress)
        if "smoke" in parts:
            from gpu.smoke import make

            index["smoke"] = make(files, ARCHITECTURE)
        if "tiny" in parts:
            index["tiny"] = engines.tiny(files, progress)
        if "mini" in parts:
            index["mini"] = {gpu: engines.mini(files, gpu, progress) for gpu in SHARES}
        if "glm5" in parts:
            index["glm5"] = {gpu: engines.glm5(files, node, progress) for gpu, node in SHARES.items()}
        progress("packing")
        return folder.write(output, index, files)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    given = parser.parse_args()
    parts = tuple(given.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only has {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    begin = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    try:
        size = prepare(given.output, parts, progress)
    except TilecompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.output}: {size / 2**20:.1f} MiB, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

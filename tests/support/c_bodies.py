"""TileLang bodies as C functions, for numerical tests on the CPU: one thread, no shared memory."""

from __future__ import annotations

import re
from pathlib import Path

from tilecompile.ops.kit.body import Flavor, TileBody
from tilecompile.targets.cuda.lower import Lowered, argument_names, lower, lowered, order_of, parameters_of


def to_c(body: TileBody) -> Lowered:
    """The body as a C function, kept on disk as those of GPUs are."""
    return lowered(body, f"c by {Path(__file__).read_text()}", lambda: _lower_c(body))


def _lower_c(body: TileBody) -> Lowered:
    function = body.build(Flavor(cpu=True), *body.values)
    source = lower(function, "c").kernel_source
    *_, begin = re.finditer(r"int32_t \w+\(([^)]*)\) \{\n", source)
    parameters = parameters_of(begin[1])
    declared = ", ".join([*(f"{kind} {name}" for kind, name in parameters), "void*"])
    text = f"static int @NAME@({declared}) {{\n{source[begin.end() :]}"
    return Lowered(text, 0, order_of(parameters, argument_names(function)))

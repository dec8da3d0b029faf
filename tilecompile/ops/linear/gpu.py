"""The GPU body of linear, and what the bodies of the other ops that stream weights are made of: see gpu.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilecompile.errors import InputError
from tilecompile.ir.expr import to_scalar
from tilecompile.ops.kit.body import StreamBody
from tilecompile.runtime.format import (
    FRAGMENT_BYTES,
    FRAGMENT_COLS,
    PANEL,
    PARTIAL_BYTES,
    RESIDUES,
    SCALE_BLOCK,
    scale_count,
)

if TYPE_CHECKING:
    from tilecompile.ir.node import OpNode, View

TYPES = {"bf16": "Bf16", "fp8": "Fp8"}
ACTIVATION_BYTES = {"bf16": 4, "fp8": 3}


@dataclass(frozen=True)
class Shape:
    """`tc::Shape` of a product of a node: its C++ type, and the scratch memory that it takes."""

    dtype: str
    tokens: int
    cols: int
    weights: int
    phase: int

    @staticmethod
    def of(node: OpNode, tokens: int, cols: int) -> Shape:
        """The shape for a node's weights. InputError for those that the body can't take."""
        weight = node.weights[0]
        if weight.dtype not in TYPES:
            raise InputError(f"{node.name}: weights are {weight.dtype}, the bodies for GPUs take {', '.join(TYPES)}")
        phase = weight.offset % weight.strides[-2] % SCALE_BLOCK if weight.dtype == "fp8" else 0
        if phase % PANEL:
            raise InputError(
                f"{node.name} begins at column {weight.offset % weight.strides[-2]} of {weight.tensor}, "
                f"in fp8 it must be a multiple of {PANEL}"
            )
        return Shape(weight.dtype, tokens, cols, len(node.weights), phase)

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Shape<{TYPES[self.dtype]}, {self.tokens}, {self.cols}, {self.weights}, {self.phase}>"

    @property
    def fixed(self) -> int:
        """Bytes of scratch memory but for what grows with the tile: `FIXED` in gpu.cuh."""
        width = FRAGMENT_COLS[self.dtype]
        staged = -(-self.cols // width) * width * self.tokens * ACTIVATION_BYTES[self.dtype]
        group = self.weights * RESIDUES * 2 * self.tokens * PANEL * 4
        return 576 + staged + max(1, PARTIAL_BYTES // group) * group

    def body(self, statement: str, headers: tuple[str, ...], panel_bytes: int = 0) -> StreamBody:
        """The body that a statement over the type `S` makes, with `panel_bytes` more for each panel of a tile."""
        scales = 4 * scale_count(self.cols, self.phase) if self.dtype == "fp8" else 0
        head = f"using S = {self.cpp};\n  static_assert(S::FIXED == {self.fixed} && S::SCALES == {scales // 4});\n  "
        return StreamBody(head + statement, headers, self.fixed + FRAGMENT_BYTES, scales + panel_bytes)


def normed_input(node: OpNode) -> tuple[str, str]:
    """Whether a norm is folded in, as a template argument, and the arguments x, stride, norm and eps."""
    x, eps = node.inputs[0], node.attrs.get("norm")
    if eps is None:
        return "false", f"c.arg<const float>(0), {x.strides[0]}, nullptr, 0.f"
    return "true", f"c.arg<const float>(0), {x.strides[0]}, c.arg<const float>(1), {eps!r}f"


def epilogue(node: OpNode, first: int, slot: bool = False) -> str:
    """The lambda that stores a row's result to every output; the epilogue's extra inputs are those from `first` on.

    Operands have a dimension of slots between tokens and rows if there is one.
    """
    lines = [f"const float acc{i} = sums[{i}];" for i in range(max(1, len(node.weights)))]
    for i, view in enumerate(node.inputs[first:]):
        lines.append(f"const float in{i} = c.arg<const float>({first + i})[{place(view, slot)}];")
    lines.append(f"const float y = {to_scalar(node.attrs.get('epilogue', ('acc', 0)))};")
    lines += [f"c.arg<float>({i})[{place(v, slot)}] = y;" for i, v in enumerate(node.outputs, len(node.inputs))]
    return "[&](const float* sums, int t, int row) {\n    " + "\n    ".join(lines) + "\n  }"


def place(view: View, slot: bool = False) -> str:
    """The offset of token t and row within a view, with a slot between them if there is one."""
    return f"t * {view.strides[0]} + {f'slot * {view.strides[1]} + ' if slot else ''}row"


def gpu(node: OpNode) -> StreamBody:
    """The body for the node's shapes, prologue and epilogue."""
    tokens, cols = node.inputs[0].shape
    first = 1 + (node.attrs.get("norm") is not None)
    norm, x = normed_input(node)
    store = epilogue(node, first)
    return Shape.of(node, tokens, cols).body(f"linear_rows<S, {norm}>(c, {x}, {store});", ("linear",))

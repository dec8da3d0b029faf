"""The GPU body of linear, and what the bodies of the other ops that stream weights are made of: see gpu.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilecompile.errors import InputError
from tilecompile.ir.expr import to_scalar
from tilecompile.ops.kit.body import StreamBody, check_tokens
from tilecompile.runtime.format import FRAGMENT_BYTES, PANEL, PARTIAL_BYTES, RESIDUES
from tilecompile.runtime.weight_formats import FORMATS, CudaLoader, WeightFormat

if TYPE_CHECKING:
    from tilecompile.ir.node import OpNode, View


@dataclass(frozen=True)
class Shape:
    """`tc::Shape` of a product of a node: its C++ type, and the scratch memory that it takes."""

    stored: WeightFormat
    loader: CudaLoader
    tokens: int
    cols: int
    weights: int
    phase: int

    @staticmethod
    def of(node: OpNode, tokens: int, cols: int) -> Shape:
        """The shape for a node's weights. InputError for those that the body can't take."""
        check_tokens(tokens, node.name)
        weight = node.weights[0]
        stored = FORMATS[weight.dtype]
        if stored.cuda is None:
            taken = ", ".join(name for name, other in FORMATS.items() if other.cuda)
            raise InputError(f"{node.name}: weights are {stored.name}, the bodies for GPUs take {taken}")
        begin = weight.offset % weight.strides[-2]
        phase = stored.phase(begin)
        if phase % PANEL:
            raise InputError(
                f"{node.name} begins at column {begin} of {weight.tensor}, "
                f"in {stored.name} it must be a multiple of {PANEL}"
            )
        return Shape(stored, stored.cuda, tokens, cols, len(node.weights), phase)

    @property
    def cpp(self) -> str:
        """The C++ type."""
        return f"Shape<{self.loader.type}, {self.tokens}, {self.cols}, {self.weights}, {self.phase}>"

    @property
    def fixed(self) -> int:
        """Bytes of scratch memory but for what grows with the tile: `FIXED` in gpu.cuh."""
        width = self.stored.fragment_cols
        staged = -(-self.cols // width) * width * self.tokens * self.loader.activation_bytes
        group = self.weights * RESIDUES * 2 * self.tokens * PANEL * 4
        return 576 + staged + max(1, PARTIAL_BYTES // group) * group

    def body(self, statement: str, headers: tuple[str, ...], panel_bytes: int = 0) -> StreamBody:
        """The body that a statement over the type `S` makes, with `panel_bytes` more for each panel of a tile."""
        scales = self.stored.panel_scales(self.cols, self.phase)
        head = f"using S = {self.cpp};\n  static_assert(S::FIXED == {self.fixed} && S::SCALES == {scales});\n  "
        each = self.stored.scale_bytes(1, self.cols, self.phase) + panel_bytes
        return StreamBody(head + statement, headers, self.fixed + FRAGMENT_BYTES, each)


def normed_input(node: OpNode) -> tuple[str, str]:
    """Whether a norm is folded in, as a template argument, and the arguments x, stride, norm and eps."""
    x, eps = node.inputs[0], node.attrs.get("norm")
    if eps is None:
        return "false", f"c.arg<const float>(0), {x.strides[0]}, nullptr, 0.f"
    return "true", f"c.arg<const float>(0), {x.strides[0]}, c.arg<const float>(1), {eps!r}f"


def epilogue(node: OpNode, first: int, slot: bool = False, guard: str = "") -> str:
    """The lambda that stores a row's result to every output; the epilogue's extra inputs are those from `first` on.

    Operands have a dimension of slots between tokens and rows if there is one. The statement `guard` comes first.
    """
    lines = [guard] if guard else []
    lines += [f"const float acc{i} = sums[{i}];" for i in range(max(1, len(node.weights)))]
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

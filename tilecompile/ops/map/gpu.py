"""The GPU body of map: the expression, element by element, THREADS neighbours at a time."""

from math import prod
from typing import Any

from tilecompile.ir.expr import Expr
from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import CPP, STORED, THREADS, Flavor, PrimFunc, TileBody, extent, tokens_of

MOST = 12
"""Inputs of the prim_func, whose number TileLang requires to be fixed; those that a node lacks are unused."""

Strided = tuple[tuple[int, ...], str]
"""Strides and type of an operand."""


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and expression. Raises ValueError for more than MOST inputs."""
    if len(node.inputs) > MOST:
        raise ValueError(f"{node.name}: map of {len(node.inputs)} inputs, at most {MOST} are possible")
    y = node.outputs[0]
    inputs = [f"c.arg<{CPP[v.dtype]}>({i})" for i, v in enumerate(node.inputs)]
    missing = ["nullptr"] * (MOST - len(inputs))
    args = (*inputs, *missing, f"c.arg<{CPP[y.dtype]}>({len(inputs)})", "c.tile(0)", "c.tile(1)", tokens_of(y))
    views = tuple((v.strides, v.dtype) for v in node.operands)
    return TileBody(build, (y.shape, views, node.attrs["expr"]), args)


def value(expr: Expr, inputs: list[Any]) -> Any:
    """The expression of some inputs' elements as a TileLang expression."""
    import tilelang.language as T

    if expr[0] == "in":
        return inputs[expr[1]]
    if expr[0] == "const":
        return T.float32(float(expr[1]))
    a, b = (*(value(arg, inputs) for arg in expr[1:]), None)[:2]
    one = T.float32(1)
    functions = {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "div": lambda: a / b,
        "maximum": lambda: T.max(a, b),
        "minimum": lambda: T.min(a, b),
        "neg": lambda: -a,
        "relu": lambda: T.max(a, T.float32(0)),
        "sigmoid": lambda: one / (one + T.exp(-a)),
        "silu": lambda: a / (one + T.exp(-a)),
        "gelu_tanh": lambda: 0.5 * a * (one + T.tanh(0.7978845608 * (a + 0.044715 * a * a * a))),
        "tanh": lambda: T.tanh(a),
        "exp": lambda: T.exp(a),
        "sqrt": lambda: T.sqrt(a),
    }
    return functions[expr[0]]()


def build(f: Flavor, shape: tuple[int, ...], views: tuple[Strided, ...], expr: Expr) -> PrimFunc:
    """Elements lo:hi of dimension 1 and all of the dimensions after it, for all tokens."""
    import tilelang.language as T

    inner = prod(shape[2:])
    size = [extent(shape, strides) for strides, _ in views[:-1]] + [1] * (MOST + 1 - len(views))
    kind = [STORED[dtype] for _, dtype in views[:-1]] + ["float32"] * (MOST + 1 - len(views))
    (y_strides, y_dtype) = views[-1]

    def index(strides: tuple[int, ...], t: Any, j: Any, rest: Any) -> Any:
        at = t * strides[0] + (j * strides[1] if len(shape) > 1 else 0)
        step = 1
        for n, stride in reversed(list(zip(shape[2:], strides[2:], strict=True))):
            at += T.truncmod(T.truncdiv(rest, step), n) * stride
            step *= n
        return at

    def result(inputs: tuple[Any, ...], t: Any, j: Any, rest: Any) -> Any:
        pairs = zip(inputs, views[:-1], strict=False)
        elements = [f.widen(x[index(strides, t, j, rest)], dtype) for x, (strides, dtype) in pairs]
        return f.narrow(value(expr, elements), y_dtype)

    @T.prim_func
    def body(
        x0: T.Tensor((size[0],), kind[0]),
        x1: T.Tensor((size[1],), kind[1]),
        x2: T.Tensor((size[2],), kind[2]),
        x3: T.Tensor((size[3],), kind[3]),
        x4: T.Tensor((size[4],), kind[4]),
        x5: T.Tensor((size[5],), kind[5]),
        x6: T.Tensor((size[6],), kind[6]),
        x7: T.Tensor((size[7],), kind[7]),
        x8: T.Tensor((size[8],), kind[8]),
        x9: T.Tensor((size[9],), kind[9]),
        x10: T.Tensor((size[10],), kind[10]),
        x11: T.Tensor((size[11],), kind[11]),
        y: T.Tensor((extent(shape, y_strides),), STORED[y_dtype]),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            count = (hi - lo) * inner
            for t in T.serial(f.present(n, shape[0])):
                for k in T.serial(T.ceildiv(count, THREADS)):
                    for i in f.lanes():
                        e = k * THREADS + i
                        if e < count:
                            j = lo + T.truncdiv(e, inner)
                            rest = T.truncmod(e, inner)
                            y[index(y_strides, t, j, rest)] = result(
                                (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11), t, j, rest
                            )

    return body

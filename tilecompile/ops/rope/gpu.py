"""The GPU body of rope: each element from itself, its partner and the angle of their pair."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, extent, tokens_of

Strides = tuple[int, ...]


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    x, angles, y = node.operands
    args = ("c.arg<float>(0)", "c.arg<float>(1)", "c.arg<float>(2)", "c.tile(0)", "c.tile(1)", tokens_of(x))
    return TileBody(build, (x.shape, x.strides, angles.shape, angles.strides, y.strides), args)


def build(
    f: Flavor,
    shape: tuple[int, ...],
    x_strides: Strides,
    turns: tuple[int, ...],
    a_strides: Strides,
    y_strides: Strides,
) -> PrimFunc:
    """Heads lo:hi of all tokens."""
    import tilelang.language as T

    tokens, _, size = shape
    rotated = 2 * turns[2]

    @T.prim_func
    def body(
        x: T.Tensor((extent(shape, x_strides),), T.float32),
        angles: T.Tensor((extent(turns, a_strides),), T.float32),
        y: T.Tensor((extent(shape, y_strides),), T.float32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                for k in T.serial(T.ceildiv((hi - lo) * size, THREADS)):
                    for i in f.lanes():
                        e = k * THREADS + i
                        if e < (hi - lo) * size:
                            h = lo + T.truncdiv(e, size)
                            d = T.truncmod(e, size)
                            at = t * x_strides[0] + h * x_strides[1]
                            to = t * y_strides[0] + h * y_strides[1] + d
                            if d < rotated:
                                turn = t * a_strides[0] + T.truncdiv(d, 2)
                                sign = T.cast(T.truncmod(d, 2) * 2 - 1, "float32")
                                other = x[at + T.bitwise_xor(d, 1)]
                                y[to] = x[at + d] * angles[turn] + sign * other * angles[turn + a_strides[1]]
                            else:
                                y[to] = x[at + d]

    return body

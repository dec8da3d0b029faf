"""The GPU body of push: stores to the peer's memory, as coalesced as the reads."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes; all types that are exchanged have four bytes."""
    x, y = node.operands
    args = ("c.arg<int32_t>(0)", "c.arg<int32_t>(1)", "c.tile(0)", "c.tile(1)", tokens_of(x))
    return TileBody(build, (*x.shape, x.strides[0], y.strides[0]), args)


def build(f: Flavor, tokens: int, size: int, x_token: int, y_token: int) -> PrimFunc:
    """Columns lo:hi of all tokens."""
    import tilelang.language as T

    @T.prim_func
    def body(
        x: T.Tensor(((tokens - 1) * x_token + size,), T.int32),
        y: T.Tensor(((tokens - 1) * y_token + size,), T.int32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for t in T.serial(f.present(n, tokens)):
                for k in T.serial(T.ceildiv(hi - lo, THREADS)):
                    for i in f.lanes():
                        if lo + k * THREADS + i < hi:
                            y[t * y_token + lo + k * THREADS + i] = x[t * x_token + lo + k * THREADS + i]

    return body

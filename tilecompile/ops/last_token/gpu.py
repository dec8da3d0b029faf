"""The GPU body of last_token: THREADS neighbouring columns at a time."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes; types have four bytes."""
    x = node.inputs[0]
    args = ("c.arg<uint32_t>(0)", "c.arg<uint32_t>(1)", "c.tile(0)", "c.tile(1)", tokens_of(x))
    return TileBody(build, (*x.shape, x.strides[0]), args)


def build(f: Flavor, tokens: int, width: int, x_token: int) -> PrimFunc:
    """Columns lo:hi of the row of the step's last token."""
    import tilelang.language as T

    @T.prim_func
    def body(
        x: T.Tensor(((tokens - 1) * x_token + width,), T.uint32),
        y: T.Tensor((width,), T.uint32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            for k in T.serial(T.ceildiv(hi - lo, THREADS)):
                for i in f.lanes():
                    if lo + k * THREADS + i < hi:
                        y[lo + k * THREADS + i] = x[(f.present(n, tokens) - 1) * x_token + lo + k * THREADS + i]

    return body

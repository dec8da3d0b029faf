"""The GPU body of token_positions: a thread a token."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes; there are fewer tokens than threads."""
    y = node.outputs[0]
    args = ("c.arg<int32_t>(0)[0]", "c.arg<int32_t>(1)", tokens_of(y))
    return TileBody(build, (y.shape[0], y.strides[0]), args)


def build(f: Flavor, tokens: int, y_token: int) -> PrimFunc:
    """The positions of the step's tokens."""
    import tilelang.language as T

    @T.prim_func
    def body(position: T.int32, y: T.Tensor(((tokens - 1) * y_token + 1,), T.int32), n: T.int32):
        with T.Kernel(1, threads=THREADS):
            for i in f.lanes():
                if i < f.present(n, tokens):
                    y[i * y_token] = position + i

    return body

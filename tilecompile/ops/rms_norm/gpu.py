"""The GPU body of rms_norm: THREADS sums over k mod THREADS, added as a tree."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes."""
    x, _, y = node.operands
    args = ("c.arg<float>(0)", "c.arg<float>(1)", "c.arg<float>(2)", tokens_of(x))
    return TileBody(build, (*x.shape, x.strides[0], y.strides[0], node.attrs["eps"]), args)


def build(f: Flavor, tokens: int, size: int, x_token: int, y_token: int, eps: float) -> PrimFunc:
    """Token by token, so that the order of a sum doesn't depend on their number."""
    import tilelang.language as T

    @T.prim_func
    def body(
        x: T.Tensor(((tokens - 1) * x_token + size,), T.float32),
        w: T.Tensor((size,), T.float32),
        y: T.Tensor(((tokens - 1) * y_token + size,), T.float32),
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            part = f.fragment((THREADS,), "float32")
            total = f.fragment((1,), "float32")
            for t in T.serial(f.present(n, tokens)):
                for i in f.lanes():
                    part[i] = 0
                    for k in T.serial(T.ceildiv(size, THREADS)):
                        if k * THREADS + i < size:
                            part[i] += x[t * x_token + k * THREADS + i] * x[t * x_token + k * THREADS + i]
                T.reduce_sum(part, total, dim=0)
                for i in f.lanes():
                    for k in T.serial(T.ceildiv(size, THREADS)):
                        if k * THREADS + i < size:
                            y[t * y_token + k * THREADS + i] = (
                                x[t * x_token + k * THREADS + i]
                                * (1 / T.sqrt(total[0] / size + eps))
                                * w[k * THREADS + i]
                            )

    return body

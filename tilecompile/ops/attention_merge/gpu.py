"""The GPU body of attention_merge: each thread takes every THREADS-th latent of a head; all compute the factors."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, extent, tokens_of


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes and strides."""
    parts, y = node.operands
    args = ("c.arg<float>(0)", "c.arg<float>(1)", "c.tile(0)", "c.tile(1)", tokens_of(parts))
    return TileBody(build, (parts.shape, parts.strides, y.strides), args)


def build(f: Flavor, shape: tuple[int, ...], p_strides: tuple[int, ...], y_strides: tuple[int, ...]) -> PrimFunc:
    """Heads lo:hi of all tokens; the parts are added in their order."""
    import tilelang.language as T

    tokens, count, heads, width = shape
    latent = width - 2

    @T.prim_func
    def body(
        parts: T.Tensor((extent(shape, p_strides),), T.float32),
        y: T.Tensor((extent((tokens, heads, latent), y_strides),), T.float32),
        lo: T.int32,
        hi: T.int32,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            most = T.alloc_local((1,), "float32")
            total = T.alloc_local((1,), "float32")
            factor = T.alloc_local((count,), "float32")
            part = f.fragment((THREADS,), "float32")
            for t in T.serial(f.present(n, tokens)):
                for h in T.serial(lo, hi):
                    most[0] = -T.infinity("float32")
                    for s in T.unroll(count):
                        end = t * p_strides[0] + s * p_strides[1] + h * p_strides[2] + latent
                        if parts[end + 1] != 0:
                            most[0] = T.max(most[0], parts[end])
                    total[0] = 0
                    for s in T.unroll(count):
                        end = t * p_strides[0] + s * p_strides[1] + h * p_strides[2] + latent
                        factor[s] = 0
                        if parts[end + 1] != 0:
                            factor[s] = T.exp(parts[end] - most[0])
                        total[0] += factor[s] * parts[end + 1]
                    for k in T.serial(T.ceildiv(latent, THREADS)):
                        for i in f.lanes():
                            if k * THREADS + i < latent:
                                part[i] = 0
                                for s in T.unroll(count):
                                    at = t * p_strides[0] + s * p_strides[1] + h * p_strides[2]
                                    part[i] += factor[s] * parts[at + k * THREADS + i]
                                y[t * y_strides[0] + h * y_strides[1] + k * THREADS + i] = part[i] / total[0]

    return body

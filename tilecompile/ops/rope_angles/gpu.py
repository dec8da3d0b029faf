"""The GPU body of rope_angles: the f32 angle brought near 0 in double precision, then Taylor series.

The library's functions of large angles take local memory, which kernels must not. With x = k · π/2 + r, |r| <= π/4, and
π/2 as a number of 33 bits and the rest, r is good to 1e-15 (Cody and Waite), and the series to 2e-13.
"""

from typing import Any

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, Flavor, PrimFunc, TileBody, tokens_of

HALF_PI = ("1.57079632673412561417", "6.07710050650619224932e-11")
"""π/2 = a number whose products with 20-bit numbers are exact + the rest."""


def gpu(node: OpNode) -> TileBody:
    """The body for the node's shapes. Constants are arguments: TileLang's C target prints them to seven digits."""
    y = node.outputs[0]
    pointers = ("c.arg<int32_t>(0)[0]", "c.arg<float>(1)", "c.arg<float>(2)")
    args = (*pointers, "0.63661977236758134308", *HALF_PI, "1. / 6", tokens_of(y))
    return TileBody(build, (y.shape[0], y.shape[2], y.strides[0], y.strides[1]), args)


def build(f: Flavor, tokens: int, count: int, y_token: int, y_row: int) -> PrimFunc:
    """All angles of all tokens."""
    import tilelang.language as T

    def sine(x: Any, s: Any, sixth: Any) -> Any:
        more = s * (1 / 120 - s * (1 / 5040 - s * (1 / 362880 - s * (1 / 39916800 - s * (1 / 6227020800)))))
        return x - x * s * (sixth - more)

    def cosine(s: Any) -> Any:
        more = s * (1 / 720 - s * (1 / 40320 - s * (1 / 3628800 - s * (1 / 479001600 - s * (1 / 87178291200)))))
        return 1 - s * (0.5 - s * (1 / 24 - more))

    @T.prim_func
    def body(
        position: T.int32,
        inv_freq: T.Tensor((count,), T.float32),
        y: T.Tensor(((tokens - 1) * y_token + y_row + count,), T.float32),
        per_quarter: T.float64,
        quarter: T.float64,
        quarter_rest: T.float64,
        sixth: T.float64,
        n: T.int32,
    ):
        with T.Kernel(1, threads=THREADS):
            angle = f.fragment((THREADS,), "float64")
            square = f.fragment((THREADS,), "float64")
            turns = f.fragment((THREADS,), "int32")
            sin = f.fragment((THREADS,), "float32")
            cos = f.fragment((THREADS,), "float32")
            for k in T.serial(T.ceildiv(f.present(n, tokens) * count, THREADS)):
                for i in f.lanes():
                    t = T.truncdiv(k * THREADS + i, count)
                    j = T.truncmod(k * THREADS + i, count)
                    if t < f.present(n, tokens):
                        angle[i] = T.cast(T.cast(position + t, "float32") * inv_freq[j], "float64")
                        turns[i] = T.cast(angle[i] * per_quarter + 0.5, "int32")
                        angle[i] -= T.cast(turns[i], "float64") * quarter
                        angle[i] -= T.cast(turns[i], "float64") * quarter_rest
                        square[i] = angle[i] * angle[i]
                        sin[i] = T.cast(sine(angle[i], square[i], sixth), "float32")
                        cos[i] = T.cast(cosine(square[i]), "float32")
                        if T.bitwise_and(turns[i], 1) == 1:
                            y[t * y_token + j] = sin[i] * T.cast(1 - T.bitwise_and(turns[i] + 1, 2), "float32")
                            y[t * y_token + y_row + j] = cos[i] * T.cast(1 - T.bitwise_and(turns[i], 2), "float32")
                        else:
                            y[t * y_token + j] = cos[i] * T.cast(1 - T.bitwise_and(turns[i] + 1, 2), "float32")
                            y[t * y_token + y_row + j] = sin[i] * T.cast(1 - T.bitwise_and(turns[i], 2), "float32")

    return body

"""The GPU body of sample: see gpu.cuh."""

from tilecompile.ir.node import OpNode
from tilecompile.ops.kit.body import THREADS, HandBody, check_tokens
from tilecompile.runtime.format import BODY_TOKENS, INTERVAL_BITS, MAX_STOP_IDS

LISTED = 8 * THREADS
"""`SAMPLE_LISTED` in gpu.cuh."""


def gpu(node: OpNode) -> HandBody:
    """The body for the node's shapes. InputError for more tokens than bodies take."""
    logits, ids = node.inputs[:2]
    rows, vocab = logits.shape
    tokens = ids.shape[0]
    check_tokens(tokens, node.name)
    scratch = room(vocab)
    statement = (
        f"static_assert(sizeof(SampleRoom<{vocab}>) == {scratch});\n  "
        f"sample<{vocab}, {tokens}>(c, {str(rows < tokens).lower()}, {node.attrs['shift']}, c.arg<const float>(0), "
        f"{logits.strides[0]}, c.arg<int32_t>(6));"
    )
    return HandBody(statement, ("sample",), scratch)


def room(vocab: int) -> int:
    """Bytes of shared memory: `SampleRoom` in gpu.cuh."""
    words = 2 + 4 + LISTED + 2 * (MAX_STOP_IDS + BODY_TOKENS) + -(-vocab // 32)
    return 8 * (1 << INTERVAL_BITS) + 16 * THREADS + 8 * -(-words // 2)

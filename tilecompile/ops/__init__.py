"""The tile ops: a small vocabulary that models are written in. Importing this package registers all of them."""

from tilecompile.ops.linear import linear
from tilecompile.ops.rms_norm import rms_norm

__all__ = ["linear", "rms_norm"]

"""The tile ops: a small vocabulary that models are written in. Importing this package registers all of them."""

from tilecompile.ops.dispatch import dispatch
from tilecompile.ops.expert_combine import expert_combine
from tilecompile.ops.expert_linear import expert_linear
from tilecompile.ops.linear import linear
from tilecompile.ops.rms_norm import rms_norm
from tilecompile.ops.route import route

__all__ = [
    "dispatch",
    "expert_combine",
    "expert_linear",
    "linear",
    "rms_norm",
    "route",
]

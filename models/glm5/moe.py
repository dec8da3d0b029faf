"""GLM-5's mixture of experts: router, routed experts, and the shared expert, which every token passes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from tilecompile import ops
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.modules import GatedMlp, Matrix, weight
from tilecompile.models.spec import Storage


class Router(nn.Module):
    """Chooses the experts of each token, by sigmoid scores plus a bias that counts for the choice only."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.topk, self.normalize, self.scale = c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor
        self.weight = weight(c.n_routed_experts, c.hidden_size, dtype=s.exact)
        self.e_score_correction_bias = weight(c.n_routed_experts)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h [T, hidden] -> expert ids i32 [T, k] and their weights [T, k]."""
        logits = ops.linear(h, self.weight)
        ids, weights = ops.route(logits, self.e_score_correction_bias, self.topk, self.normalize, self.scale)
        return ids, weights


class Experts(nn.Module):
    """The routed experts. The tokens of a step share slots: an expert that several tokens chose is read once."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.count, self.topk = c.n_routed_experts, c.num_experts_per_tok
        self.gate_proj = Matrix(self.count, c.moe_intermediate_size, c.hidden_size, dtype=s.weights)
        self.up_proj = Matrix(self.count, c.moe_intermediate_size, c.hidden_size, dtype=s.weights)
        self.down_proj = Matrix(self.count, c.hidden_size, c.moe_intermediate_size, dtype=s.weights)

    def forward(self, h: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """h [T, hidden], ids and weights [T, k] -> [T, hidden]."""
        slots = min(h.shape[0] * self.topk, self.count)
        expert, slot_weight = ops.dispatch(ids, weights, slots)
        gate = ops.expert_linear(h, expert, slot_weight, self.gate_proj.weight, self.topk)
        up = ops.expert_linear(h, expert, slot_weight, self.up_proj.weight, self.topk)
        y: Tensor = ops.expert_combine(silu(gate) * up, expert, slot_weight, self.down_proj.weight, self.topk)
        return y


class Moe(nn.Module):
    """The mixture of experts: the shared expert, which every token passes, and the routed ones."""

    def __init__(self, c: Glm5Config, s: Storage) -> None:
        super().__init__()
        self.gate = Router(c, s)
        self.experts = Experts(c, s)
        self.shared_experts = GatedMlp(c.hidden_size, c.shared_intermediate_size, s.weights)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The residual x plus the experts' outputs for the normed h; [T, hidden] each."""
        ids, weights = self.gate(h)
        y: Tensor = self.shared_experts(x, h) + self.experts(h, ids, weights)
        return y

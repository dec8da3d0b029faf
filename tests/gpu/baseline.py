"""Part `baseline`: one device's shard of GLM-5's layers in torch, as CUDA graphs.

What it doesn't do: exchanges between devices, the choice of experts (the same 8 experts' matrices are stored one after
the other, so that each layer takes two products for them), and rotation of queries and keys. Its products are
torch._scaled_mm of fp8 weights and fp8 activations with one scale each, or, where that fails, bf16 products; the result
says which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from gpu.folder import Folder
from gpu.share import bandwidth_of, plan_for, roof

Json = dict[str, Any]


@dataclass(frozen=True)
class Shapes:
    """Sizes of one device's shard; the defaults are GLM-5's on 8 devices."""

    hidden: int = 6144
    q_rank: int = 2048
    latent: int = 512
    rope: int = 64
    heads: int = 8
    nope: int = 192
    value: int = 256
    index_heads: int = 32
    index_head: int = 128
    topk: int = 2048
    dense: int = 1536
    experts: int = 256
    chosen: int = 8
    expert: int = 256
    vocab: int = 19360
    dense_layers: int = 3


GLM5 = Shapes()


class Product:
    """A weight matrix [rows, cols] and its product with a vector, in fp8 or bf16."""

    def __init__(self, rows: int, cols: int, fp8: bool, device: str) -> None:
        if fp8:
            bits = torch.randint(0, 256, (rows, cols), dtype=torch.uint8, device=device)
            weights = ((bits & 0x87) | 0x30).view(torch.float8_e4m3fn)
        else:
            weights = torch.randn((rows, cols), device=device, dtype=torch.bfloat16) * cols**-0.5
        self.weights = weights.t()
        self.scale = torch.ones((), device=device)
        self.small = torch.full((), cols**-0.5, device=device)
        self.fp8 = fp8

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of x [1, cols] as bf16 [1, rows]."""
        if not self.fp8:
            return x @ self.weights
        a = x.clamp(-448, 448).to(torch.float8_e4m3fn)
        return torch._scaled_mm(a, self.weights, self.scale, self.small, out_dtype=torch.bfloat16)


class Layer:
    """One layer's shard, with caches of a context."""

    def __init__(self, s: Shapes, sparse: bool, context: int, fp8: bool, device: str) -> None:
        def product(rows: int, cols: int) -> Product:
            return Product(rows, cols, fp8, device)

        self.s, self.sparse = s, sparse
        self.in_hidden = product(s.q_rank + s.latent + s.rope + s.index_head + s.index_heads, s.hidden)
        self.in_rank = product(s.heads * (s.nope + s.rope) + s.index_heads * s.index_head, s.q_rank)
        self.uk = torch.randn((s.heads, s.nope, s.latent), device=device, dtype=torch.bfloat16) * s.nope**-0.5
        self.uv = torch.randn((s.heads, s.latent, s.value), device=device, dtype=torch.bfloat16) * s.latent**-0.5
        self.o = product(s.hidden, s.heads * s.value)
        wide = s.chosen * s.expert + s.expert if sparse else s.dense
        self.router = torch.randn((s.hidden, s.experts), device=device, dtype=torch.bfloat16) * s.hidden**-0.5
        self.up, self.down = product(2 * wide, s.hidden), product(s.hidden, wide)
        self.keys = torch.randn((context, s.index_head), device=device, dtype=torch.bfloat16)
        self.rows = torch.randn((context, s.latent + s.rope), device=device, dtype=torch.bfloat16)
        self.norms = [
            torch.ones(n, device=device, dtype=torch.bfloat16) for n in (s.hidden, s.q_rank, s.latent, s.hidden)
        ]
        self.at = torch.tensor([context - 1], device=device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for a hidden state [1, hidden]."""
        s = self.s
        sizes = (s.q_rank, s.latent, s.rope, s.index_head, s.index_heads)
        rank, latent, rope, key, weight = self.in_hidden(self._norm(x, 0)).split(sizes, -1)
        rank = self._norm(rank, 1)
        self.rows.index_copy_(0, self.at, torch.cat([self._norm(latent, 2), rope], -1))
        self.keys.index_copy_(0, self.at, F.layer_norm(key, (s.index_head,)))
        query, index_query = self.in_rank(rank).split((s.heads * (s.nope + s.rope), s.index_heads * s.index_head), -1)
        rows = self.rows
        if len(rows) > s.topk:
            scores = weight @ F.relu(index_query.view(s.index_heads, s.index_head) @ self.keys.t())
            rows = rows.index_select(0, scores[0].topk(s.topk, sorted=False).indices)
        query = query.view(s.heads, s.nope + s.rope)
        absorbed = torch.bmm(query[:, None, : s.nope], self.uk)[:, 0]
        scores = torch.cat([absorbed, query[:, s.nope :]], -1) @ rows.t() * (s.nope + s.rope) ** -0.5
        found = scores.float().softmax(-1).to(rows.dtype) @ rows[:, : s.latent]
        x = x + self.o(torch.bmm(found[:, None], self.uv).view(1, s.heads * s.value))
        h = self._norm(x, 3)
        gate, up = self.up(h).chunk(2, -1)
        inner = F.silu(gate) * up
        if self.sparse:
            chosen = torch.sigmoid((h @ self.router).float()).topk(s.chosen, -1).values
            share = (chosen / chosen.sum(-1, keepdim=True)).to(inner.dtype).repeat_interleave(s.expert, -1)
            inner = torch.cat([inner[:, : s.chosen * s.expert] * share, inner[:, s.chosen * s.expert :]], -1)
        return x + self.down(inner)

    def _norm(self, x: torch.Tensor, which: int) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.norms[which], 1e-5)


class Share:
    """All layers, the last norm, the head's part and the best of its logits."""

    def __init__(self, s: Shapes, layers: int, context: int, fp8: bool, device: str = "cuda") -> None:
        self.layers = [Layer(s, i >= s.dense_layers, context, fp8, device) for i in range(layers)]
        self.head = Product(s.vocab, s.hidden, fp8, device)
        self.x = torch.randn((1, s.hidden), device=device, dtype=torch.bfloat16)

    def __call__(self) -> torch.Tensor:
        """The id."""
        x = self.x
        for layer in self.layers:
            x = layer(x)
        return self.head(F.rms_norm(x, x.shape[-1:])).argmax(-1)


def scaled_mm_works() -> bool:
    """Whether torch multiplies fp8 matrices with one row here."""
    try:
        Product(256, 512, True, "cuda")(torch.randn((1, 512), device="cuda", dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def graph_ms(share: Share, repeats: int = 20) -> float:
    """Median milliseconds of a step as a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            share()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        share()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for i in range(3 + repeats):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return float(torch.tensor(times).median())


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """A step at each context beside the resident kernel's."""
    if not torch.cuda.is_available():
        raise RuntimeError("torch has no GPU here")
    about = plan_for(folder, "glm5")
    end = time.monotonic() + seconds
    fp8 = scaled_mm_works()
    rows: list[Json] = []
    left_out: list[str] = []
    with torch.inference_mode():
        for predicted in about["predicted"]:
            context = predicted["context"]
            if time.monotonic() > end:
                left_out.append(f"context {context}")
                continue
            share = Share(GLM5, about["layers"], context, fp8)
            rows.append(beside(roof(predicted, graph_ms(share), bandwidth_of(earlier)), earlier))
            del share
            torch.cuda.empty_cache()
    products = "torch._scaled_mm, fp8 weights and activations" if fp8 else "bf16 weights and activations"
    return {
        "passed": not left_out and all(row.get("over_resident", 0) >= 2 for row in rows),
        "products": products,
        "spared": "exchanges, the choice of experts, rotations",
        "torch": torch.__version__,
        "steps": rows,
        "left_out": left_out,
        "summary": [
            (
                f"context {row['context']}, {products}",
                f"{row['ms']:.3f} ms",
                f"{row['over_resident']:.2f} × the resident kernel" if "over_resident" in row else "",
            )
            for row in rows
        ],
    }


def beside(row: Json, earlier: Json) -> Json:
    """Adds the ratio to the time of the resident kernel's step, if that was measured."""
    steps = earlier.get("share", {}).get("steps", ())
    mine = [one["ms"] for one in steps if one["context"] == row["context"] and one["latency_ns"] == 0]
    return {**row, **({"over_resident": row["ms"] / mine[0]} if mine else {})}

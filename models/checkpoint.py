"""Where a step's parameters come from: the tensors of a published checkpoint, or a generator with a seed.

`parameters` is the table: for every parameter of `Glm5Step` and `MtpStep` its shape and the windows of checkpoint
tensors that its matrices are. `Checkpoint` reads such windows from safetensors files, a few rows at a time;
`DrawnWeights` draws them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilecompile.models.config import Glm5Config
from tilecompile.models.glm5 import inverse_frequencies
from tilecompile.runtime.errors import InputError

INV_FREQ = "model.inv_freq"
"""The one table of a step that no checkpoint holds."""


@dataclass(frozen=True)
class Window:
    """One matrix of a parameter, as it lies in a checkpoint tensor of shape `shape`.

    The matrix begins at (`row`, `col`) of the tensor; if `transposed`, its rows are columns of the tensor.
    """

    tensor: str
    shape: tuple[int, ...]
    row: int = 0
    col: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Parameter:
    """A parameter: its shape ([N], [rows, cols] or [matrices, rows, cols]) and one window a matrix."""

    shape: tuple[int, ...]
    windows: tuple[Window, ...]


def parameters(config: Glm5Config) -> dict[str, Parameter]:
    """Every parameter of the model's steps by name, with the MTP layer's where the model has one."""
    c = config
    table: dict[str, Parameter] = {}

    def plain(name: str, *shape: int, tensor: str | None = None) -> None:
        table[name] = Parameter(shape, (Window(tensor or name, shape),))

    def mlp(prefix: str, intermediate: int) -> None:
        plain(f"{prefix}.gate_proj.weight", intermediate, c.hidden_size)
        plain(f"{prefix}.up_proj.weight", intermediate, c.hidden_size)
        plain(f"{prefix}.down_proj.weight", c.hidden_size, intermediate)

    plain("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
    head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    plain("lm_head.weight", c.vocab_size, c.hidden_size, tensor=head)
    plain("model.norm.weight", c.hidden_size)
    for layer in range(c.num_hidden_layers + (c.mtp_layer is not None)):
        prefix = f"model.layers.{layer}"
        attn, extra = f"{prefix}.self_attn", layer == c.mtp_layer
        plain(f"{prefix}.input_layernorm.weight", c.hidden_size)
        plain(f"{prefix}.post_attention_layernorm.weight", c.hidden_size)
        plain(f"{attn}.q_a_proj.weight", c.q_lora_rank, c.hidden_size)
        plain(f"{attn}.q_a_layernorm.weight", c.q_lora_rank)
        plain(f"{attn}.q_b_proj.weight", c.num_attention_heads * c.qk_head_dim, c.q_lora_rank)
        plain(f"{attn}.kv_a_proj_with_mqa.weight", c.kv_width, c.hidden_size)
        plain(f"{attn}.kv_a_layernorm.weight", c.kv_lora_rank)
        plain(f"{attn}.o_proj.weight", c.hidden_size, c.num_attention_heads * c.v_head_dim)
        # kv_b_proj holds, head after head, the rows that make keys from the latent and those that make values.
        rows = c.qk_nope_head_dim + c.v_head_dim
        kv_b = Window(f"{attn}.kv_b_proj.weight", (c.num_attention_heads * rows, c.kv_lora_rank))
        keys = tuple(dataclasses.replace(kv_b, row=h * rows, transposed=True) for h in range(c.num_attention_heads))
        values = tuple(dataclasses.replace(w, row=w.row + c.qk_nope_head_dim, transposed=False) for w in keys)
        table[f"{attn}.w_uk"] = Parameter((c.num_attention_heads, c.kv_lora_rank, c.qk_nope_head_dim), keys)
        table[f"{attn}.w_uv"] = Parameter((c.num_attention_heads, c.v_head_dim, c.kv_lora_rank), values)
        if extra or c.indexer_types[layer] == "full":
            plain(f"{attn}.indexer.wq_b.weight", c.index_n_heads * c.index_head_dim, c.q_lora_rank)
            plain(f"{attn}.indexer.wk.weight", c.index_head_dim, c.hidden_size)
            plain(f"{attn}.indexer.k_norm.weight", c.index_head_dim)
            plain(f"{attn}.indexer.k_norm.bias", c.index_head_dim)
            plain(f"{attn}.indexer.weights_proj.weight", c.index_n_heads, c.hidden_size)
        if not extra and c.mlp_layer_types[layer] == "dense":
            mlp(f"{prefix}.mlp", c.intermediate_size)
        else:
            plain(f"{prefix}.mlp.gate.weight", c.n_routed_experts, c.hidden_size)
            plain(f"{prefix}.mlp.gate.e_score_correction_bias", c.n_routed_experts)
            mlp(f"{prefix}.mlp.shared_experts", c.shared_intermediate_size)
            for part in ("gate_proj", "up_proj", "down_proj"):
                shape = (c.moe_intermediate_size, c.hidden_size)
                shape = shape[::-1] if part == "down_proj" else shape
                names = (f"{prefix}.mlp.experts.{e}.{part}.weight" for e in range(c.n_routed_experts))
                stack = Parameter((c.n_routed_experts, *shape), tuple(Window(name, shape) for name in names))
                table[f"{prefix}.mlp.experts.{part}.weight"] = stack
        if extra:
            for name in ("enorm", "hnorm", "shared_head.norm"):
                plain(f"{prefix}.{name}.weight", c.hidden_size)
            for half, name in enumerate(("embed", "hidden")):
                window = Window(f"{prefix}.eh_proj.weight", (c.hidden_size, 2 * c.hidden_size), 0, half * c.hidden_size)
                table[f"{prefix}.eh_proj_{name}.weight"] = Parameter((c.hidden_size, c.hidden_size), (window,))
    return table


class Weights:
    """A model's parameters, read a few rows at a time.

    `config` is the model that they make, `source` their origin in words, `notes` what a user should be told.
    """

    def __init__(self, config: Glm5Config, source: str, notes: tuple[str, ...] = ()) -> None:
        self.config, self.source, self.notes = config, source, notes
        self.parameters = parameters(config)

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        """Rows and columns of a checkpoint tensor; a 1-d tensor counts as one row."""
        raise NotImplementedError

    def read(self, name: str, matrix: int, row_begin: int, row_end: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `row_begin:row_end` of one matrix of a parameter, [rows, cols] and contiguous, rounded to nearest even.

        A 2-d parameter is one matrix; a 1-d one is a matrix of one row.
        """
        parameter = self.parameters[name]
        window, width = parameter.windows[matrix], parameter.shape[-1]
        if window.transposed:
            cols = slice(window.col + row_begin, window.col + row_end)
            part = self._window(window.tensor, window.shape, slice(window.row, window.row + width), cols).T
        else:
            rows = slice(window.row + row_begin, window.row + row_end)
            part = self._window(window.tensor, window.shape, rows, slice(window.col, window.col + width))
        return part.to(dtype).contiguous()

    def full(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A whole parameter in its own shape, or the table of rotation frequencies."""
        if name == INV_FREQ:
            return inverse_frequencies(self.config)
        parameter = self.parameters[name]
        rows = parameter.shape[-2] if len(parameter.shape) > 1 else 1
        matrices = [self.read(name, i, 0, rows, dtype) for i in range(len(parameter.windows))]
        return torch.cat(matrices).reshape(parameter.shape)


def _listed(items: Iterable[str], limit: int = 10) -> str:
    """Names in one line, cut after `limit`."""
    names = list(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


class Checkpoint(Weights):
    """A checkpoint folder: config.json, and model.safetensors or its shards with their index.

    All that the model needs is checked when the folder is opened, and named in one InputError.
    """

    DTYPES = ("F32", "BF16", "F16")

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            found = "a file" if self.folder.exists() else "nothing"
            raise InputError(f"{folder}: found {found}, wanted a folder with config.json and model.safetensors")
        if not (self.folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json")
        config = Glm5Config.from_file(self.folder / "config.json")
        self._files: dict[str, Any] = {}
        self._shards = self._locate()
        notes: tuple[str, ...] = ()
        mtp = f"model.layers.{config.mtp_layer}."
        if config.mtp_layer is not None and not any(name.startswith(mtp) for name in self._shards):
            # transformers drops the layer when it saves a model, but keeps the field.
            notes = (f"{folder}: config.json has an MTP layer but no tensor {mtp}* exists; compiled without it",)
            config = dataclasses.replace(config, num_nextn_predict_layers=0)
        super().__init__(config, str(folder), notes)
        self._check()

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            try:
                self._files[shard] = safe_open(self.folder / shard, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{self.folder / shard}: not a readable safetensors file ({error})") from error
        return self._files[shard]

    def _locate(self) -> dict[str, str]:
        """The file of each tensor."""
        single, index = "model.safetensors", self.folder / "model.safetensors.index.json"
        if (self.folder / single).is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        if not index.is_file():
            raise InputError(f"{self.folder}: no {single} and no {index.name} (other formats are not read)")
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{index}: not a safetensors index ({type(error).__name__}: {error})") from error
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise InputError(f"{index}: weight_map: wanted an object of tensor names and file names in the folder")
        absent = [name for name in sorted(set(shards.values())) if not os.path.isfile(self.folder / name)]
        if absent:
            raise InputError(f"{index}: names files that don't exist: {_listed(absent)}")
        return shards

    def _check(self) -> None:
        """Compares every needed tensor with the table."""
        needed = {w.tensor: w.shape for p in self.parameters.values() for w in p.windows}
        held = {shard: set(self._open(shard).keys()) for shard in sorted(set(self._shards.values()))}
        missing, lost, shapes, dtypes = [], [], [], []
        for name, shape in needed.items():
            if name not in self._shards:
                missing.append(name)
            elif name not in held[self._shards[name]]:
                lost.append(f"{name} ({self._shards[name]})")
            else:
                header = self._open(self._shards[name]).get_slice(name)
                if tuple(header.get_shape()) != shape:
                    shapes.append(f"{name} (found {list(header.get_shape())}, wanted {list(shape)})")
                if header.get_dtype() not in self.DTYPES:
                    dtypes.append(f"{name} ({header.get_dtype()})")
        faults = []
        if missing:
            faults.append(f"{_tensors(len(missing))} missing: {_listed(missing)}")
        if lost:
            faults.append(f"{_tensors(len(lost))} not in the file that the index names: {_listed(lost)}")
        if shapes:
            faults.append(f"{_tensors(len(shapes))} of another shape: {_listed(shapes)}")
        if dtypes:
            fp8 = "; FP8 checkpoints are not supported yet" if any("(F8" in text for text in dtypes) else ""
            wanted = f"wanted {', '.join(self.DTYPES)}{fp8}"
            faults.append(f"{_tensors(len(dtypes))} of an unsupported dtype: {_listed(dtypes)}, {wanted}")
        if faults:
            raise InputError(f"{self.folder}: {'; '.join(faults)}")

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        stored = self._open(self._shards[tensor]).get_slice(tensor)
        try:
            part: Tensor = stored[cols][None] if len(shape) == 1 else stored[rows, cols]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder / self._shards[tensor]}: can't read {tensor} ({error})") from error
        return part


BLOCK = 64
"""Rows of a tensor that are drawn together."""


class DrawnWeights(Weights):
    """Random weights from a seed, for models whose weights one doesn't have.

    Every block of rows of every checkpoint tensor is drawn by itself from (seed, tensor, block), so any window costs
    only its own blocks. Values are uniform, in steps of 16-bit integers: exact on every machine, and sums over a row
    are close to normal all the same. Only the variance matters, and it is chosen so that

    - the embedding (unless it is the lm_head too) and every product with a normed input have unit variance (variance
      1/columns), hence queries, keys, router logits and logits are of order 1, index scores spread around 0, and
      experts are chosen evenly;
    - attention scores have a deviation of 2 (`q_b_proj`): a few dozen of the selected positions carry the weight, so
      a wrong position shows in the logits;
    - the 2·layers branches that are added to the residual stream together add about its own variance (`o_proj` and
      `down_proj`), so depth doesn't blow it up and each branch still counts;
    - norm weights, norm biases and the router's bias differ enough from 1 and 0 that leaving one out shows.
    """

    def __init__(self, config: Glm5Config, seed: int) -> None:
        super().__init__(config, f"weights drawn with seed {seed}")
        self.seed = seed
        self._block = lru_cache(maxsize=16)(self._draw)

    def _spread(self, tensor: str, cols: int) -> tuple[float, float]:
        """Mean and standard deviation of a tensor's values."""
        if tensor.endswith("e_score_correction_bias"):
            return 0.0, 0.02
        if tensor.endswith("k_norm.bias"):
            return 0.0, 0.1
        if "norm" in tensor.rsplit(".", 2)[1]:
            return 1.0, 0.1
        if tensor == "model.embed_tokens.weight":
            return 0.0, float(cols**-0.5) if self.config.tie_word_embeddings else 1.0
        gain = 1.0
        if tensor.endswith((".o_proj.weight", ".down_proj.weight")):
            # silu(gate)·up of unit normals has a deviation of 0.6, the attended values about 0.2 to 1.
            gain = 2.0 * float((2 * self.config.num_hidden_layers) ** -0.5)
        elif tensor.endswith(".q_b_proj.weight"):
            gain = 2.0
        return 0.0, gain * float(cols**-0.5)

    def _draw(self, tensor: str, rows: int, cols: int, block: int) -> npt.NDArray[np.float32]:
        """Block number `block` of a tensor of `rows` rows."""
        rows = min(BLOCK, rows - block * BLOCK)
        digest = hashlib.blake2b(f"{self.seed}/{tensor}/{block}".encode(), digest_size=16).digest()
        generator = np.random.PCG64(int.from_bytes(digest, "little"))
        raw = generator.random_raw(-(-rows * cols // 4)).astype("<u8").view("<i2")[: rows * cols]
        mean, deviation = self._spread(tensor, cols)
        step = deviation * 3**0.5 / 2**15
        values: npt.NDArray[np.float32] = raw.reshape(rows, cols).astype(np.float32)
        values += 0.5
        values *= np.float32(step)
        values += np.float32(mean)
        return values

    def _blocks(self, tensor: str, shape: tuple[int, ...], rows: slice) -> Iterator[npt.NDArray[np.float32]]:
        height, width = (1, *shape)[-2:]
        for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            start = block * BLOCK
            yield self._block(tensor, height, width, block)[max(rows.start - start, 0) : rows.stop - start]

    def _window(self, tensor: str, shape: tuple[int, ...], rows: slice, cols: slice) -> Tensor:
        blocks = list(self._blocks(tensor, shape, rows))
        return torch.from_numpy(np.concatenate([block[:, cols] for block in blocks]))

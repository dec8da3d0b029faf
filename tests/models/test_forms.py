"""Forms in which checkpoints store weights: quantised, joined, under other names; each is read as its plain twin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmMoeDsaForCausalLM

from support.reference import make_model, run_eager
from support.stored_forms import FORMS, write
from tilecompile.compile import compile_model
from tilecompile.errors import InputError
from tilecompile.measure.peers.model import open_weights
from tilecompile.models.checkpoint import Checkpoint
from tilecompile.models.registry import read_config
from tilecompile.options import CompileOptions
from tilecompile.runtime.folder.check import check_engine
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.sources import open_model

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 140,
    "intermediate_size": 271,
    "moe_intermediate_size": 37,
    "num_attention_heads": 9,
    "q_lora_rank": 45,
    "kv_lora_rank": 29,
    "qk_nope_head_dim": 11,
    "qk_rope_head_dim": 6,
    "v_head_dim": 13,
    "index_n_heads": 5,
    "index_head_dim": 17,
    "index_topk": 19,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "vocab_size": 151,
}
"""Sizes that no block divides; heads begin within blocks."""

EXPERTS = "model.layers.1.mlp.experts"
UP = f"{EXPERTS}.0.up_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small f32 checkpoint with an MTP layer, whose experts are equal to those of layer 1."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    config, model = make_model({**SIZES, "num_nextn_predict_layers": 1}, 11)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator, hidden = torch.Generator().manual_seed(4), SIZES["hidden_size"]
    for name, tensor in list(tensors.items()):
        if name.startswith("model.layers.1."):
            tensors[name.replace("layers.1.", "layers.2.")] = tensor.clone()
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"model.layers.2.{name}.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    tensors["model.layers.2.eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=generator)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    if isinstance(changed := change(tensors), dict):
        tensors = changed
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def configure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        Checkpoint(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one: Checkpoint, other: Checkpoint) -> None:
    """Every parameter has the same bits, whole and in windows."""
    assert one.parameters.keys() == other.parameters.keys()
    for name, parameter in one.parameters.items():
        assert torch.equal(one.full(name), other.full(name)), name
        rows = parameter.shape[-2] if len(parameter.shape) > 1 else 1
        for begin, end in ((rows // 3, rows // 3 + 1), (rows // 2, rows)):
            last = len(parameter.windows) - 1
            assert torch.equal(one.read(name, last, begin, end), other.read(name, last, begin, end)), name


def pool(folder: Path, output: Path, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """The hashes of the engine's weights, and the notes."""
    values = {"weights": "f32", "max_seq_len": 64, "workers": 1, "prefill": 1, "drafts": 0, "no_kernel": True}
    values |= options
    compiled = compile_model(CompileOptions(str(folder), output, **values))
    return read_manifest(output).data["files"]["weights/device0.bin"], compiled.notes


# ------------------------------------------------------------------------------------------------------- quantised


@pytest.mark.parametrize("form", FORMS)
def test_quantised_checkpoints_are_read_as_their_plain_twins(form: str, plain: Path, tmp_path: Path) -> None:
    stored, twin = write(plain, tmp_path, lambda name: FORMS[form], 1)
    one, other = Checkpoint(stored), Checkpoint(twin)
    assert not any("not used" in note for note in one.notes)
    same(one, other)
    assert set(one.stored) == {"f32", form.split()[0]}
    ids = torch.randint(0, 151, (24,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    logits = run_eager(one.config, one, ids)
    assert torch.equal(logits, run_eager(other.config, other, ids))
    exact = Checkpoint(plain)
    assert not torch.equal(logits, run_eager(exact.config, exact, ids))


def test_each_tensor_may_have_a_form_of_its_own(plain: Path, tmp_path: Path) -> None:
    """The configuration says that the attention isn't quantised, and it is: the tensors decide."""
    forms = [*FORMS.values(), None]
    quantization = {"quant_method": "fp8", "modules_to_not_convert": ["self_attn"]}
    stored, twin = write(
        plain, tmp_path, lambda name: forms[sum(name.encode()) % len(forms)], 2, quantization_config=quantization
    )
    same(Checkpoint(stored), Checkpoint(twin))
    one, notes = pool(stored, tmp_path / "one")
    assert one == pool(twin, tmp_path / "other")[0]
    assert any("matrices are stored in fp8 and read as f32" in note for note in notes)


def test_the_stated_size_of_blocks_is_used(plain: Path, tmp_path: Path) -> None:
    stored, _ = write(plain, tmp_path, lambda name: FORMS["fp8 blocks"], 3)
    configure(stored, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 128]})
    assert "with a wrong scale: " in refused(stored)
    configure(stored, quantization_config={"quant_method": "fp8", "weight_block_size": [0, 128]})
    assert "weight_block_size is [0, 128], want two positive integers" in refused(stored)


def test_kept_weights_have_the_form_of_most_and_notes_say_what_is_rounded(plain: Path, tmp_path: Path) -> None:
    stored, twin = write(plain, tmp_path, lambda name: FORMS["fp8 blocks"], 1)
    kept, notes = pool(stored, tmp_path / "a", weights="keep")
    assert kept == pool(twin, tmp_path / "b", weights="fp8")[0]
    assert not any("rounded" in note for note in notes)
    as_bf16, notes = pool(stored, tmp_path / "c", weights="bf16")
    assert as_bf16 == pool(twin, tmp_path / "d", weights="bf16")[0]
    assert any("numbers of matrices are stored in fp8 and rounded to bf16" in note for note in notes)
    four_bits, _ = write(plain, tmp_path / "four", lambda name: FORMS["nvfp4"], 1)
    for model, machine, weights in (
        (stored, "h200x8", "fp8"),
        (stored, "cpu", "fp8"),
        (four_bits, "h200x8", "bf16"),
        (four_bits, "cpu", "bf16"),
    ):
        options = CompileOptions(str(model), tmp_path / "e", machine=machine, max_seq_len=64, no_kernel=True)
        assert open_model(options, options.resolve()).storage.weights == weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{UP}_scale_inv"), f"1 tensor without a scale: {UP} (F8_E4M3, want {UP}_scale_inv or "),
        (
            lambda t: t.update({f"{UP}_scale_inv": torch.ones(2, 2)}),
            f"1 tensor with a wrong scale: {UP}_scale_inv (F32 [2, 2], want F32 [1, 2] or one number)",
        ),
        (
            lambda t: t.update({f"{UP}_scale_inv": torch.ones(1, 2, dtype=torch.int32)}),
            f"1 tensor with a wrong scale: {UP}_scale_inv (I32 [1, 2], want F32 [1, 2] or one number)",
        ),
        (lambda t: t.update({UP: t[UP][:-1]}), f"1 tensor of another shape: {UP} ([36, 140], want [37, 140])"),
        (
            lambda t: t.update({UP: t[UP].float().to(torch.float8_e5m2)}),
            f"1 tensor of an unsupported dtype: {UP} (F8_E5M2), want f32, bf16, f16, FP8 (e4m3) or NVFP4",
        ),
        (
            lambda t: t.update({UP: t[UP].view(torch.uint8)}),
            f"1 tensor of an unsupported dtype: {UP} (U8), want f32, bf16, f16, FP8 (e4m3) or NVFP4",
        ),
        (
            lambda t: t.update({UP.replace("weight", "qweight"): t.pop(UP).view(torch.uint8)}),
            f"1 tensor in an unsupported form: {UP} (GPTQ or AWQ), want f32, ",
        ),
        (
            lambda t: t.update({f"{UP}_packed": t.pop(UP).view(torch.uint8)}),
            f"1 tensor in an unsupported form: {UP} (compressed-tensors' INT4), want f32, ",
        ),
        (
            lambda t: t.update({UP.replace("weight", "pre_quant_scale"): torch.ones(140)}),
            "0.up_proj.pre_quant_scale: weights with such tensors are not supported",
        ),
    ],
)
def test_faults_of_fp8_tensors_are_named(plain: Path, tmp_path: Path, change: Any, words: str) -> None:
    stored, _ = write(plain, tmp_path, lambda name: FORMS["fp8 blocks"], 1)
    rewrite(stored, change)
    assert words in refused(stored)


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("nvfp4", lambda t: t.pop(f"{UP}_scale"), f"1 tensor without a scale: {UP} (NVFP4, want {UP}_scale)"),
        ("nvfp4", lambda t: t.pop(f"{UP}_scale_2"), f"1 tensor of an unsupported dtype: {UP} (U8), want "),
        (
            "nvfp4",
            lambda t: t.update({f"{UP}_scale": t[f"{UP}_scale"].float()}),
            f"{UP}_scale (F32 [37, 9], want F8_E4M3 [37, 9])",
        ),
        ("nvfp4", lambda t: t.update({f"{UP}_scale_2": torch.ones(2)}), f"{UP}_scale_2 (F32 [2], want one F32 number)"),
        ("nvfp4", lambda t: t.update({UP: t[UP][:, :-1]}), f"of another shape: {UP} ([37, 69], want [37, 70])"),
        ("nvfp4 packed", lambda t: t.pop(f"{UP}_scale"), f"without a scale: {UP}_packed (NVFP4, want {UP}_scale)"),
        ("nvfp4 packed", lambda t: t.pop(f"{UP}_packed"), f"1 tensor missing: {UP}"),
    ],
)
def test_faults_of_nvfp4_tensors_are_named(plain: Path, tmp_path: Path, form: str, change: Any, words: str) -> None:
    stored, _ = write(plain, tmp_path, lambda name: FORMS[form], 1)
    rewrite(stored, change)
    assert words in refused(stored)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantization_config.quant_method is 'gptq', want fp8, modelopt, "),
        ({"quant_method": "awq"}, "quant_method is 'awq', want fp8"),
        ({"quant_method": "mxfp4"}, "quant_method is 'mxfp4', want fp8"),
        ({"quant_method": "quark"}, "quant_method is 'quark', want fp8"),
        ("bitsandbytes", "quant_method is 'bitsandbytes', want fp8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "format is 'pack-quantized', want "),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ', want FP8, NVFP4, "),
    ],
)
def test_other_quantisations_are_refused_by_name(copy: Path, quantization: Any, words: str) -> None:
    configure(copy, quantization_config=quantization)
    assert words in refused(copy)
    assert "FP8 and NVFP4 weights are read" in refused(copy)


def test_modelopts_own_file_is_read(copy: Path) -> None:
    path = copy / "hf_quant_config.json"
    path.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}))
    Checkpoint(copy)
    path.write_text(json.dumps({"quantization": {"quant_algo": "INT4_AWQ"}}))
    assert f"{path}: quantization.quant_algo is 'INT4_AWQ', want " in refused(copy)


def test_experts_come_from_a_second_folder(plain: Path, tmp_path: Path) -> None:
    stored, twin = write(plain, tmp_path / "q", lambda name: FORMS["nvfp4"], 5)
    one, notes = pool(plain, tmp_path / "one", experts_from=stored)
    tensors, others = load_file(plain / "model.safetensors"), load_file(twin / "model.safetensors")
    mixed = Path(shutil.copytree(plain, tmp_path / "mixed"))
    save_file({n: others[n] if ".mlp.experts." in n else t for n, t in tensors.items()}, mixed / "model.safetensors")
    assert one == pool(mixed, tmp_path / "other")[0]
    assert one != pool(plain, tmp_path / "plain")[0]
    assert not any("not used" in note for note in notes)
    assert read_manifest(tmp_path / "one").data["weights"]["source"] == "checkpoint, experts of stored"
    without = Path(shutil.copytree(plain, tmp_path / "without"))
    rewrite(without, lambda tensors: {n: t for n, t in tensors.items() if ".mlp.experts." not in n})
    same(Checkpoint(without, stored), Checkpoint(mixed))
    rewrite(stored, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(UP)})
    assert refused(plain, experts_from=stored) == f"{stored}: 1 tensor missing: {UP}"
    configure(stored, moe_intermediate_size=38)
    assert (
        refused(plain, experts_from=stored)
        == f"--experts-from {stored}: moe_intermediate_size is 38, and 37 in {plain}"
    )


# ---------------------------------------------------------------------------------------------------- other names


def fused(tensors: Tensors) -> Tensors:
    """The experts of each layer in two tensors."""
    for prefix in ("model.layers.1.mlp.experts", "model.layers.2.mlp.experts"):

        def take(part: str, prefix: str = prefix) -> torch.Tensor:
            return torch.stack([tensors.pop(f"{prefix}.{e}.{part}.weight") for e in range(5)])

        tensors[f"{prefix}.gate_up_proj"] = torch.cat([take("gate_proj"), take("up_proj")], 1)
        tensors[f"{prefix}.down_proj"] = take("down_proj")
    return tensors


def test_joined_experts_make_the_same_pools(copy: Path, plain: Path, tmp_path: Path) -> None:
    rewrite(copy, fused)
    same(Checkpoint(copy), Checkpoint(plain))
    assert pool(copy, tmp_path / "one")[0] == pool(plain, tmp_path / "other")[0]
    rewrite(copy, lambda tensors: tensors.update({f"{EXPERTS}.down_proj": tensors[f"{EXPERTS}.down_proj"][:, :-1]}))
    assert f"{EXPERTS}.down_proj ([5, 139, 37], want [5, 140, 37])" in refused(copy)


@pytest.mark.parametrize(
    ("begin", "head"),
    [
        ("model.language_model.", "lm_head.weight"),
        ("language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("", "lm_head.weight"),
        ("model.language_model.", "model.lm_head.weight"),
    ],
)
@pytest.mark.parametrize("form", [None, "nvfp4 packed"])
def test_names_may_all_begin_otherwise(plain: Path, tmp_path: Path, begin: str, head: str, form: str | None) -> None:
    stored, twin = write(plain, tmp_path, lambda name: FORMS[form] if form else None, 1)
    rewrite(stored, lambda tensors: {named(name, begin, head): t for name, t in tensors.items()})
    same(Checkpoint(stored), Checkpoint(twin))


def named(name: str, begin: str, head: str) -> str:
    return head if name == "lm_head.weight" else begin + name.removeprefix("model.")


def test_names_that_begin_differently_are_named(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({"backbone.norm.weight": tensors.pop("model.norm.weight")}))
    assert "model.norm.weight is there as backbone.norm.weight: all names must begin alike" in refused(copy)


def test_tensors_that_are_not_used_are_noted(copy: Path) -> None:
    assert not Checkpoint(copy).notes
    more = {"model.visual.patch": torch.ones(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    rewrite(copy, lambda tensors: tensors.update({**more, "model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}))
    assert Checkpoint(copy).notes == (f"{copy}: 1 tensor not used: model.visual.patch",)


# ------------------------------------------------------------------------------- the configuration against the file


def test_a_head_that_differs_is_used_although_the_configuration_ties_it(copy: Path) -> None:
    configure(copy, tie_word_embeddings=True)
    checkpoint = Checkpoint(copy)
    head = load_file(copy / "model.safetensors")["lm_head.weight"]
    assert torch.equal(checkpoint.full("lm_head.weight"), head)
    assert not checkpoint.config.tie_word_embeddings
    assert "lm_head.weight differs from model.embed_tokens.weight" in checkpoint.notes[0]
    theirs = GlmMoeDsaForCausalLM.from_pretrained(copy)
    assert torch.equal(theirs.lm_head.weight, head)
    rewrite(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    tied = Checkpoint(copy)
    assert tied.config.tie_word_embeddings
    assert tied.notes == ()


def test_an_mtp_layer_in_part_is_left_out_with_a_note(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda tensors: tensors.pop("model.layers.2.enorm.weight"))
    checkpoint = Checkpoint(copy)
    assert checkpoint.config.mtp_layer is None
    assert "lacks model.layers.2.enorm.weight; compiled without it, so without drafts" in checkpoint.notes[0]
    with pytest.raises(InputError, match=r"--drafts is 2, and .* has no layer that drafts"):
        pool(copy, tmp_path / "e", drafts=2)
    pool(copy, tmp_path / "e", drafts=None)
    programs = {program["name"] for program in read_manifest(tmp_path / "e").data["programs"]}
    assert programs == {"decode"}


def test_the_mtp_layers_own_embedding_is_noted_where_it_differs(copy: Path) -> None:
    embedding = "model.layers.2.embed_tokens.weight"
    rewrite(copy, lambda tensors: tensors.update({embedding: tensors["model.embed_tokens.weight"].clone()}))
    assert Checkpoint(copy).notes == ()
    rewrite(copy, lambda tensors: tensors[embedding][3].add_(1))
    assert Checkpoint(copy).notes == (
        f"{copy}: {embedding} differs from model.embed_tokens.weight, which drafts are made with",
    )


@pytest.mark.parametrize(
    ("stored", "stated", "kept", "words"),
    [
        (torch.float32, None, "f32", None),
        (torch.float32, "bfloat16", "f32", "config.json says bfloat16, and most matrices are stored in f32"),
        (torch.bfloat16, None, "bf16", None),
        (torch.bfloat16, "float32", "bf16", "config.json says float32, and most matrices are stored in bf16"),
        (torch.float16, "float16", "f32", None),
    ],
)
def test_the_stored_type_decides(
    copy: Path, tmp_path: Path, stored: torch.dtype, stated: str | None, kept: str, words: str | None
) -> None:
    rewrite(copy, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    configure(copy, dtype=stated)
    options = CompileOptions(str(copy), tmp_path / "e", max_seq_len=64, no_kernel=True)
    sources = [open_model(o, o.resolve()) for o in (options, replace(options, weights="keep"))]
    assert [source.storage.weights for source in sources] == [kept, kept]
    notes = sources[0].notes
    assert [note for note in notes if "config.json says" in note] == ([f"{copy}: {words}"] if words else [])


def test_rounding_that_was_asked_for_is_noted(copy: Path, tmp_path: Path) -> None:
    options = CompileOptions(str(copy), tmp_path / "e", max_seq_len=64, no_kernel=True, weights="bf16")
    notes = open_model(options, options.resolve()).notes
    assert any("matrices are stored in f32 and rounded to bf16" in note for note in notes)


# ------------------------------------------------------------------------------------------------ not finite numbers


@pytest.mark.parametrize(
    ("name", "at", "value", "words"),
    [
        ("model.norm.weight", (3,), float("nan"), "model.norm.weight[3] is nan"),
        (UP, (30, 139), float("-inf"), f"{UP}[30, 139] is -inf"),
        ("model.layers.0.self_attn.kv_b_proj.weight", (35, 4), float("inf"), "kv_b_proj.weight[35, 4] is inf"),
        ("model.layers.0.self_attn.kv_b_proj.weight", (29, 4), float("nan"), "kv_b_proj.weight[29, 4] is nan"),
        ("model.layers.2.eh_proj.weight", (7, 150), float("nan"), "eh_proj.weight[7, 150] is nan"),
        ("lm_head.weight", (5, 6), 3.4e38, "lm_head.weight[5, 6] is 3.4e+38, which bfloat16 can't hold"),
    ],
)
def test_a_number_that_is_not_finite_is_named(
    copy: Path, name: str, at: tuple[int, ...], value: float, words: str
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[name][at] = value

    rewrite(copy, spoil)
    with pytest.raises(InputError) as error:
        read_all(Checkpoint(copy, finite=True))
    assert str(error.value).startswith(f"{copy}: ")
    assert words in str(error.value)
    anyway = Checkpoint(copy)
    wrong = {
        parameter for parameter in anyway.parameters if not anyway.full(parameter, torch.bfloat16).isfinite().all()
    }
    assert len(wrong - {"draft_head.weight"}) == 1  # which has the lm_head's numbers


def read_all(checkpoint: Checkpoint) -> list[torch.Tensor]:
    return [checkpoint.full(name, torch.bfloat16) for name in checkpoint.parameters]


def test_engines_are_compiled_of_numbers_that_are_not_finite_if_that_is_asked_for(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda tensors: tensors["model.norm.weight"].__setitem__(3, float("nan")))
    with pytest.raises(InputError, match=r"model\.norm\.weight\[3\] is nan; want finite numbers \(--allow-nan "):
        pool(copy, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    pool(copy, tmp_path / "e", allow_nan=True)
    check_engine(tmp_path / "e")


def test_large_numbers_whose_sum_is_not_finite_are_taken(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    assert Checkpoint(copy, finite=True).full("model.norm.weight").eq(3e38).all()


# --------------------------------------------------------------------------------------- epsilon of the latent norms


def test_the_epsilon_of_latent_norms_is_stated_and_taken_by_peers(copy: Path, tmp_path: Path) -> None:
    pool(copy, tmp_path / "one", latent_norm_eps=1e-2)
    config = read_manifest(tmp_path / "one").data["model"]["config"]
    assert config["latent_norm_eps"] == 1e-2
    weights = open_weights({"folder": str(copy), "config": config})
    assert weights.config.latent_norm_eps == 1e-2
    assert read_config(config) == weights.config
    with pytest.raises(InputError, match="--latent-norm-eps is 0, want a number between 0 and 1"):
        pool(copy, tmp_path / "two", latent_norm_eps=0)

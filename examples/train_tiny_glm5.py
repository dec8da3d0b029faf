"""Train a small but real GLM-5 (`glm_moe_dsa`) model: 4.15 million parameters, on the text of the King James Bible.

It takes two CPU cores less than half an hour. The checkpoint has GLM-5's layout and tensor names, the MTP layer
included, and is checked against transformers before it is measured on text that was held out.

    pip install -e '.[compile,train]'
    python examples/train_tiny_glm5.py --out examples/tiny-glm5
    python examples/train_tiny_glm5.py --out examples/tiny-glm5 --evaluate    # measure it again

The schedule runs on progress, the larger of step / --steps and time / --minutes (so only a run that --steps ends can be
repeated exactly):
  from 0 %    the trunk alone: dense attention, windows of 256 tokens
  from 35 %   the MTP layer joins
  from 75 %   windows of 512; the indexers learn where dense attention looks (KL divergence)
  from 87 %   windows of 1024; attention sees only what the indexers select, and they go on learning
"""

import argparse
import importlib.util
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_glm5_model import CONFIG, DRAFTS, C, TinyGlm5
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

EOS = "<|endoftext|>"


def load_text() -> tuple[list[str], list[str]]:
    """Chapters for training and held-out chapters, every twentieth. Each starts with its title, a verse is a line."""
    package = importlib.util.find_spec("bible")  # not imported: its __init__ needs pkg_resources
    verses = (Path(package.submodule_search_locations[0]) / "data/kjv.jsonl").read_text().splitlines()
    chapters: dict[str, str] = {}
    for v in map(json.loads, verses):
        title = f"{v['book']} {v['chapter']}"
        chapters[title] = chapters.get(title, title + "\n") + v["text"].strip() + "\n"
    texts = list(chapters.values())
    return [t for n, t in enumerate(texts) if n % 20 != 10], texts[10::20]


def build_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=C.vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    assert tokenizer.get_vocab_size() == C.vocab_size
    assert tokenizer.token_to_id(EOS) == C.eos_token_id[0]
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in e.ids + C.eos_token_id])


def train(model: TinyGlm5, stream: Tensor, args: argparse.Namespace) -> None:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    start, step, progress = time.time(), 0, 0.0
    model.train()
    while progress < 1:
        draft, learn_index, sparse = progress > 0.35, progress > 0.75, progress > 0.87
        length = 1024 if sparse else 512 if learn_index else 256
        at = torch.randint(len(stream) - length - DRAFTS - 1, (args.batch_tokens // length,))
        ids = stream[at[:, None] + torch.arange(length + DRAFTS + 1)]
        kl: list[Tensor] | None = [] if learn_index else None
        hidden = model(ids[:, : length + DRAFTS], sparse, kl)
        logits = model.lm_head(hidden)
        loss = main = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        # A draft is accepted when it agrees with the trunk, so it learns the trunk's distribution, not the text.
        target = logits.detach().softmax(-1)
        drafted = []
        for k, h in enumerate(model.drafts(hidden[:, :length], ids, sparse, kl) if draft else [], 1):
            want = target[:, k : k + length].flatten(0, 1)
            drafted.append(F.cross_entropy(model.lm_head(h).flatten(0, 1), want))
        loss = loss + args.draft_weight * sum(drafted) / DRAFTS + (sum(kl) if kl else 0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min((step + 1) / 100, 1 - progress)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for layer in model.model.layers[C.first_k_dense_replace :]:
            layer.mlp.gate.balance(args.balance_rate if progress < 0.9 else 0.0)
        if step % 50 == 0:
            shown = f"text {main.item():.3f}  drafts {' '.join(f'{d.item():.3f}' for d in drafted)}"
            kl_mean = f"  index kl {torch.stack(kl).mean().item():.3f}" if kl else ""
            print(f"{time.time() - start:6.0f} s  step {step:5d}  {progress:5.1%}  {shown}{kl_mean}", flush=True)
        step += 1
        progress = max(step / args.steps, (time.time() - start) / (60 * args.minutes))
    print(f"trained {step} steps in {(time.time() - start) / 60:.1f} min")


def export(model: TinyGlm5, tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t if name.endswith("e_score_correction_bias") else t.bfloat16()).contiguous()
        for name, t in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    ends = {"eos_token_id": C.eos_token_id, "pad_token_id": C.pad_token_id}
    tokens = {"eos_token": EOS, "pad_token": EOS, "model_max_length": C.max_position_embeddings}
    files = {
        "config": CONFIG,
        "generation_config": {**ends, "do_sample": False},
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", **tokens},
    }
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


@torch.inference_mode()
def bits_per_byte(model: TinyGlm5, stream: Tensor, n_bytes: int, sparse: bool, window: int = 512) -> float:
    """Every token is scored with window/2 to window tokens of context, except in the first half window."""
    half, nats = window // 2, 0.0
    starts = torch.arange(0, len(stream) - half - 1, half)
    padded = F.pad(stream, (0, window), value=-1)
    for at in starts.split(8):
        ids = padded[at[:, None] + torch.arange(window + 1)]
        want = ids[:, 1:].clone()
        want[at > 0, :half] = -1
        logits = model.lm_head(model(ids[:, :-1].clamp_min(0), sparse))
        nats += F.cross_entropy(logits.flatten(0, 1), want.flatten(), ignore_index=-1, reduction="sum").item()
    return nats / math.log(2) / n_bytes


@torch.inference_mode()
def tokens_per_step(model: TinyGlm5, stream: Tensor, prompts: int, new: int, context: int = 192) -> float:
    """Tokens that one decode step yields, the trunk's own included, in greedy decoding with DRAFTS drafts.

    Drafts count only up to the first one that differs, so all before it equal the greedy text: drafting at every
    position of the finished text and walking over the matches gives what decoding step by step would give."""
    at = torch.linspace(0, len(stream) - context, prompts).long()
    ids = stream[at[:, None] + torch.arange(context)]
    for _ in range(new + DRAFTS):
        ids = torch.cat([ids, model.lm_head(model(ids, True)[:, -1:]).argmax(-1)], 1)
    hidden = model(ids[:, : -DRAFTS - 1], True)
    matches = [
        model.lm_head(h).argmax(-1) == ids[:, k + 1 : k + 1 + hidden.shape[1]]
        for k, h in enumerate(model.drafts(hidden, ids, True), 1)
    ]
    gained = torch.stack(matches).int().cumprod(0).sum(0) + 1
    steps, total = 0, 0
    for row in gained.tolist():
        at_token = context - 1
        while at_token < len(row):
            steps, total, at_token = steps + 1, total + row[at_token], at_token + row[at_token]
    return total / steps


@torch.inference_mode()
def compare_with_transformers(model: TinyGlm5, out: Path, ids: Tensor) -> float:
    from transformers import GlmMoeDsaForCausalLM

    theirs, info = GlmMoeDsaForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    mtp = f"model.layers.{C.num_hidden_layers}."
    assert not info["missing_keys"], info["missing_keys"]
    assert all(k.startswith(mtp) for k in info["unexpected_keys"]), info["unexpected_keys"]
    return (theirs(ids).logits - model.lm_head(model(ids, True))).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tiny-glm5"), help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=22, help="end in this time, by a shorter schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--draft-weight", type=float, default=0.3)
    parser.add_argument("--balance-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="measure the checkpoint in --out instead of training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    texts, held_out = load_text()
    model = TinyGlm5()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    if not args.evaluate:
        tokenizer = build_tokenizer(texts)
        stream = encode(tokenizer, texts)
        print(f"{len(stream):,} tokens of {sum(len(t.encode()) for t in texts):,} bytes to train on")
        train(model, stream, args)
        export(model, tokenizer, args.out)
    # What was exported is what is measured, rounding to BF16 included.
    model.load_state_dict({k: v.float() for k, v in load_file(args.out / "model.safetensors").items()})
    model.eval()
    stream = encode(Tokenizer.from_file(str(args.out / "tokenizer.json")), held_out)
    n_bytes = sum(len(t.encode()) for t in held_out)
    difference = compare_with_transformers(model, args.out, stream[None, :512])
    print(f"largest difference of a logit from transformers: {difference:.1e}")
    for name, sparse in ("sparse", True), ("dense", False):
        print(f"held out, {name}: {bits_per_byte(model, stream, n_bytes, sparse):.4f} bits per byte")
    first, long = tokens_per_step(model, stream, 256, 1), tokens_per_step(model, stream, 32, 192)
    print(f"tokens per step, {DRAFTS} drafts: {first:.2f} in the first step after held-out text")
    print(f"tokens per step, {DRAFTS} drafts: {long:.2f} over 192 tokens of greedy text")


if __name__ == "__main__":
    main()

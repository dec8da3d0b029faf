"""Ten thousand requests of several threads on one engine: each as on a fresh engine, and memory that doesn't grow."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from tilecompile.errors import EngineBusy

pytestmark = pytest.mark.slow

REQUESTS, SETTLED, THREADS = 10_000, 500, 4
GROWTH_MB = 8
LONGEST = 160


def resident_mb() -> float:
    """Memory of this process that is in use, after garbage is collected."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def draw_request(rng: random.Random, texts: list[list[int]], cached: list[int], samples: bool) -> dict[str, Any]:
    """A request: what is called, its prompt (often with a prefix that others have too), and its parameters."""
    text = rng.choice(texts)
    begin = cached if rng.random() < 0.3 and len(cached) < LONGEST else text[: rng.randint(1, len(text))]
    prompt = begin + [rng.randrange(256) for _ in range(rng.choice((0, 1, 5)) if begin else 1)]
    params: dict[str, Any] = {"max_new_tokens": rng.choice((1, 2, 5, 20, 60)), "seed": rng.randrange(1 << 32)}
    params["drafts"] = rng.choice((0, 1, None))
    if rng.random() < 0.2:
        params["stop"] = [chr(rng.randrange(33, 127)) for _ in range(rng.randint(1, 8))]
    if samples:
        params |= {
            "temperature": rng.choice((0.0, 0.7, 1.0, 2.0)),
            "top_k": rng.choice((0, 1, 5, 50)),
            "top_p": rng.choice((1.0, 0.95, 0.5)),
            "min_p": rng.choice((0.0, 0.05)),
            "repetition_penalty": rng.choice((1.0, 1.3)),
            "presence_penalty": rng.choice((0.0, 0.5)),
            "frequency_penalty": rng.choice((0.0, -0.2)),
            "logit_bias": {rng.randrange(300): rng.uniform(-5, 5) for _ in range(rng.choice((0, 3)))},
            "stop_token_ids": [rng.randrange(300) for _ in range(rng.choice((0, 2)))],
            "ignore_eos": rng.random() < 0.3,
            "min_tokens": rng.choice((0, 3)),
        }
    calls = ("generate", "stream", "given up", "aborted", "task", "cancelled", "score")
    call = rng.choices(calls, (50, 20, 10, 5, 5, 5, 5))[0]
    return {"call": call, "prompt": prompt, "params": params}


def perform(engine: tilecompile.Engine, request: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """What came of a request: its tokens and text as far as they were received, or a hash of its logits."""
    call, prompt, params = request["call"], request["prompt"], tilecompile.SamplingParams(**request["params"])
    if call == "score":
        return {"logits": hashlib.sha256(engine.score(prompt, wait=True).tobytes()).hexdigest()}
    if call == "generate":
        out = engine.generate(prompt, params, wait=True)
        return {"tokens": out.tokens, "text": out.text, "finish": out.stats.finish}
    if call == "task":
        out = asyncio.run(engine.agenerate(prompt, params, wait=True))
        return {"tokens": out.tokens, "text": out.text, "finish": out.stats.finish}
    if call == "cancelled":
        return {"tokens": asyncio.run(cancelled(engine, prompt, params, rng.uniform(0, 0.005)))}
    tokens, text = [], ""
    with engine.stream(prompt, params, wait=True) as stream:
        if call == "aborted":
            timer = threading.Timer(rng.uniform(0, 0.005), stream.abort)
            timer.start()
        for token in stream:
            tokens.append(token)
            text += stream.piece
            if call == "given up" and rng.random() < 0.2:
                break
        text += stream.piece
    if call != "stream":
        return {"tokens": tokens}
    assert stream.stats is not None
    return {"tokens": tokens, "text": text, "finish": stream.stats.finish}


async def cancelled(
    engine: tilecompile.Engine, prompt: list[int], params: tilecompile.SamplingParams, seconds: float
) -> list[int]:
    """The tokens of a task that has this much time, which it may not need."""
    tokens: list[int] = []
    stream = engine.astream(prompt, params, wait=True)
    try:
        async with asyncio.timeout(seconds):
            async for token in stream:
                tokens.append(token)
    except TimeoutError:
        pass
    return tokens


def test_ten_thousand_requests_of_several_threads(tiny: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    root = [rng.randrange(256) for _ in range(LONGEST)]
    texts = [root[:begin] + [rng.randrange(256) for _ in range(LONGEST - begin)] for begin in (0, 20, 60, 60, 100, 140)]
    record, guard, errors = (tmp_path / "results").open("w"), threading.Lock(), list[BaseException]()
    begun = done = refused = 0
    settled = 0.0
    engine = tilecompile.load(tiny, threads=2)
    samples = engine.manifest.samples

    def work(seed: int) -> None:
        nonlocal begun, done, refused, settled
        rng = random.Random(seed)
        try:
            while not errors:
                with guard:
                    if begun == REQUESTS:
                        return
                    begun += 1
                request = draw_request(rng, texts, engine.cached, samples)
                result = perform(engine, request, rng)
                if rng.random() < 0.02:
                    keep(engine, tmp_path / f"{seed}.cache", rng)
                if rng.random() < 0.1:
                    try:
                        engine.reset()
                    except EngineBusy:
                        refused += 1
                with guard:
                    record.write(json.dumps([request, result]) + "\n")
                    done += 1
                    if done == SETTLED:
                        settled = resident_mb()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    record.close()
    grown, stats = resident_mb() - settled, engine.stats
    engine.close()
    assert (done, stats.launches) == (REQUESTS, 1)
    assert refused > 100
    assert stats.cached_tokens > 0.2 * stats.prompt_tokens
    print(f"{stats.cached_tokens / stats.prompt_tokens:.0%} of the prompts were cached, memory grew by {grown:.1f} MB")
    assert grown < GROWTH_MB
    check(tiny, tmp_path / "results")


def keep(engine: tilecompile.Engine, path: Path, rng: random.Random) -> None:
    """Saves the caches, or loads what was saved, if no request runs and they hold anything."""
    try:
        if path.exists() and rng.random() < 0.5:
            engine.load_cache(path)
        elif engine.cached:
            engine.save_cache(path)
    except (EngineBusy, tilecompile.InputError):  # another thread was quicker, or has reset the engine
        pass


def check(tiny: Path, results: Path) -> None:
    """Compares each result with that of the same request on an engine that takes over nothing."""
    count = 0
    with tilecompile.load(tiny, threads=2) as fresh, results.open() as lines:
        for line in lines:
            request, result = json.loads(line)
            if biases := request["params"].get("logit_bias"):
                request["params"]["logit_bias"] = {int(i): bias for i, bias in biases.items()}
            fresh.reset()
            call = request["call"] if request["call"] == "score" else "generate"
            want = perform(fresh, request | {"call": call}, random.Random(0))
            if request["call"] in ("given up", "aborted", "cancelled"):
                assert result["tokens"] == want["tokens"][: len(result["tokens"])], request
            else:
                assert result == want, request
            count += 1
        assert fresh.stats.cached_tokens == 0
    assert count == REQUESTS

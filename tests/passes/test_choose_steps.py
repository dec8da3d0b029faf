"""The sizes of steps by a machine's costs: what is chosen follows from them, and the estimate from the simulator's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.paths import TINY_CHECKPOINT as TINY
from tilecompile.compile import Compiled, compile_model
from tilecompile.cost.rounds import PUBLISHED, Round, constant, rounds
from tilecompile.errors import InputError
from tilecompile.measure.simulated.plans import plan_of
from tilecompile.models.registry import config_of
from tilecompile.models.spec import Storage
from tilecompile.options import DRAFTS, PREFILL, CompileOptions
from tilecompile.passes.choose_steps import ChosenSteps, best_drafts, best_prefill, choose_steps, sizes, times
from tilecompile.runtime.format import BODY_TOKENS, MAX_DRAFTS, MAX_TOKENS
from tilecompile.schedules.machine import Machine, OpCost, Simulator, load_machine

CONTEXT = 256


def machine(name: str = "h100", start: float = 0.0, element: float = 0.0, rate: float = 1e9) -> Machine:
    """A machine whose tasks cost `start` ns each and `element` ns for each activation, and whose memory has a rate in
    gbs; everything else costs nothing."""
    simulator = Simulator(
        read=((1.0, rate, rate),),
        task_ns=start,
        event_ns=0.0,
        remote_event_ns=0.0,
        ops={"default": OpCost(element_ns=element)},
    )
    return replace(load_machine(name), simulator=simulator)


def chosen(of: Machine, workers: int = 4, model: str = str(TINY), **given: int | None) -> ChosenSteps:
    return choose_steps(config_of(model), Storage(512, "f32", "bf16"), of, 1, workers, "single", CONTEXT, **given)


def test_drafts_are_as_many_as_pay_where_more_tokens_cost_a_step_little() -> None:
    found = chosen(machine(start=1000.0))
    none, most = found.rounds[0], found.rounds[MAX_DRAFTS]
    assert none.ms < most.verify_ms < 1.2 * none.ms  # starts of tasks, of which there are some more for more experts
    assert found.steps.drafts == min(found.rounds, key=lambda r: r.token_ms).drafts >= 2
    assert found.steps.prefill == BODY_TOKENS


def test_nothing_is_drafted_where_each_token_costs_as_much_as_a_step() -> None:
    found = chosen(machine(element=1.0))
    assert all(one.token_ms > found.rounds[0].token_ms for one in found.rounds[1:])
    assert found.steps.drafts == 0
    assert found.steps.prefill == 2  # larger steps are no faster


def test_an_engine_that_measures_whether_drafts_pay_keeps_one() -> None:
    assert chosen(machine("cpu", element=1.0)).steps.drafts == 1


def test_experts_make_drafts_dear_where_memory_is_all_that_counts() -> None:
    """A round reads the experts that all of its tokens choose, which are the more the fewer of them tokens share."""
    config = config_of("glm5-mini")
    few = replace(config, n_routed_experts=config.num_experts_per_tok)  # all tokens choose the same experts
    storage = Storage(512, "bf16", "bf16")
    token_ms = {}
    for name, one in (("many", config), ("few", few)):
        found = choose_steps(one, storage, machine(rate=100.0), 1, 4, "single", CONTEXT)
        token_ms[name] = [r.token_ms / found.rounds[0].token_ms for r in found.rounds]
    assert all(a > b for a, b in zip(token_ms["many"][1:], token_ms["few"][1:], strict=True))


def test_given_sizes_are_not_estimated() -> None:
    drafts = chosen(machine(start=1000.0), drafts=5)
    assert (drafts.steps.drafts, drafts.rounds) == (5, ())
    prefill = chosen(machine(start=1000.0), prefill=3)
    assert (prefill.steps.prefill, prefill.prompts) == (3, {})
    assert prefill.rounds


def test_a_model_that_cannot_draft_gets_no_drafts() -> None:
    config = replace(config_of(str(TINY)), num_nextn_predict_layers=0)
    found = choose_steps(config, Storage(512, "f32", "bf16"), machine(start=1.0), 1, 4, "single", CONTEXT)
    assert (found.steps.drafts, found.rounds) == (0, ())


def test_a_machine_without_costs_is_refused() -> None:
    with pytest.raises(InputError, match="states no costs"):
        chosen(load_machine("cpu"))


def test_the_best_of_rounds() -> None:
    def found(*ms: float) -> list[Round]:
        return [Round(d, float(d + 1), 0.0, 0.0, time) for d, time in enumerate(ms)]

    assert best_drafts(found(1.0, 1.5, 2.1, 4.4), adapts=False) == 2
    assert best_drafts(found(1.0, 1.0, 1.5), adapts=False) == 1  # the fewest of equally fast ones
    assert best_drafts(found(1.0, 2.0, 3.0), adapts=False) == 0
    assert best_drafts(found(1.0, 2.0, 3.0), adapts=True) == 1


def test_the_smallest_step_that_is_nearly_as_fast() -> None:
    assert best_prefill({2: 10.0, 4: 89.0, 8: 91.0, 16: 100.0}) == 8
    assert best_prefill({2: 95.0, 4: 100.0, 8: 90.0}) == 2
    assert (sizes(BODY_TOKENS), sizes(MAX_TOKENS)) == ([2, 4, 8], [2, 4, 8, 16, 32])


def test_rounds_are_made_of_the_steps_that_they_take() -> None:
    cost = {"decode": 10.0, "verify": 20.0, "extend": 3.0, "draft": 2.0}
    asked = []

    def ms(program: str, tokens: int) -> float:
        asked.append((program, tokens))
        return cost[program] + tokens

    none, one, two, three = rounds(3, PUBLISHED, ms)
    assert (none.ms, none.tokens) == (11.0, 1.0)
    assert (one.ms, two.ms) == (22.0 + 5.0, 23.0 + 5.0 + 3.0)  # 1.84 and 2.50 tokens are extended by 2
    assert three.token_ms == (24.0 + 6.0 + 2 * 3.0) / 2.99
    assert asked.count(("draft", 1)) == 1
    assert constant(0.5).lengths[:3] == [1.5, 1.75, 1.875]


# The estimate beside the simulator, and engines.


def compiled(output: Path, **options: object) -> Compiled:
    made = CompileOptions(str(TINY), output, no_weights=True, no_kernel=True, **options)  # type: ignore[arg-type]
    return compile_model(made)


def test_engines_have_steps_of_the_sizes_that_were_estimated(tmp_path: Path) -> None:
    made = compiled(tmp_path / "e", target="sm_90a", max_seq_len=512)
    stated = json.loads((tmp_path / "e" / "engine.json").read_text())["estimated_steps"]
    times_ms, rates = stated["token_ms"], stated["prompt_tokens_s"]
    tokens = {p["name"]: p["tokens"] for p in made.programs}
    assert tokens["verify"] == 1 + times_ms.index(min(times_ms)) > 1
    assert tokens["prefill"] == best_prefill({int(size): rate for size, rate in rates.items()})
    assert stated["context"] == 512
    (note,) = (note for note in made.notes if "by estimated time" in note)
    assert f"drafts are {tokens['verify'] - 1}" in note
    assert f"a step takes {tokens['prefill']} tokens of a prompt" in note


def test_the_estimate_is_near_the_simulator(tmp_path: Path) -> None:
    of = load_machine("h100")
    made = compiled(tmp_path / "e", target="sm_90a", max_seq_len=512, drafts=7, prefill=8)
    assert json.loads((tmp_path / "e" / "engine.json").read_text())["estimated_steps"] is None
    assert made.notes == ()
    plan = plan_of(tmp_path / "e")
    assert of.workers is not None
    storage = Storage(512, "bf16", str(plan.manifest.data["weights"]["dtype"]))
    ms = times(config_of(str(TINY)), storage, of, 1, of.workers, "single", CONTEXT, MAX_DRAFTS)
    for program, tokens in (("decode", 1), ("verify", 3), ("verify", 8), ("extend", 3), ("draft", 1)):
        simulated = plan.step(of, CONTEXT, None, program, tokens).ms
        assert ms(program, tokens) == pytest.approx(simulated, rel=0.25), (program, tokens)


def test_a_machine_without_costs_keeps_what_is_stated(tmp_path: Path) -> None:
    made = compiled(tmp_path / "e", workers=2)
    tokens = {p["name"]: p["tokens"] for p in made.programs}
    assert (tokens["verify"], tokens["prefill"]) == (1 + DRAFTS, PREFILL)
    assert not any("estimated" in note for note in made.notes)

"""tilecompile simulate: the work of tasks, predicted steps and their figures, errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.commands import refused, run
from support.engines import Built
from support.simulated import COSTS, Plan, cpu, plan_of, work_at
from support.trace_format import check_format
from tilecompile.compile import compile_model
from tilecompile.cost.simulate.report import CAUSES, figures, without_noise
from tilecompile.cost.simulate.step import Simulated, rates_at, simulate
from tilecompile.cost.simulate.work import work_of
from tilecompile.cost.step_time.path import critical_path
from tilecompile.cost.step_time.spans import gaps_of, tasks_of
from tilecompile.cost.traffic import stated_reads
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import EngineError, InputError
from tilecompile.measure.timeline.summary import summary
from tilecompile.options import CompileOptions
from tilecompile.schedules.machine import OpCost, load_machine


@pytest.fixture(scope="module")
def plan(built: Callable[[str], Built]) -> Plan:
    """Four workers, three layers, index_topk 24."""
    return plan_of(built("plain").path)


@pytest.mark.parametrize("context", [1, 24, 25, 100, 128])
def test_work_reads_what_the_model_must_read(plan: Plan, context: int) -> None:
    """What tasks read is what the model must read, and the padding of rows to panels."""
    manifest, tables, nodes = plan
    work = work_at(plan, context)
    read = work.streamed.sum() + work.distinct.sum()
    must = stated_reads(manifest).at(context)
    constants = sum(np.prod(v.shape) * 4 for v in nodes[0].inputs if v.tensor.endswith("norm.weight"))
    assert must * 0.97 - constants <= read <= must * 1.1
    instruction = tasks_of(manifest, tables, 1).instruction
    ops = np.array([nodes[op].op for op in tables["instructions"]["op"][instruction]])
    if context <= 24:
        assert not work.products[ops == "index_score"].any()
    else:
        node = next(n for n in nodes if n.op == "index_score")
        _, heads, width = node.inputs[0].shape
        layers = sum(n.op == "index_score" for n in nodes[: int(tables["instructions"]["op"][instruction].max()) + 1])
        assert work.products[ops == "index_score"].sum() == layers * context * heads * width
    assert (work.filler >= 0).sum() == np.isin(ops, ["expert_linear", "expert_combine"]).sum()
    assert set(ops[work.filler[work.filler >= 0]]) == {"dispatch"}


def test_work_on_shares_of_the_context_adds_up(plan: Plan) -> None:
    """The work on the shards of a cache sums to that on the whole."""
    _, tables, nodes = plan
    tasks = tasks_of(plan[0], tables, 1)
    whole = work_at(plan, 100)
    parts = []
    for index in range(3):
        shared = [
            dataclasses.replace(n, attrs={**n.attrs, "context": (index, 3, 4)}) if "cache" in str(n.inputs) else n
            for n in nodes
        ]
        parts.append(work_of(tables, shared, tasks.instruction, tasks.device, 100))
    ops = np.array(tasks.ops)
    scores, attention = ops == "index_score", ops == "mla_attention"
    assert sum(p.products[scores].sum() for p in parts) == whole.products[scores].sum()
    assert sum(p.products[attention].sum() for p in parts) == whole.products[attention].sum()


@pytest.mark.parametrize("tokens", [1, 4, 30])
def test_the_mtp_layer_attends_and_reads_experts_for_the_last_token_alone(tiny: Path, tokens: int) -> None:
    """However many tokens a step of `extend` carries, what follows its caches is what a `draft` step does."""
    plan = plan_of(tiny)
    manifest, _, nodes = plan
    layer = max(n.layer for n in nodes if n.layer is not None)
    rows = {}
    for program in ("extend", "draft"):
        graph = read_graph(manifest).programs[program]
        rows[program] = {n.op: n.outputs[0].shape[0] for n in graph.nodes if n.layer == layer and n.outputs}
    for op in ("index_score", "topk_select", "mla_attention", "route", "expert_linear", "expert_combine"):
        assert rows["extend"][op] == rows["draft"][op] == 1
    extend, draft = work_at(plan, 200, "extend", tokens), work_at(plan, 200, "draft")
    assert extend.products.sum() == draft.products.sum() > 0
    assert extend.streamed.sum() == draft.streamed.sum()
    assert extend.elements.sum() > draft.elements.sum()
    assert (extend.elements.sum() > work_at(plan, 200, "extend", 1).elements.sum()) == (tokens > 1)


def check_spans(found: Simulated) -> None:
    spans, times = found.spans, found.times
    assert (spans.begin >= spans.wait_begin).all()
    assert (spans.end >= spans.begin).all()
    assert spans.end.max() == spans.duration == spans.end[spans.tasks.sink]
    np.testing.assert_allclose(times.read.sum(), found.loop.bytes.sum(), rtol=1e-9)
    # No task begins before all that it waits for has ended, and a thread does one task at a time.
    tasks = spans.tasks
    assert (spans.begin[tasks.consumer] >= spans.end[tasks.producer]).all()
    for thread in np.unique(tasks.thread):
        mine = np.flatnonzero(tasks.thread == thread)
        mine = mine[np.argsort(spans.begin[mine], kind="stable")]
        assert (spans.begin[mine[1:]] >= spans.end[mine[:-1]]).all()
    for gaps in (found.gaps, gaps_of(spans)):
        path = critical_path(spans, gaps)
        assert sum(link.until - link.begin + link.gap for link in path) == pytest.approx(spans.duration)
    assert sum(summary(spans)["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("machine", ["cpu", "h200"])
@pytest.mark.parametrize("context", [10, 128])
def test_figures_of_a_simulated_step_add_up(plan: Plan, machine: str, context: int) -> None:
    on = cpu() if machine == "cpu" else load_machine(machine)
    found = simulate(*plan, on, context)
    check_spans(found)
    about = figures(found, plan[0], on, context)
    assert about["threads"] == (2 if machine == "cpu" else 4)
    assert list(about["causes"]) == list(CAUSES)
    assert sum(about["causes"].values()) == pytest.approx(found.ms)
    assert all(ms >= -1e-9 for ms in about["causes"].values())
    assert sum(row["work_ms"] + row["before_ms"] for row in about["path"]) == pytest.approx(found.ms)
    assert 0 < about["roof_fraction"] < 1


def test_a_step_on_one_thread_is_the_sum_of_its_tasks(plan: Plan) -> None:
    """On one thread a step is its tasks and the polls between them."""
    found = simulate(*plan, cpu(poll_ns=0.0), 100, threads=1)
    single, total = rates_at(COSTS, found.work.streamed.sum() + found.work.distinct.sum())
    alone = found.loop.start_ns + np.maximum(found.loop.body_ns, found.loop.bytes / min(single, total))
    assert found.spans.duration == pytest.approx(alone.sum())
    assert simulate(*plan, cpu(poll_ns=5.0), 100, threads=1).ms > found.ms


@pytest.mark.parametrize(
    "changes",
    [
        {"event_ns": 200.0},
        {"task_ns": 90.0},
        {"read": ((1e5, 5.0, 9.0),)},
        {"ops": {**COSTS.ops, "rope": OpCost(500.0, element_ns=0.3)}},
    ],
)
def test_higher_costs_and_contexts_make_steps_slower(plan: Plan, changes: dict[str, Any]) -> None:
    assert simulate(*plan, cpu(**changes), 100).ms > simulate(*plan, cpu(), 100).ms
    assert simulate(*plan, cpu(), 128).ms > simulate(*plan, cpu(), 16).ms


def test_devices_of_a_cpu_share_memory_and_those_of_a_node_do_not(
    built: Callable[[str], Built], tmp_path: Path
) -> None:
    """Devices share a CPU's memory; on a node each has its own, and pushes take a link."""
    model = built("plain").path.parent / "model"
    options = CompileOptions(str(model), tmp_path / "e", devices=2, workers=2, max_seq_len=128, no_weights=True)
    compile_model(dataclasses.replace(options, target="cpu-portable"))
    devices = plan_of(tmp_path / "e")
    found = simulate(*devices, cpu(), 100)
    check_spans(found)
    assert len(found.times.read) == 1
    node = load_machine("h200x8")
    apart = simulate(*devices, node, 100)
    check_spans(apart)
    assert len(apart.times.read) == 2
    assert apart.work.pushed.sum() > 0
    about = figures(apart, devices[0], node, 100)
    assert about["causes"]["exchange"] > 0
    slow = dataclasses.replace(node, link_gbs=0.01)
    assert simulate(*devices, slow, 100).ms > apart.ms
    with pytest.raises(InputError, match="the engine is for 2 devices, and machine h200 has 1"):
        simulate(*devices, load_machine("h200"), 100)


def test_arguments_out_of_range_are_refused(plan: Plan, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="context is 129, want 1 to 128"):
        simulate(*plan, cpu(), 129)
    with pytest.raises(InputError, match="threads is 5, want 1 to 4"):
        simulate(*plan, cpu(), 100, threads=5)
    with pytest.raises(InputError, match="threads is 2, but on machine h200 every worker runs for itself"):
        simulate(*plan, load_machine("h200"), 100, threads=2)
    with pytest.raises(InputError, match="the engine is for 4 workers a device, and machine h200 has 2"):
        simulate(*plan, dataclasses.replace(load_machine("h200"), workers=2), 100)
    manifest, tables, nodes = plan
    events = tables["events"].copy()
    events["wait_count"] += 1
    with pytest.raises(EngineError, match=r"operator .* waits for ever"):
        simulate(manifest, {**tables, "events": events}, nodes, cpu(), 100)
    assert "machine cpu states no costs" in refused("simulate", str(tiny), "--machine", "cpu")
    assert "machine 'moon' is unknown" in refused("simulate", str(tiny), "--machine", "moon")
    assert "--latencies is -1.0, want 0 to 1000" in refused(
        *("simulate", str(tiny), "--machine", "h200", "--latencies", "-1")
    )
    assert "context is 99999, want 1 to " in refused(
        *("simulate", str(tiny), "--machine", "h200", "--context", "99999")
    )
    assert "is a folder, want a file" in refused("calibrate", str(tiny), "-o", str(tmp_path))
    assert "--steps is 1, want 64 to" in refused("calibrate", str(tiny), "-o", str(tmp_path / "m"), "--steps", "1")


def test_simulate_prints_figures_and_writes_a_trace(tiny: Path, tmp_path: Path) -> None:
    args = ("simulate", str(tiny), "--machine", "h200", "--context", "1000")
    about = json.loads(run(*args, "--json").stdout)
    assert (about["source"], about["machine"], about["context"]) == ("simulated", "h200", 1000)
    later = json.loads(run(*args, "--latencies", "2", "--json").stdout)
    assert later["step_ms"] > about["step_ms"]
    text = run(*args, "-o", str(tmp_path / "trace.json")).stdout
    written = check_format((tmp_path / "trace.json").read_text())
    assert written["otherData"]["source"] == "simulated"
    assert "is a folder, want a file" in refused(*args, "-o", str(tmp_path))
    assert "simulated: " in text
    assert "assumed" in text
    for command in ("simulate", "calibrate"):
        assert f"tilecompile {command} " in run(command, "--help").stdout.partition("Example:")[2]


def test_rounding_of_sums_is_shown_as_zero() -> None:
    assert f"{without_noise(-6e-21):.4g}" == "0"
    assert without_noise(-1e-3) == -1e-3
    assert without_noise(2e-9) == 2e-9

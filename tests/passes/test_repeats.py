"""Short plans expand to the plans of the whole model; equal windows are proved once, and faults in any are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.small import GLM5, traced_programs
from tilecompile.ir.program import Program, graph_of
from tilecompile.ir.tasks import EventTensors
from tilecompile.models.glm5.config import Glm5Config
from tilecompile.models.registry import NAMED
from tilecompile.models.spec import Storage
from tilecompile.passes import repetition
from tilecompile.passes.events import events
from tilecompile.passes.fuse import fuse
from tilecompile.passes.place.place import place
from tilecompile.passes.repetition import Repeat, agrees, shortened, whole_graph, whole_placed, whole_program
from tilecompile.passes.schedule import schedule
from tilecompile.passes.tile import tile
from tilecompile.runtime.folder.repeat import Line, expand
from tilecompile.runtime.format import LINES, TABLES, WRITE
from tilecompile.targets.cpu.emit import task_kinds
from tilecompile.verify.proof import Memory, VerifyError, verify
from tilecompile.verify.windows import KEPT, Proved

SHARED = {"num_hidden_layers": 27, "index_topk_freq": 4, "index_skip_topk_offset": 3}
CASES = [
    ({"num_hidden_layers": 8}, "single", 1, 3),
    ({"num_hidden_layers": 9}, "tensor_parallel", 3, 4),
    ({"num_hidden_layers": 9}, "even", 2, 3),
]
MORE = [
    (SHARED, "tensor_parallel", 3, 5),
    (SHARED, "roles", 3, 2),
    (SHARED, "even", 2, 2),
    ({"num_hidden_layers": 12}, "roles", 4, 3),
    ({"num_hidden_layers": 12}, "tensor_parallel", 2, 40),
]


def planned(
    config: Glm5Config, repeat: Repeat | None, placement: str, devices: int, workers: int
) -> tuple[Program, list[EventTensors], list[Any]]:
    """The schedule of a model, the plans that it was made of, and the placed graphs."""
    placed = [place(fuse(g), placement, devices) for g in traced_programs(config, Storage(32))]
    plans = [events(tile(p, workers)) for p in placed]
    nodes = {(p.graph.program, n.name): n for p in placed for n in p.graph.nodes}
    kinds, of_node = task_kinds(nodes)
    kind_of = dict.fromkeys(nodes, 0) | {label: kind.index for label, kind in of_node.items()}
    names = ["commit", *(k.function for k in kinds)]
    return schedule(plans, workers, kind_of, names, repeat), plans, placed


def check(values: dict[str, Any], placement: str, devices: int, workers: int) -> None:
    config = Glm5Config.from_dict({**GLM5, **values})
    plain, plans, placed = planned(config, None, placement, devices, workers)
    for kept in repetition.KEPT:
        found = shortened(config.layers, kept)
        assert found is not None
        layers, repeat = found
        assert len(layers) < config.num_hidden_layers
        part, parts, short_placed = planned(config.with_layers(layers), repeat, placement, devices, workers)
        assert len(part.tables["repeats"])
        graph = whole_graph(graph_of(parts), repeat, part)
        whole = whole_program(part, repeat, graph_of(parts), graph)
        if agrees(whole, graph):
            break
    else:
        pytest.fail("no short plan agrees")
    for name in TABLES:
        assert np.array_equal(whole.tables[name], plain.tables[name]), name
        alike = ("streams", "bodies", "views", "accesses", "repeats")  # what isn't of one layer
        assert len(part.tables[name]) < len(plain.tables[name]) or name in alike
    for field in ("operators", "weights", "arena_bytes", "pool_bytes", "io", "kinds", "scratch_bytes", "buffers"):
        assert getattr(whole, field) == getattr(plain, field), field
    assert graph == graph_of(plans)
    for p, q in zip(short_placed, placed, strict=True):
        found = whole_placed(p, repeat, graph)
        assert found.placement == q.placement
        assert list(found.placement.splits) == list(q.placement.splits)
        assert found.graph.tensors == q.graph.tensors
        assert found.graph.nodes == q.graph.nodes


@pytest.mark.parametrize(("values", "placement", "devices", "workers"), CASES)
def test_short_plans_expand_to_whole_ones(values: dict[str, Any], placement: str, devices: int, workers: int) -> None:
    check(values, placement, devices, workers)


@pytest.mark.slow
@pytest.mark.parametrize(("values", "placement", "devices", "workers"), MORE)
def test_more_short_plans_expand_to_whole_ones(
    values: dict[str, Any], placement: str, devices: int, workers: int
) -> None:
    check(values, placement, devices, workers)


def test_shortened_keeps_one_period_of_layers() -> None:
    found = {name: shortened(NAMED[name].layers) for name in ("glm-5", "glm-5.1", "glm-5.2")}
    assert found["glm-5"] == found["glm-5.1"] == (list(range(6)), Repeat(4, 1, 73))
    assert found["glm-5.2"] is not None
    layers, repeat = found["glm-5.2"]
    assert (len(layers), repeat.layers, repeat.times) == (18, 4, 16)
    for name in found:
        config = NAMED[name]
        kept = config.with_layers(found[name][0])
        assert kept.num_hidden_layers == len(kept.layers) < config.num_hidden_layers
        assert set(kept.layers) == set(config.layers)
        assert [kept.layers[i] for i in range(len(kept.layers))] == [config.layers[i] for i in found[name][0]]
    few = Glm5Config.from_dict({**GLM5, "num_hidden_layers": repetition.KEPT[0]})
    assert shortened(few.layers) is None


def test_line_repeats_its_intervals() -> None:
    """0 1 [2 3] 4 [5] 6, each interval three times."""
    line = Line(np.array([2, 5]), np.array([4, 6]), 3)
    row, copy = line.rows(7)
    assert row.tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 5, 5, 6]
    assert copy.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 0]
    for c in range(3):
        where = [0, 1, 2 + 2 * c, 3 + 2 * c, 8, 9 + c, 12]
        assert line.at(np.arange(7), c).tolist() == where
        inside = [i for i, r in enumerate(row.tolist()) if r in (2, 3, 5) and copy[i] == c]
        assert [w for i, w in enumerate(where) if i in (2, 3, 5)] == inside


def test_tables_without_repeats_expand_to_themselves() -> None:
    tables = {name: np.zeros(0, record.dtype) for name, record in TABLES.items()}
    assert expand(tables) == tables
    assert set(LINES) - {"event_tensors"} <= set(TABLES)


def test_equal_windows_are_proved_once() -> None:
    """The number of windows doesn't grow with the layers, and a fault in any of those that were skipped is found."""
    windows = []
    for count in (8, 14):
        config = Glm5Config.from_dict({**GLM5, "num_hidden_layers": count})
        program, plans, _ = planned(config, None, "tensor_parallel", 2, 3)
        layers = [node.layer for node in graph_of(plans).nodes]
        names = [b.tensor.name for b in program.buffers]
        proved = Proved()
        memory = Memory(program.sizes())
        proof = verify(program.tables, program.operators, memory, names, program.weights, proved, layers)
        assert proof.instructions == len(program.tables["instructions"])
        windows.append(len(proved.windows))
        known = set(proved.windows)
        assert (
            verify(program.tables, program.operators, memory, names, program.weights, proved, layers).pairs
            == proof.pairs
        )
        assert set(proved.windows) == known
    assert windows[0] == windows[1] < 14
    for layer in range(count):
        for fault in (short_write, lost_wait):
            with pytest.raises(VerifyError, match=rf"model\.layers\.{layer}\."):
                verify(fault(program, layer), program.operators, memory, names, program.weights, proved, layers)
    assert len(proved.windows) <= KEPT


def of_operator(program: Program, name: str) -> np.ndarray:
    """The instructions of an operator."""
    return np.flatnonzero(program.tables["instructions"]["op"] == program.operators.index(name))


def short_write(program: Program, layer: int) -> dict[str, Any]:
    """The first query projection writes a column less, which its readers miss."""
    tables = {**program.tables, "regions": program.tables["regions"].copy()}
    ins = tables["instructions"][of_operator(program, f"model.layers.{layer}.self_attn.q_a_proj@0")[0]]
    rows = np.arange(ins["region_begin"], ins["region_begin"] + ins["region_count"])
    (wrote,) = rows[tables["regions"]["mode"][rows] == WRITE]
    tables["regions"]["col_end"][wrote] -= 1
    return tables


def lost_wait(program: Program, layer: int) -> dict[str, Any]:
    """An attention task starts without one of those that it waits for."""
    tables = {**program.tables, "instructions": program.tables["instructions"].copy()}
    mine = of_operator(program, f"model.layers.{layer}.self_attn.mla_attention@1")
    tables["instructions"]["wait_count"][mine[tables["instructions"]["wait_count"][mine] > 0][0]] -= 1
    return tables


def test_tables_are_read_only_once_they_are_proved() -> None:
    config = Glm5Config.from_dict({**GLM5, "num_hidden_layers": 3, "num_nextn_predict_layers": 0})
    program, _, _ = planned(config, None, "single", 1, 2)
    verify(program.tables, program.operators, proved=Proved())
    with pytest.raises(ValueError, match="read-only"):
        program.tables["waits"]["count"][0] += 1

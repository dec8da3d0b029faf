"""interpret: executes an engine's program in Python, with the ops' eager references in place of the kernel's bodies.

It reads the engine's own tables and pool files and keeps its own counters, so it tells errors of the schedule from
those of the kernel: in whatever order it runs the instructions whose waits are met, results must equal the kernel's.
How one task runs is in `evaluate.py`; this module is the resident loop, `targets/cpu/loop.h` in Python.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tilecompile.errors import EngineError, EngineStalled, InputError
from tilecompile.interpret.commit_rules import Asked, Limits, Next, Step, decide, draft_of, first_step
from tilecompile.interpret.evaluate import Evaluator, one_thread
from tilecompile.interpret.sampler import Sampler, tensors_of
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import launched_streams, load_tables
from tilecompile.runtime.format import COMMIT_KIND, NEEDS_LOGITS, Reason
from tilecompile.runtime.generate import check_ids
from tilecompile.runtime.replay.buffers import Arrays, find_operator, numbers_of, read_buffers, writes
from tilecompile.runtime.run import FAULTS
from tilecompile.runtime.sampling import GREEDY, SamplingParams, params_of

Order = Literal["program"] | int
"""Order of execution: that of the operators in the program, or a seed of random legal orders."""


@dataclass
class _Worker:
    """A worker's place in its current step."""

    id: int
    streams: dict[int, tuple[int, int]]
    pc: int = 0
    end: int = 0
    sequence: int = 0


class Interpreter:
    """An engine's step programs, executed instruction by instruction.

    `order` is "program", or the seed of a random legal order: the next worker is drawn from those whose next
    instruction's waits are met. Every request starts with fresh counters and with memory full of NaN. Needs the
    engine's weights and its graph.json, but neither its kernel nor the machine that it was compiled for.
    """

    def __init__(self, engine: str | Path, order: Order = "program") -> None:
        self.manifest = read_manifest(engine)
        self.tables = load_tables(self.manifest)
        self._evaluator = Evaluator(self.manifest, self.tables)
        self._random = None if order == "program" else random.Random(order)
        names = ("kind", "op", "wait_begin", "wait_count", "notify_begin", "notify_count")
        columns = [self.tables["instructions"][name].tolist() for name in names]
        waits, notifies = self.tables["waits"].tolist(), self.tables["notifies"]["event"].tolist()
        self._kinds, self._ops = columns[:2]
        self._waits = [waits[b : b + n] for b, n in zip(*columns[2:4], strict=True)]
        self._notifies = [notifies[b : b + n] for b, n in zip(*columns[4:], strict=True)]
        self._io: dict[str, int] = self.manifest.data["io"]
        self._outputs: list[dict[str, int]] = [program["io"] for program in self.manifest.data["programs"]]
        manifest = self.manifest
        self._limits = Limits(manifest.programs, manifest.vocab_size, manifest.max_seq_len, manifest.eos_token_ids)
        self._reset()

    def score(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """Logits after each id: float32 [len(ids), vocab]."""
        self._request(self._ids(ids), 0, logits=True)
        return np.stack(self._logits)

    def generate(
        self,
        prompt: Iterable[int],
        params: SamplingParams | int | None = GREEDY,
        *,
        max_new_tokens: int | EllipsisType | None = ...,
        drafts: int = 0,
    ) -> list[int]:
        """Generates from token ids, as `Engine.generate` does; returns the tokens.

        Rounds of speculation draft `drafts` tokens.
        """
        asked = params_of(params, max_new_tokens).resolved(self.manifest)
        self._request(self._ids(prompt), asked.max_new, logits=False, drafts=drafts, params=asked)
        return self._tokens

    def buffers(self) -> Arrays:
        """All buffers but the weights, by tensor: copies, as the last request left them. See `read_buffers`."""
        return read_buffers(self.manifest, self.tables, None, self._evaluator.memory.area)

    def buffers_after(self, ids: Iterable[int], operator: str | None = None) -> Arrays:
        """Feeds ids, the last one in a decode step, and returns the buffers that an operator (OP@LAYER) writes.

        `find_operator` says which that is. The last step ends as soon as all tasks of the operator are done. With None:
        all buffers but the weights, after the whole step. Elements that nothing has written are NaN.
        """
        if operator is None:
            self._feed(self._ids(ids))
            return self.buffers()
        written = writes(self.manifest, self.tables)
        name = find_operator({n: self._evaluator.layers[n] for n in written}, operator)
        names = self.manifest.data["operators"]
        self._feed(self._ids(ids), {i for i, n in enumerate(names) if n == name})
        return read_buffers(self.manifest, self.tables, numbers_of(written[name]), self._evaluator.memory.area)

    def op(self, operator: str) -> str:
        """The tile op of an operator."""
        return self._evaluator.ops[operator]

    def _ids(self, ids: Iterable[int]) -> list[int]:
        if isinstance(ids, str):
            raise InputError("the interpreter takes token ids, not text")
        return [int(i) for i in check_ids(ids, self.manifest.vocab_size, self.manifest.max_seq_len)]

    def _reset(self) -> None:
        """Memory, counters and workers as at a launch."""
        self._evaluator.memory.poison()
        self._counters = [0] * len(self.tables["events"])
        self._runs = [0] * len(self._limits.programs.rows)
        self._sequence = 0
        self._steps: list[Step] = [Step(self._limits.programs.first, 0, 0, 0, 0)] * 2
        streams: dict[int, dict[int, tuple[int, int]]] = {}
        for s in launched_streams(self.manifest, self.tables):
            if s["agent"] == 0:
                streams.setdefault(int(s["worker"]), {})[int(s["program"])] = (int(s["begin"]), int(s["end"]))
        self._workers = [_Worker(worker, own) for worker, own in sorted(streams.items())]
        self._sampler: Sampler | None = None
        self._tokens: list[int] = []
        self._drafts: list[int] = []
        self.program_steps = [0] * len(self._runs)
        self._logits: list[npt.NDArray[np.float32]] = []
        self._running = False

    def _request(
        self, ids: list[int], max_new: int, logits: bool, drafts: int = 0, params: SamplingParams | None = None
    ) -> None:
        """Runs a request from position 0 to its end; without parameters greedily."""
        self._reset()
        self._run(ids, Asked(0, len(ids), max_new, logits, drafts), (), params)

    def _feed(self, ids: list[int], stop_after: Iterable[int] = ()) -> None:
        """Feeds ids, the last one in a request of its own, to its end or to that of some operators."""
        self._reset()
        if len(ids) > 1:
            self._run(ids, Asked(0, len(ids) - 1, 0, False))
        self._run(ids, Asked(len(ids) - 1, 1, 0, False), stop_after)

    def _run(
        self, ids: list[int], asked: Asked, stop_after: Iterable[int] = (), params: SamplingParams | None = None
    ) -> None:
        """Runs a request, whose ids are those from its position on, to its end or to that of operators of its step."""
        tensors = tensors_of(self._io, self._word)
        self._sampler = None if tensors is None else Sampler(tensors, params, ids)
        stop_ids = self.manifest.eos_token_ids if params is None else params.stop_token_ids
        self._limits = replace(self._limits, stops=stop_ids)
        self._prompt, self._asked = ids, asked
        stops, first = set(stop_after), first_step(asked, self._limits)
        streams = [worker.streams[first.program] for worker in self._workers]
        left = sum(self._ops[i] in stops for stream in streams for i in range(*stream))
        self._running = True
        self._publish(first)
        with one_thread():
            while self._running:
                worker = self._pick()
                instruction, step = worker.pc, self._steps[worker.sequence % 2]
                worker.pc += 1
                self._execute(instruction, step)
                if self._ops[instruction] in stops:
                    left -= 1
                    self._running = left > 0

    def _execute(self, instruction: int, step: Step) -> None:
        """Runs one instruction and notifies its events."""
        if self._kinds[instruction] == COMMIT_KIND:
            return self._commit(step)
        self._evaluator.run(instruction, step.tokens, bool(step.flags & NEEDS_LOGITS))
        for event in self._notifies[instruction]:
            self._counters[event] += 1
        return None

    def _publish(self, following: Next) -> None:
        """Starts the next step. Poisons the activations: a step reads none of the step before."""
        program, position, tokens = following.program, following.position, following.tokens
        first = position + int(self._limits.programs.rows["drafts"][program])
        ids = [*self._prompt, *self._tokens, *self._drafts][first : first + tokens]
        self._sequence += 1
        self._runs[program] += 1
        self._steps[self._sequence % 2] = Step(program, self._runs[program], position, tokens, following.flags)
        self._evaluator.memory.poison("activation")
        self._word(self._io["ids"])[:tokens] = ids
        self._word(self._io["position"])[0] = position
        if self._sampler is not None:
            self._sampler.before(first, self._tokens)

    def _commit(self, step: Step) -> None:
        """The sink: takes what was sampled, and starts what comes next."""
        outputs = self._outputs[step.program]
        if self._asked.every_logit:
            fed = self._asked.fed(step.context) - self._asked.fed(step.position)
            logits = self._word(outputs["logits"]).reshape(-1, self.manifest.vocab_size)
            self._logits += list(logits[:fed].copy())
        sampled = self._word(outputs["next"])[: step.tokens].tolist()
        following = decide(step, self._asked, self._limits, sampled, self._drafts)
        self.program_steps[step.program] += 1
        self._tokens += sampled[following.row : following.row + following.taken]
        if following.drafted > len(self._drafts):
            self._drafts.append(draft_of(self._limits, sampled[following.row]))
        self._drafts = self._drafts[: following.drafted]
        self._asked = replace(self._asked, generated=len(self._tokens), drafted=len(self._drafts))
        if following.reason in FAULTS:
            at = f"after position {self._asked.end + self._asked.generated - 1}"
            raise EngineError(f"{self.manifest.folder}: {FAULTS[following.reason].format(at)}")
        self._running = following.reason == Reason.NO_REASON
        if self._running:
            self._publish(following)

    def _word(self, buffer: int) -> npt.NDArray[Any]:
        """One of the buffers that the sink works with, flat."""
        return self._evaluator.memory.buffer(buffer).numpy()

    def _pick(self) -> _Worker:
        """A worker that can go on. EngineStalled if there is none."""
        ready = [w for w in self._workers if self._at_work(w) and not self._missing(w)]
        if not ready:
            raise self._stalled()
        if self._random:
            return self._random.choice(ready)
        return min(ready, key=lambda w: (self._ops[w.pc], w.pc))

    def _at_work(self, worker: _Worker) -> bool:
        """Whether a worker has an instruction; at the end of its step it takes up the next one."""
        if worker.pc == worker.end and worker.sequence != self._sequence:
            worker.sequence = self._sequence
            worker.pc, worker.end = worker.streams[self._steps[self._sequence % 2].program]
        return worker.pc < worker.end

    def _missing(self, worker: _Worker) -> tuple[int, int] | None:
        """The first event that a worker's next instruction still waits for, and the count that it needs; else None."""
        run = self._steps[worker.sequence % 2].run
        return next(((e, run * n) for e, n in self._waits[worker.pc] if self._counters[e] < run * n), None)

    def _stalled(self) -> EngineStalled:
        """The error for a program in which no worker can go on."""
        for worker in self._workers:
            missing = self._missing(worker) if self._at_work(worker) else None
            if missing:
                event, want = missing
                return EngineStalled(
                    f"{self.manifest.folder}: the program stalls: worker {worker.id} waits before "
                    f"{self._evaluator.name(worker.pc)} for event {event}, have {self._counters[event]}, want {want}"
                )
        return EngineStalled(f"{self.manifest.folder}: the program ends without its commit")

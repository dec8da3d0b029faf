"""The requests of an engine: who has it, what its caches hold by then, and what all of them came to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.cached import Cached, Ids
from tilecompile.runtime.claims import Claim, Claims
from tilecompile.runtime.cpu.launch import stalled
from tilecompile.runtime.errors import EngineError, EngineStalled
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import State
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.launches import Launches
from tilecompile.runtime.run import Abort, Ask, Run, settle
from tilecompile.runtime.sampler import Sampler
from tilecompile.runtime.sampling import SamplingParams

Result = TypeVar("Result")


@dataclass(frozen=True)
class Held:
    """A request that runs, and the claim that it holds the engine with until `close`."""

    run: Run
    claim: threading.Lock
    pass_on: Callable[[], None]

    def close(self) -> None:
        """Ends the request, within one step if it still runs, and gives up the claim."""
        try:
            self.run.finish()
        finally:
            self.claim.release()
            self.pass_on()


Begin = Callable[[Abort], Held]
"""Takes an engine and begins a request, which the Abort ends."""


class Requests:
    """The requests of an engine, one after another.

    `cached` is what the caches hold. It is replaced, never changed, and only by who has the engine.
    """

    def __init__(self, manifest: Manifest, tables: Tables, backend: Backend) -> None:
        self.manifest, self.tables = manifest, tables
        self.launches = Launches(tables, backend)
        self.cached = Cached()
        self.requests = self.prompt_tokens = self.cached_tokens = self.tokens = 0
        self._claims = Claims(manifest.folder)
        self._pid = os.getpid()

    @property
    def kernel(self) -> Resident:
        """The engine's own kernel."""
        return self.launches.kernel

    def check(self) -> None:
        """EngineError if the engine can't be used any more, or not in this process."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"{self.manifest.folder}: the engine was loaded in process {self._pid} and its threads are not in "
                "this fork; load it here"
            )
        if self.launches.closed:
            raise EngineError(f"{self.manifest.folder}: the engine is closed")

    def _take(self, claim: threading.Lock, wait: bool, abort: Abort) -> None:
        """Assigns the engine to a locked claim, with a kernel that is idle; Aborted if `abort` comes first."""

        def check() -> None:
            self.check()
            abort.check()

        check()
        self._claims.take(claim, wait, check)
        settle(self.kernel)  # the end of the request before may have been interrupted
        if self.kernel.field("state") == State.STALLED:
            self.cached = Cached()
            self.launches.relaunch()

    def held(self, work: Callable[[], Result], wait: bool = False, abort: Abort | None = None) -> Result:
        """Does work for which the engine is needed and its kernel is idle; EngineBusy or a queue as `Claims` has it.

        Wherever an interrupt falls, the engine is free afterwards. Aborted if `abort` comes before the work begins.
        """
        try:
            with (claim := Claim()):
                self._take(claim, wait, abort or Abort())
                return work()
        finally:
            self._claims.pass_on()

    def start(self, ask: Ask, abort: Abort | None = None, counted: bool = True) -> Run:
        """Starts a request, which a `with` block around the run ends; the engine must be held."""
        self.cached = self.cached.before(ask.position)
        try:
            return Run(self.kernel, self.stalled, ask, abort, self._counted if counted else self._ended)
        except BaseException:
            if not self.kernel.closed:
                self.kernel.abort()
            raise

    def begin(self, ids: Ids, params: SamplingParams, abort: Abort, wait: bool = False) -> Held:
        """Takes the engine and starts a generation for a holder that gives it up itself; Aborted as in `held`."""
        claim = Claim()
        claim.acquire()
        try:
            self._take(claim, wait, abort)
            return Held(self.start(self.reusing(ids, params), abort), claim, self._claims.pass_on)
        except BaseException:
            claim.release()
            self._claims.pass_on()
            raise

    def reusing(self, ids: Ids, params: SamplingParams) -> Ask:
        """A generation by resolved parameters that computes no position that the caches hold."""
        drafts = params.depth(self.manifest)
        position = self.cached.reusable(ids, drafts > 0)
        sampler = None
        if self.manifest.samples:
            most = min(params.max_new, self.manifest.max_seq_len - len(ids) + 1)
            sampler = Sampler(params, ids, most, self.manifest.vocab_size)
        return Ask(ids, position, params.max_new, None, drafts, sampler)

    def count(self, prompt_tokens: int, cached_tokens: int = 0, tokens: int = 0) -> None:
        """Adds a request to the counts."""
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.tokens += tokens

    def _counted(self, run: Run) -> None:
        stats = run.stats()
        self.count(stats.prompt_tokens, stats.cached_tokens, stats.tokens)
        self._ended(run)

    def _ended(self, run: Run) -> None:
        computed = run.computed()
        self.cached = Cached() if computed is None else self.cached.after(computed, drafts=run.extended())

    def stalled(self, kernel: Resident) -> EngineStalled:
        """The error for a kernel that waits for what doesn't come."""
        return stalled(self.manifest, self.tables, kernel)

"""What a loaded engine consists of: its text, its memory, its kernel, and the requests that run on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.backend import Backend
from tilecompile.runtime.cached import Cached, Ids
from tilecompile.runtime.chat import CHAT, ChatTemplates, Messages
from tilecompile.runtime.cpu.backend import CpuBackend
from tilecompile.runtime.errors import EngineError, InputError
from tilecompile.runtime.folder.files import read_bytes
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import ARENAS
from tilecompile.runtime.generate import check_ids
from tilecompile.runtime.kernel import Resident
from tilecompile.runtime.requests import Requests
from tilecompile.runtime.text import Text

Prompt = str | Iterable[int]


@dataclass(frozen=True)
class EngineStats:
    """Counts over the engine's life. `launches` is 1 unless the kernel stalled and was launched again.

    Of the `prompt_tokens` of all requests, `cached_tokens` were in the caches already.
    """

    launches: int
    steps: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    threads: int
    load_ms: float


class LoadedEngine:
    """A loaded engine, with its kernel resident until `close`."""

    def __init__(self, manifest: Manifest, tables: Tables, backend: Backend, begin: float) -> None:
        self.manifest, self.tables, self.backend = manifest, tables, backend
        self._text: Text | None = None
        try:
            # Parsing waits until text is needed; the folder may have been replaced by then.
            self._tokenizer = read_bytes(manifest.tokenizer) if manifest.tokenizer else None
            self._chat = read_bytes(manifest.file(CHAT)) if CHAT in manifest.data["files"] else None
            self._requests = Requests(manifest, tables, backend)
        except BaseException:
            backend.close()
            raise
        self._load_ms = 1e3 * (time.perf_counter() - begin)

    @property
    def threads(self) -> int:
        """Host threads that run the kernel; 0 on GPUs."""
        return self.backend.threads

    @property
    def cpu(self) -> CpuBackend:
        """The kernel's library and memory. EngineError if the engine is for GPUs."""
        if not isinstance(self.backend, CpuBackend):
            raise EngineError(f"{self.manifest.folder}: the engine is for GPUs, and this is for CPU engines")
        return self.backend

    @property
    def text(self) -> Text | None:
        """The engine's tokenizer, or None."""
        if self._text is None and self.manifest.tokenizer and self._tokenizer is not None:
            self._text = Text(self.manifest.tokenizer, self._tokenizer)
            self._tokenizer = None
        return self._text

    @cached_property
    def templates(self) -> ChatTemplates:
        """The model's chat templates. InputError in an engine without any."""
        if self._chat is None:
            raise InputError(f"{self.manifest.folder}: the engine has no chat template; give a prompt instead")
        return ChatTemplates(self.manifest.file(CHAT), self._chat)

    def chat_prompt(self, messages: Messages, **template: Any) -> list[int]:
        """The ids of messages, each with `role` and `content`, in the model's chat template, up to the answer's begin.

        `template` are arguments of `ChatTemplates.render`: tools, documents, variables of the template. The template
        writes all special tokens itself. InputError for what can't be rendered.
        """
        shown = self.templates.render(messages, **template)
        if self.text is None:
            raise InputError(f"{self.manifest.folder}: the engine has no tokenizer; give token ids instead of text")
        return self.text.encode(shown, special=False)

    @property
    def stats(self) -> EngineStats:
        """Counts over the engine's life, up to the last token that the host has seen."""
        done = self._requests
        return EngineStats(
            done.launches.launches,
            done.launches.steps,
            done.requests,
            done.prompt_tokens,
            done.cached_tokens,
            done.tokens,
            self.threads,
            self._load_ms,
        )

    def _ids(self, prompt: Prompt) -> Ids:
        if isinstance(prompt, (bytes, bytearray)):
            raise InputError("prompt is bytes, want text or a sequence of token ids")
        if isinstance(prompt, str):
            if self.text is None:
                raise InputError(f"{self.manifest.folder}: the engine has no tokenizer; give token ids instead of text")
            prompt = self.text.encode(prompt) if prompt else []
        return check_ids(prompt, self.manifest.vocab_size, self.manifest.max_seq_len)

    def contents(self, buffer: int) -> npt.NDArray[np.uint8]:
        """A copy of the bytes of a buffer, by its number; the engine must be idle."""
        row = self.tables["buffers"][buffer]
        begin = int(row["offset"])
        return self.backend.read(int(row["device"]), ARENAS[int(row["arena"])], begin, begin + int(row["bytes"]))

    @contextmanager
    def beside(self, tables: Tables, extra: Sequence[int]) -> Iterator[Resident]:
        """A kernel with other tables over the engine's caches and weights; see `Backend.launch`.

        The engine must be idle meanwhile, and its caches hold nothing of their own afterwards. GPUs hold one kernel
        only, so there the engine's own is launched again after.
        """
        self._forget()
        with self._requests.launches.beside(tables, extra) as kernel:
            yield kernel

    def _forget(self) -> None:
        self._requests.cached = Cached()

    def close(self) -> None:
        """Ends the kernel's threads and frees its memory. Requests of other threads end with EngineError.

        In a fork of the process that loaded the engine it only drops its references.
        """
        self._requests.launches.close()
        self.tables = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Streams of tokens for asyncio: each request has a thread, which ends with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tilecompile.runtime.errors import EngineError
from tilecompile.runtime.generate import Output, TokenStream
from tilecompile.runtime.run import Stats


@dataclass(frozen=True)
class _End:
    """The end of a stream: the piece that was held back, and the error that ended it, if any."""

    piece: str
    error: BaseException | None


class AsyncTokenStream(AsyncIterator[int]):
    """Iterator over generated ids for `async for`, with the fields of `TokenStream`.

    The request starts with the first item. Closing it (`aclose`), leaving its `async with` block, dropping it, or
    cancelling the task that waits for an item ends the request within one step.
    """

    def __init__(self, stream: TokenStream, text: bool) -> None:
        """Takes a stream that hasn't begun; `text` says whether its pieces are text."""
        self._stream, self._text = stream, text
        self._items: asyncio.Queue[tuple[int, str] | _End] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self.piece = ""
        self.stats: Stats | None = None

    async def __anext__(self) -> int:
        self.piece = ""
        if self._closed:
            raise StopAsyncIteration
        if self._items is None:
            self._items = self._start()
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if not isinstance(item, _End):
            token, self.piece = item
            return token
        await self.aclose()
        if item.error is not None:
            raise item.error
        self.piece = item.piece
        raise StopAsyncIteration

    def _start(self) -> asyncio.Queue[tuple[int, str] | _End]:
        """Starts the thread. It knows the stream and where to put items, not this object, which may be dropped."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[tuple[int, str] | _End] = asyncio.Queue()
        ended = self._ended = loop.create_future()
        threading.Thread(target=_run, args=(self._stream, loop, items, ended), daemon=True).start()
        return items

    async def output(self) -> Output:
        """All of it, as `Engine.generate` returns it. EngineError if it was closed before it began."""
        tokens, said = [], []
        async for token in self:
            tokens.append(token)
            said.append(self.piece)
        said.append(self.piece)
        if self.stats is None:
            raise EngineError("the stream was closed before it began")
        return Output(tokens, "".join(said) if self._text else None, self.stats)

    async def aclose(self) -> None:
        """Ends the request, within one step if it still runs, and waits for that."""
        self._closed = True
        self._stream.abort()
        if self._ended is not None:
            await asyncio.shield(self._ended)
        self.stats = self._stream.stats

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.abort()


def _run(
    stream: TokenStream,
    loop: asyncio.AbstractEventLoop,
    items: asyncio.Queue[tuple[int, str] | _End],
    ended: asyncio.Future[None],
) -> None:
    """Runs a stream to its end, in a thread of its own; what comes of it goes to the queue of an event loop."""

    def finish(end: _End) -> None:
        items.put_nowait(end)
        if not ended.done():
            ended.set_result(None)

    with suppress(RuntimeError):  # the loop is closed, and no one waits any more
        error: BaseException | None = None
        try:
            with stream:
                for token in stream:
                    loop.call_soon_threadsafe(items.put_nowait, (token, stream.piece))
        except BaseException as found:  # whatever it is: who waits gets it
            error = found
        loop.call_soon_threadsafe(finish, _End(stream.piece, error))

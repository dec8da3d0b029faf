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
from tilecompile.runtime.sampler import Logprobs


@dataclass(frozen=True)
class _End:
    """The end of a stream: the piece that was held back, all of it if that was asked for, and what ended it, if any."""

    piece: str
    output: Output | None
    error: BaseException | None


_Item = tuple[int, str, Logprobs | None] | _End
"""A token with the fields of the stream that came with it, or the end."""


class AsyncTokenStream(AsyncIterator[int]):
    """Iterator over generated ids for `async for`, with the fields of `TokenStream`.

    The request starts with the first item. Closing it (`aclose`), leaving its `async with` block, dropping it, or
    cancelling the task that waits for an item ends the request within one step.
    """

    def __init__(self, stream: TokenStream) -> None:
        """Takes a stream that hasn't begun."""
        self._stream = stream
        self._items: asyncio.Queue[_Item] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self.piece = ""
        self.logprobs: Logprobs | None = None
        self.stats: Stats | None = None

    async def __anext__(self) -> int:
        self.piece, self.logprobs = "", None
        if self._closed:
            raise StopAsyncIteration
        item = await self._next(each=True)
        if isinstance(item, _End):
            self.piece = item.piece
            raise StopAsyncIteration
        token, self.piece, self.logprobs = item
        return token

    async def output(self) -> Output:
        """All of it, as `Engine.generate` returns it. EngineError if the stream has begun already, or was closed."""
        if self._closed or self._items is not None:
            raise EngineError("the stream has begun already or was closed, want one that hasn't begun")
        end = await self._next(each=False)
        assert isinstance(end, _End)
        assert end.output is not None
        return end.output

    async def _next(self, each: bool) -> _Item:
        """What comes next: `each` token, or the end alone. Closes the stream where the waiting task is cancelled.

        The thread that it starts doesn't know this object, which may be dropped meanwhile.
        """
        if self._items is None:
            loop = asyncio.get_running_loop()
            self._items, self._ended = asyncio.Queue(), loop.create_future()
            arguments = (self._stream, each, loop, self._items, self._ended)
            threading.Thread(target=_run, args=arguments, daemon=True).start()
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(item, _End):
            await self.aclose()
            if item.error is not None:
                raise item.error
        return item

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
    each: bool,
    loop: asyncio.AbstractEventLoop,
    items: asyncio.Queue[_Item],
    ended: asyncio.Future[None],
) -> None:
    """Runs a stream to its end, in a thread of its own; what comes of it goes to the queue of an event loop."""

    def finish(end: _End) -> None:
        items.put_nowait(end)
        if not ended.done():
            ended.set_result(None)

    with suppress(RuntimeError):  # the loop is closed, and no one waits any more
        output: Output | None = None
        error: BaseException | None = None
        try:
            with stream:
                if each:
                    for token in stream:
                        loop.call_soon_threadsafe(items.put_nowait, (token, stream.piece, stream.logprobs))
                else:
                    output = stream.output()
        except BaseException as found:  # whatever it is: who waits gets it
            error = found
        loop.call_soon_threadsafe(finish, _End(stream.piece, output, error))

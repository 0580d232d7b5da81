"""Connections for asyncio: `Connection`, `Request` and the rest, with methods to be awaited.

    async def main():
        async with lurcher.aio.connect("tcp://127.0.0.1:9999") as connection:
            async for request in connection:
                if request.kind == "request":
                    await request.respond_http("hello\\n", headers={"Content-Type": "text/plain"})

A connection belongs to the event loop that ran when it was made. Receiving requests may be
cancelled, and loses nothing. What has begun to be sent is sent, also when whoever waits for it is
cancelled. A body whose reading was cancelled is not to be read on: a piece may be missing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from types import TracebackType
from typing import Any, Callable, Coroutine, Generator, Sequence

from lurcher._lurcher import AioBody as Body
from lurcher._lurcher import AioClient as Client
from lurcher._lurcher import AioConnection as Connection
from lurcher._lurcher import AioRequest as Request
from lurcher._lurcher import AioWriter as Writer
from lurcher._lurcher import aio_connect, configured

__all__ = ["Body", "Client", "Connection", "Request", "Writer", "connect", "from_config", "serve"]

_log = logging.getLogger("lurcher")

#: Requests that `serve` has open at once; the rest waits at the servers.
CONCURRENCY = 1000


class Connecting:
    """A connection that is being made: `await` it, or enter it, and leaving closes it."""

    def __init__(self, connect: Callable[[], asyncio.Future[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._connect().__await__()

    async def __aenter__(self) -> Connection:
        self._connection = await self
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            await self._connection.close()


def connect(
    send_spec: str | Sequence[str], recv_spec: str | Sequence[str] | None = None, **options: Any
) -> Connecting:
    """Connect to one server or several; what may be said is as for `lurcher.Connection`."""
    return Connecting(lambda: aio_connect(send_spec, recv_spec, **options))


def from_config(configuration: str | os.PathLike[str], **options: Any) -> Connecting:
    """Connect to a handler's place in a configuration, as `lurcher.Connection.from_config`."""
    return Connecting(lambda: aio_connect(**configured(configuration, **options)))


async def _receive(connection: Connection, iterates: bool) -> Request | None:
    """Receive the next thing: what the methods of a connection return.

    What is received is taken in the same step in which this returns it. A task that is cancelled
    while it waits takes nothing, even if it was told already that there is something.
    """
    again = False
    while (request := connection._next(again)) is False:
        try:
            await connection._ready()
        except asyncio.CancelledError:
            connection._pass_on()
            raise
        again = True
    if request is None and iterates:
        raise StopAsyncIteration
    return request


async def serve(
    connection: Connection,
    process: Callable[[Request], Coroutine[Any, Any, None]],
    *,
    concurrency: int = CONCURRENCY,
) -> None:
    """Serve all that comes, each in a task of its own, until the connection ends; wait for them.

    `process` gets every request, whatever its kind. What it raises is logged, and a client that
    waits is answered 500. Messages of one WebSocket are tasks of their own, too: where their order
    matters, let `process` put them into a queue. When this is cancelled, so are the tasks.
    """
    tasks: set[asyncio.Task[None]] = set()
    room = asyncio.Semaphore(concurrency)

    async def one(request: Request) -> None:
        try:
            await process(request)
        except Exception as error:
            await _failed(request, error)
        finally:
            room.release()

    await room.acquire()
    try:
        async for request in connection:
            task = asyncio.create_task(one(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await room.acquire()
        while tasks:
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _failed(request: Request, error: Exception) -> None:
    _log.error("%s %s: raised while it was served", request.method, request.path, exc_info=error)
    try:
        if request.kind in ("request", "handshake") and not request.answered:
            headers = {"Content-Type": "text/plain"}
            await request.respond_http("internal server error\n", 500, headers, close=True)
        elif request.kind != "disconnect":
            await request.client.cancel()
    except Exception:
        _log.exception("answering for what was raised")

"""The parts of serving ASGI applications that Python says better: the event loop and lifespans.

Requests are none of its business.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any

from lurcher import internal

# Seconds that tasks which the applications have left behind get to end.
LAST_TASKS = 1.0


class Failed(Exception):
    """An application could not be started; says why."""


class Lifespan:
    """The conversation with one application about the beginning and the end."""

    def __init__(self, app: Any, name: str, mode: str) -> None:
        self.app = app
        self.name = name
        self.mode = mode
        self.state: dict[str, Any] = {}
        # Whether there is somebody who wants to hear of the end.
        self.listens = False
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failed: str | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Waits until the application is ready; raises Failed if it cannot be."""
        if self.mode == "off":
            return
        self._messages.put_nowait({"type": "lifespan.startup"})
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._started.wait()
        if self._failed is not None:
            raise Failed(f"starting {self.name}: {self._failed or 'the application says no more'}")
        if self._error is not None:
            if self.mode == "on":
                text = "".join(traceback.format_exception(self._error)).rstrip()
                raise Failed(f"starting {self.name}: its lifespan has failed\n{text}")
            return
        self.listens = True

    async def shutdown(self) -> None:
        """Waits until the application has ended."""
        if not self.listens or self._task is None or self._task.done():
            return
        self._messages.put_nowait({"type": "lifespan.shutdown"})
        await self._stopped.wait()
        if self._failed is not None:
            tell(f"stopping {self.name}: {self._failed or 'the application says no more'}")

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self.app(scope, self._messages.get, self._send)
        except BaseException as error:
            if self.listens:
                text = "".join(traceback.format_exception(error)).rstrip()
                tell(f"the lifespan of {self.name} has failed\n{text}")
            self._error = error
        finally:
            self._started.set()
            self._stopped.set()

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind.startswith("lifespan.startup.") and self._started.is_set():
            raise RuntimeError(f"unexpected {kind}: it was started already")
        if kind.startswith("lifespan.shutdown.") and self._stopped.is_set():
            raise RuntimeError(f"unexpected {kind}: it was stopped already")
        if kind == "lifespan.startup.complete":
            self._started.set()
        elif kind == "lifespan.startup.failed":
            self._failed = message.get("message", "")
            self._started.set()
        elif kind == "lifespan.shutdown.complete":
            self._stopped.set()
        elif kind == "lifespan.shutdown.failed":
            self._failed = message.get("message", "")
            self._stopped.set()
        else:
            raise RuntimeError(f"expected a message of the type lifespan.…, but got {kind}")


def tell(text: object) -> None:
    """Says something to people."""
    print(f"lurcher: {text}", file=sys.stderr, flush=True)


async def main(hub: Any, lifespans: list[tuple[list[int], Lifespan]]) -> None:
    """Starts the applications, serves until nothing comes any more, and stops them."""
    running = asyncio.get_running_loop()
    # Where applications in threads have those on the loop asked.
    internal._loop = running
    started = []
    for numbers, lifespan in lifespans:
        await lifespan.startup()
        started.append(lifespan)
        if lifespan.listens:
            for number in numbers:
                hub.set_state(number, lifespan.state)
                internal._states[number] = lifespan.state
    end = running.create_future()
    running.add_reader(hub.descriptor(), hub.drain)
    if hub.watched() is not None:
        running.add_reader(hub.watched(), hub.turned)
    hub.begin(running, end)
    try:
        await end
    finally:
        hub.over()
        running.remove_reader(hub.descriptor())
        for lifespan in reversed(started):
            await lifespan.shutdown()


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """A new event loop of that kind; `auto` is uvloop where that is installed."""
    if kind != "asyncio":
        try:
            import uvloop  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            if kind == "uvloop":
                raise Failed("--loop uvloop: it is not installed in this environment") from None
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def serve(hub: Any, apps: list[tuple[Any, str, list[int]]], mode: str, kind: str) -> bool:
    """Serves the applications on a loop of their own. `apps` are callables with their names and the numbers of their mounts."""
    try:
        loop = new_loop(kind)
    except Failed as failed:
        tell(failed)
        return False
    asyncio.set_event_loop(loop)
    try:
        lifespans = [(numbers, Lifespan(app, name, mode)) for app, name, numbers in apps]
        loop.run_until_complete(main(hub, lifespans))
    except Failed as failed:
        tell(failed)
        return False
    finally:
        close(loop)
    return True


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Ends what is left on the loop, in so far as it lets itself be ended."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    try:
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LAST_TASKS))
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), LAST_TASKS))
    except Exception as error:
        tell(f"ending the event loop: {error!r}")
    asyncio.set_event_loop(None)
    loop.close()

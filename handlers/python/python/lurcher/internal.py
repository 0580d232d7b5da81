"""Requests from one application to another of the same process, without a socket.

    from lurcher import internal

    response = internal.request("GET", "/api/stock/17")          # from WSGI, in a thread
    response = await internal.arequest("GET", "/api/stock/17")   # from ASGI, on the event loop

It is routed as requests from outside are, by path and host, and what the other application raises is
raised here. It is called in the place of the caller: a WSGI application in the same thread, an ASGI
application as a task of the event loop. So what is asked for is answered at once, as a whole, and the
other application's lifespan and middleware are those that it has for everybody.
"""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Union
from urllib.parse import unquote_to_bytes

Headers = Union[Mapping[str, str], Iterable[tuple[str, str]]]

#: The applications as (callable, interface), and how a place is looked up; set by the worker.
_apps: list[tuple[Any, str]] = []
_look_up: Callable[[str, bytes], Any] | None = None
#: The event loop on which ASGI applications live, and what the lifespan of each has left; set by
#: the worker.
_loop: asyncio.AbstractEventLoop | None = None
_states: dict[int, dict[str, Any]] = {}


class NoApplication(LookupError):
    """No application of this process is at that place."""


@dataclass
class Response:
    """An answer, whole."""

    #: As 200.
    status: int
    #: In order, names as the application wrote them.
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header of that name, in capitals or not."""
        name = name.lower()
        return next((value for known, value in self.headers if known.lower() == name), None)

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8")


def request(
    method: str,
    path: str,
    headers: Headers = (),
    body: bytes = b"",
    host: str | None = None,
) -> Response:
    """Ask another application and wait for its answer; `path` is as in a URL, with its query.

    Not from the event loop itself, which would wait for itself: there it is `arequest`.
    """
    place = _find(path, host)
    pairs = _pairs(headers)
    if place.speaks == "wsgi":
        return _call_wsgi(place.app, _environ(method, place, pairs, body, host))
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    call = _call_asgi(place.app, _scope(method, place, pairs, host), body)
    if running is not None:
        call.close()
        raise RuntimeError("in a coroutine it is `await lurcher.internal.arequest(...)`")
    if _loop is not None and _loop.is_running():
        return asyncio.run_coroutine_threadsafe(call, _loop).result()
    return asyncio.run(call)


async def arequest(
    method: str,
    path: str,
    headers: Headers = (),
    body: bytes = b"",
    host: str | None = None,
) -> Response:
    """The same from a coroutine. A WSGI application is called in a thread of its own."""
    place = _find(path, host)
    pairs = _pairs(headers)
    if place.speaks == "wsgi":
        environ = _environ(method, place, pairs, body, host)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, _call_wsgi, place.app, environ)
    # A task, so that what it does to its context is not seen here.
    call = _call_asgi(place.app, _scope(method, place, pairs, host), body)
    return await asyncio.ensure_future(call)


@dataclass
class _Place:
    """Where a request goes: an application, and what of the path and the query it is told."""

    app: Any
    speaks: str
    state: dict[str, Any] | None
    #: The path as in a URL, and how many bytes of it are the application's place.
    raw: bytes
    consumed: int
    query: bytes

    @property
    def script(self) -> bytes:
        return unquote_to_bytes(self.raw[: self.consumed])

    @property
    def below(self) -> bytes:
        return unquote_to_bytes(self.raw[self.consumed :])


def _find(path: str, host: str | None) -> _Place:
    path, _, query = path.partition("?")
    if not path.startswith("/"):
        raise ValueError(f"a path begins with a slash: {path!r}")
    raw = path.encode("utf-8")
    found = _look_up(host or "", raw) if _look_up is not None else None
    if found is None:
        raise NoApplication(f"no application of this process is at {host or ''}{path}")
    number, consumed = found
    app, speaks = _apps[number]
    return _Place(app, speaks, _states.get(number), raw, consumed, query.encode("utf-8"))


def _name_and_port(host: str | None) -> tuple[str, str]:
    """What a `Host` says; an address of version 6 stays in its brackets."""
    host = host or "localhost"
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        return host, "80"
    return name, port if port.isascii() and port.isdigit() else "80"


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(str(name), str(value)) for name, value in pairs]


def _environ(
    method: str,
    place: _Place,
    headers: list[tuple[str, str]],
    body: bytes,
    host: str | None,
) -> dict[str, Any]:
    name, port = _name_and_port(host)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": place.script.decode("latin-1"),
        "PATH_INFO": place.below.decode("latin-1"),
        "QUERY_STRING": place.query.decode("latin-1"),
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": host or "localhost",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "lurcher.internal": True,
    }
    for header, value in headers:
        key = header.upper().replace("-", "_")
        if key == "CONTENT_LENGTH":
            continue
        if key != "CONTENT_TYPE":
            key = "HTTP_" + key
        if key in environ and key != "HTTP_HOST":
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ", ") + value
        environ[key] = value
    return environ


def _call_wsgi(app: Any, environ: dict[str, Any]) -> Response:
    response = Response(0)
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if response.status and exc_info is None:
            raise AssertionError("start_response is called twice")
        response.status = int(status[:3])
        response.headers = list(headers)
        return written.append

    result = app(environ, start_response)
    try:
        written.extend(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    if not response.status:
        raise AssertionError("the application did not call start_response")
    response.body = b"".join(written)
    return response


def _scope(
    method: str,
    place: _Place,
    headers: list[tuple[str, str]],
    host: str | None,
) -> dict[str, Any]:
    names = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if all(name != b"host" for name, _ in names):
        names.insert(0, (b"host", (host or "localhost").encode("latin-1")))
    name, port = _name_and_port(host)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": (place.script + place.below).decode("utf-8", "replace"),
        "raw_path": place.raw,
        "query_string": place.query,
        "root_path": place.script.decode("utf-8", "replace"),
        "headers": names,
        "client": ("127.0.0.1", 0),
        "server": (name.strip("[]"), int(port)),
        "extensions": {"lurcher.internal": {}},
    }
    if place.state is not None:
        scope["state"] = dict(place.state)
    return scope


async def _call_asgi(app: Any, scope: dict[str, Any], body: bytes) -> Response:
    response = Response(0)
    parts: list[bytes] = []
    over = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            response.headers = [
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in message.get("headers", ())
            ]
        elif message["type"] == "http.response.body":
            parts.append(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                over.set()

    await app(scope, receive, send)
    if not response.status:
        raise RuntimeError("the application sent no response")
    response.body = b"".join(parts)
    return response

"""Applications that do what applications should not, each by its path: `application` for WSGI, `app` for ASGI.

`FILE` in a query is where an application writes what became of it, since nobody is there any more to be told.
"""

import asyncio
import sys
import threading
import time
import zlib
from urllib.parse import parse_qs


def note(query: str, text: str) -> None:
    with open(parse_qs(query)["file"][0], "w") as file:
        file.write(text)


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    text = [("Content-Type", "text/plain")]
    if path == "/hold":
        note(query, "held")
        threading.Event().wait()
    if path == "/spin":
        note(query, "spins")
        while True:
            pass
    if path == "/wait":
        time.sleep(float(query))
    if path == "/reason":
        start_response("200 Äußerst gut", text)
        return [b"well\n"]
    if path == "/raise":
        raise RuntimeError("out of stock")
    if path == "/raise-later":
        return late(start_response, text)
    if path == "/exit":
        sys.exit("an application that exits")
    if path == "/drip":
        start_response("200 OK", text)
        return drip(query)
    if path == "/count":
        size, sum = 0, 0
        while piece := environ["wsgi.input"].read(1 << 16):
            size, sum = size + len(piece), zlib.crc32(piece, sum)
        start_response("200 OK", text)
        return [f"{size} bytes, sum {sum:08x}\n".encode()]
    start_response("200 OK", text)
    return [b"well\n"]


def late(start_response, headers):
    start_response("200 OK", headers)
    yield b"begun\n"
    raise RuntimeError("out of stock, said late")


def drip(query):
    try:
        number = 0
        while True:
            number += 1
            yield f"line {number}\n".encode()
            time.sleep(0.02)
    finally:
        note(query, "closed")


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        return await socket(scope, receive, send)
    if scope["type"] != "http":
        raise NotImplementedError("no lifespan")
    path, query = scope["path"], scope["query_string"].decode()
    if path == "/hold":
        note(query, "held")
        await asyncio.Event().wait()
    if path == "/spin":
        note(query, "spins")
        while True:
            pass
    if path == "/raise":
        raise RuntimeError("out of stock")
    if path.endswith("/wait"):
        await asyncio.sleep(float(query))
    start = {"type": "http.response.start", "status": 200}
    start["headers"] = [(b"content-type", b"text/plain")]
    more = {"type": "http.response.body", "more_body": True}
    if path == "/raise-later":
        await send(start)
        await send(more | {"body": b"begun\n"})
        raise RuntimeError("out of stock, said late")
    if path == "/count":
        size, sum, message = 0, 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size, sum = size + len(message["body"]), zlib.crc32(message["body"], sum)
        await send(start)
        text = f"{size} bytes, sum {sum:08x}\n".encode()
        return await send({"type": "http.response.body", "body": text})
    if path == "/drip":
        return await drip_later(query, start, more, receive, send)
    await send(start)
    await send({"type": "http.response.body", "body": b"well\n"})


async def drip_later(query, start, more, receive, send):
    """As frameworks do it: one task writes, another waits for the client to go."""

    async def write():
        await send(start)
        number = 0
        while True:
            number += 1
            await send(more | {"body": f"line {number}\n".encode()})
            await asyncio.sleep(0.02)

    writing = asyncio.ensure_future(write())
    end = "cancelled"
    try:
        assert (await receive())["type"] == "http.request"
        end = (await receive())["type"]
    finally:
        writing.cancel()
        note(query, end)


async def starts_slowly(scope, receive, send):
    """Needs longer to start, and to stop, than a request may."""
    if scope["type"] != "lifespan":
        return await app(scope, receive, send)
    for step in "startup", "shutdown":
        await receive()
        time.sleep(1.5)
        await asyncio.sleep(1.5)
        print(f"slow {step} is done", file=sys.stderr, flush=True)
        await send({"type": f"lifespan.{step}.complete"})


async def never_starts(scope, receive, send):
    if scope["type"] == "lifespan":
        print("it starts, and has much to do", file=sys.stderr, flush=True)
        await asyncio.Event().wait()


async def socket(scope, receive, send):
    query = scope["query_string"].decode()
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    message = await receive()
    while message["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text")})
        message = await receive()
    note(query, f"{message['type']} {message['code']}")

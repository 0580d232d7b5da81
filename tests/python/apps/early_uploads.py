"""Two applications that read bodies while they arrive: `application` speaks WSGI, `app` ASGI. Both are told by the query which file to note in."""

import asyncio
import os
import zlib

#: So much of a body is answered about before the rest is asked for.
FIRST = 50_000
TEXT = "text/plain"


def note(query, text):
    with open(query, "w") as file:
        file.write(text)


def tell_process(query):
    """Adds a line with the number of the process."""
    with open(query, "a") as file:
        file.write(f"{os.getpid()}\n")


def application(environ, start_response):
    path, body = environ["PATH_INFO"], environ["wsgi.input"]
    if path == "/quotes":
        return quote(body, start_response)
    if path == "/loses":
        try:
            while body.read(1000):
                note(environ["QUERY_STRING"], "reading")
        except OSError as error:
            note(environ["QUERY_STRING"], f"lost: {error}")
            raise
    if path == "/dies":
        tell_process(environ["QUERY_STRING"])
        body.read()
    start_response("200 OK", [("Content-Type", TEXT)])
    return [b"not read\n"]


def quote(body, start_response):
    start_response("200 OK", [("Content-Type", TEXT)])
    first = body.read(FIRST)
    yield f"first {len(first)}\n".encode()
    total, sum_ = FIRST, zlib.crc32(first)
    while piece := body.read(1 << 16):
        total, sum_ = total + len(piece), zlib.crc32(piece, sum_)
    yield f"all {total} {sum_:08x}\n".encode()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    query = scope["query_string"].decode()
    headers = [(b"content-type", TEXT.encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    body = {"type": "http.response.body"}
    if scope["path"] == "/loses":
        while (message := await receive())["type"] == "http.request":
            assert message["more_body"]
            note(query, "reading")
        return note(query, f"lost: {message['type']}")
    if scope["path"] == "/dies":
        tell_process(query)
        while (await receive()).get("more_body"):
            pass
    await send(start)
    if scope["path"] != "/quotes":
        return await send(body | {"body": b"not read\n"})
    total, sum_, has_more, told = 0, 0, True, False
    while has_more:
        message = await receive()
        total, sum_ = total + len(message["body"]), zlib.crc32(message["body"], sum_)
        has_more = message["more_body"]
        if total >= FIRST and not told:
            told = True
            await send(body | {"body": f"first {FIRST}\n".encode(), "more_body": True})
    await asyncio.sleep(0)
    await send(body | {"body": f"all {total} {sum_:08x}\n".encode()})

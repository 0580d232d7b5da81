"""What ASGI asks of a server, path by path: scopes, responses in every form, and WebSocket messages of every kind and size."""

import asyncio
import json

#: How WebSockets have ended: code and reason.
ends = []


async def app(scope, receive, send):
    assert type(scope) is dict
    kind = scope["type"]
    if kind == "lifespan":
        return await lifespan(scope, receive, send)
    path = scope["path"].split("/")[1]
    await (SOCKETS if kind == "websocket" else PATHS)[path](scope, receive, send)


async def lifespan(scope, receive, send):
    assert (await receive()) == {"type": "lifespan.startup"}
    scope["state"]["begun"] = "yes"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive()) == {"type": "lifespan.shutdown"}
    await send({"type": "lifespan.shutdown.complete"})


def query(scope):
    return scope["query_string"].decode().split(",")


async def answer(send, body, status=200, headers=()):
    headers = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def shown(scope):
    """A scope as JSON can say it, its types looked at."""
    assert all(type(part) is bytes for pair in scope["headers"] for part in pair)
    assert all(len(pair) == 2 for pair in scope["headers"])
    assert type(scope["query_string"]) is bytes and type(scope["raw_path"]) is bytes
    assert len(scope["client"]) == 2 and type(scope["client"][1]) is int
    assert len(scope["server"]) == 2 and type(scope["server"][1]) is int
    found = {name: value for name, value in scope.items() if name not in ("headers", "raw_path")}
    found["headers"] = {name.decode(): value.decode() for name, value in scope["headers"]}
    found["query_string"] = scope["query_string"].decode()
    return json.dumps(found)


async def scope_(scope, receive, send):
    await answer(send, shown(scope).encode())


async def status(scope, receive, send):
    await answer(send, b"", int(query(scope)[0]), [("location", "/elsewhere?a=%20b")])


async def cookies(scope, receive, send):
    several = [("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2"), ("x-empty", "")]
    await answer(send, b"", headers=several)


async def echo(scope, receive, send):
    pieces = []
    while True:
        message = await receive()
        pieces.append(message["body"])
        if not message["more_body"]:
            break
    await answer(send, b"".join(pieces))


async def mirror(scope, receive, send):
    """Each piece as it comes; what goes back ends before what comes does not."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        message = await receive()
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})
        if not more:
            return


async def pieces(scope, receive, send):
    """Pieces of the sizes that are asked for, and an end of its own."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number, size in enumerate(query(scope)):
        body = b"%d" % (number % 10) * int(size)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})


async def bare(scope, receive, send):
    """Messages with nothing in them but what they must have."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


async def slow(scope, receive, send):
    """Three pieces with time between them: each is there before the next."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
    for number in range(3):
        await send({"type": "http.response.body", "body": b'{"id": %d}\n' % number, "more_body": True})
        await asyncio.sleep(0.05)
    await send({"type": "http.response.body"})


async def accepted(receive, send, **more):
    assert (await receive()) == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **more})


async def messages(scope, receive, send):
    """Sends back what it gets, of the same kind, and notes the end."""
    await accepted(receive, send)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            ends.append([message["code"], message["reason"]])
            return
        one = [key for key in ("text", "bytes") if message.get(key) is not None]
        assert len(one) == 1 and type(message[one[0]]) is {"text": str, "bytes": bytes}[one[0]]
        await send({"type": "websocket.send", one[0]: message[one[0]]})


async def turns(scope, receive, send):
    """Text becomes bytes, and bytes text."""
    await accepted(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await send({"type": "websocket.send", "bytes": message["text"].encode(), "text": None})
        else:
            await send({"type": "websocket.send", "text": message["bytes"].decode(), "bytes": None})


async def copies(scope, receive, send):
    await accepted(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        for number in range(5):
            await send({"type": "websocket.send", "text": f"{number} {message['text']}"})


async def makes(scope, receive, send):
    """A message of the size that is asked for."""
    await accepted(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": "x" * int(message["text"])})


async def chooses(scope, receive, send):
    known = [one for one in scope["subprotocols"] if one in ("second", "third")]
    await accepted(receive, send, subprotocol=known[0] if known else None)
    await send({"type": "websocket.send", "text": json.dumps(scope["subprotocols"])})
    await receive()


async def socket_scope(scope, receive, send):
    await accepted(receive, send)
    await send({"type": "websocket.send", "text": shown(scope)})
    await receive()


async def closes(scope, receive, send):
    """Closes with the code and the reason that are asked for."""
    code, reason = query(scope)
    await accepted(receive, send)
    await send({"type": "websocket.close", "code": int(code), "reason": reason})


async def closes_bare(scope, receive, send):
    await accepted(receive, send)
    await send({"type": "websocket.close"})


async def seen(scope, receive, send):
    found = json.dumps(ends).encode()
    await answer(send, found)


PATHS = {
    "scope": scope_,
    "status": status,
    "cookies": cookies,
    "echo": echo,
    "mirror": mirror,
    "pieces": pieces,
    "bare": bare,
    "slow": slow,
    "seen": seen,
}

SOCKETS = {
    "messages": messages,
    "turns": turns,
    "copies": copies,
    "makes": makes,
    "chooses": chooses,
    "scope": socket_scope,
    "closes": closes,
    "closes_bare": closes_bare,
}

"""What tests of ASGI ask for, path by path: `app` answers, and takes notes of what became of its requests."""

import asyncio
import contextvars
import json

notes = {"streams": 0, "ended": [], "running": 0, "most": 0, "sockets": []}
mark = contextvars.ContextVar("mark", default="none")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(scope, receive, send)
    if scope["type"] == "websocket":
        return await socket(scope, receive, send)
    return await PATHS.get(scope["path"].split("/")[1], plain)(scope, receive, send)


async def lifespan(scope, receive, send):
    await receive()
    scope["state"]["begun"] = "yes"
    scope["state"]["list"] = []
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("the lifespan has ended", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def refuses_to_start(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is not there"})


async def without_lifespan(scope, receive, send):
    assert scope["type"] == "http"
    await answer(send, b"without\n")


async def answer(send, body, status=200, headers=()):
    headers = [(b"content-type", b"text/plain"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def plain(scope, receive, send):
    await answer(send, b"hello\n")


async def show(scope, receive, send):
    shown = dict(scope)
    shown["raw_path"] = shown["raw_path"].decode("latin-1")
    shown["query_string"] = shown["query_string"].decode("latin-1")
    shown["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in shown["headers"]]
    assert type(scope) is dict
    assert all(type(part) is bytes for pair in scope["headers"] for part in pair)
    await answer(send, json.dumps(shown).encode())


async def state(scope, receive, send):
    before = mark.get()
    mark.set("set")
    alone = "own" not in scope["state"]
    scope["state"]["own"] = 1
    text = f"{scope['state']['begun']} {alone} {before} {asyncio.current_task() is not None}"
    await answer(send, text.encode())


async def echo(scope, receive, send):
    pieces, size = [], 0
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        size += len(message["body"])
        pieces.append(len(message["body"]))
        if not message["more_body"]:
            break
    after = asyncio.create_task(receive())
    await asyncio.sleep(0)
    assert not after.done()
    await answer(send, json.dumps({"size": size, "pieces": len(pieces)}).encode())
    assert (await after)["type"] == "http.disconnect"
    notes["ended"].append("echo")


async def seen(scope, receive, send):
    await answer(send, json.dumps(notes).encode())


async def events(scope, receive, send):
    """Sends an event now and then, and hears when nobody listens."""
    notes["streams"] += 1
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    how = "cancelled"
    try:
        number = 0
        while True:
            number += 1
            body = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": body, "more_body": True})
            try:
                message = await asyncio.wait_for(receive_next(receive), 0.05)
                how = message["type"]
                return
            except asyncio.TimeoutError:
                pass
    except OSError as error:
        how = str(error)
        raise
    finally:
        notes["streams"] -= 1
        notes["ended"].append(how)


async def receive_next(receive):
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message


async def flood(scope, receive, send):
    """Sends until somebody says that it is enough, and remembers how much that was."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    piece, sent = b"x" * 65536, 0
    try:
        while sent < 256 * len(piece):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += 1 * len(piece)
        await send({"type": "http.response.body"})
    except OSError:
        notes["ended"].append("flood")
        raise


async def head_first(scope, receive, send):
    """The beginning alone, until somebody asks for the rest."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    while "go" not in notes:
        await asyncio.sleep(0.01)
    del notes["go"]
    await send({"type": "http.response.body", "body": b"abc"})


async def go(scope, receive, send):
    notes["go"] = True
    await answer(send, b"going\n")


async def slow(scope, receive, send):
    notes["running"] += 1
    notes["most"] = max(notes["most"], notes["running"])
    await asyncio.sleep(0.1)
    notes["running"] -= 1
    await answer(send, b"slow\n")


async def file(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.pathsend", "path": __file__})


async def trailers(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    await send({"type": "http.response.body", "body": b"body"})
    end = {"type": "http.response.trailers", "headers": [(b"x-sum", b"42")]}
    await send(end)


async def empty(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def wrong(scope, receive, send):
    """What must not be sent: it has to raise, and the client hears of it in the way that is left."""
    what = scope["path"].rpartition("/")[2]
    start = {"type": "http.response.start", "status": 200, "headers": []}
    body = {"type": "http.response.body", "body": b"text"}
    messages = {
        "no-start": [body],
        "start-twice": [start, start],
        "no-type": [{}],
        "another-type": [{"type": "websocket.accept"}],
        "no-status": [{"type": "http.response.start"}],
        "early": [{**start, "status": 100}],
        "line-end": [{**start, "headers": [(b"x-a", b"a\r\nx-b: b")]}],
        "bad-name": [{**start, "headers": [(b"x a", b"a")]}],
        "text-header": [{**start, "headers": [("x-a", "a")]}],
        "text-body": [start, {**body, "body": "text"}],
        "too-long": [{**start, "headers": [(b"content-length", b"3")]}, body],
        "too-short": [{**start, "headers": [(b"content-length", b"5")]}, body],
        "nothing": [],
        "start-only": [start],
    }
    for message in messages[what]:
        await send(message)


async def late(scope, receive, send):
    """After the end there is nothing to send."""
    await answer(send, b"done\n")
    try:
        await send({"type": "http.response.body", "body": b"more"})
    except RuntimeError:
        notes["ended"].append("late")


listeners = set()


def listen_on(receive, word):
    """Leaves a task behind that waits for the end."""

    async def listen():
        notes["ended"].append(f"{word} {(await receive())['type']}")

    task = asyncio.get_running_loop().create_task(listen())
    listeners.add(task)
    task.add_done_callback(listeners.discard)


async def leaves_behind(scope, receive, send):
    await receive()
    listen_on(receive, "left")
    await asyncio.sleep(0)
    await answer(send, b"left behind\n")


async def breaks(scope, receive, send):
    headers = [(b"content-length", b"100")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    raise ValueError("in the midst")


async def socket(scope, receive, send):
    message = await receive()
    assert message == {"type": "websocket.connect"}
    path = scope["path"]
    if path == "/refuse":
        return await send({"type": "websocket.close"})
    if path == "/deny":
        assert "websocket.http.response" in scope["extensions"]
        kind = "websocket.http.response"
        headers = [(b"x-why", b"because")]
        await send({"type": f"{kind}.start", "status": 418, "headers": headers})
        return await send({"type": f"{kind}.body", "body": b"no tea\n"})
    if path == "/raise":
        raise ValueError("before the handshake")
    headers = [(b"x-scheme", scope["scheme"].encode())]
    protocol = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": protocol, "headers": headers})
    if path == "/close":
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        notes["sockets"].append((await receive())["code"])
        try:
            await send({"type": "websocket.send", "text": "more"})
        except RuntimeError:
            notes["sockets"].append("closed")
        return
    if path == "/leaves-behind":
        listen_on(receive, "left")
        return await asyncio.sleep(0)
    if path == "/fail":
        raise ValueError("after the handshake")
    if path == "/many":
        for number in range(200):
            await send({"type": "websocket.send", "text": f"{number}:" + "x" * 1000})
        return
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            notes["sockets"].append([message["code"], message["reason"]])
            return
        if message.get("text") is not None:
            await send({"type": "websocket.send", "text": "got " + message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"][::-1]})


PATHS = {
    # Where it is mounted below that.
    "new": show,
    "scope": show,
    "state": state,
    "echo": echo,
    "seen": seen,
    "events": events,
    "flood": flood,
    "head-first": head_first,
    "go": go,
    "slow": slow,
    "file": file,
    "trailers": trailers,
    "empty": empty,
    "wrong": wrong,
    "late": late,
    "leaves-behind": leaves_behind,
    "breaks": breaks,
}

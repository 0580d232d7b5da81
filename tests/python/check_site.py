"""Visits a sample site: `check_site.py URL VISIT...`, where a visit is one of the functions below.

Prints a line for each visit that went well; any other end is a failure. One program for all the sites, so that what one framework can be
asked, all are.
"""

import asyncio
import hashlib
import json
import sys
import time
import uuid

import httpx

PATIENCE = 20
MEGABYTE = 1 << 20


def page(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.text) == (200, "the shop"), answer
    head = client.head("/")
    assert head.status_code in (200, 405) and not head.content, head
    assert client.get("/none").status_code == 404
    # The connection is still in step after all that.
    assert client.get("/").text == "the shop"


def form(client: httpx.Client) -> None:
    fields = {"name": "Zo\u00eb & \u20ac", "tags": ["a", "b c"]}
    assert client.post("/form", data=fields).json() == fields
    # The same as multipart, in which frameworks read the body in another way.
    answer = client.post("/form", data=fields, files={"file": ("f.txt", b"content")})
    assert answer.json() == fields, answer.text


class Content:
    """A file of so many bytes that is never in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at = 0
        self.digest = hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        left = self.size - self.at
        count = left if count < 0 else min(count, left)
        piece = (b"%07d\n" % (self.at // 8 % 10_000_000) * (count // 8 + 1))[:count]
        self.at += count
        self.digest.update(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = {0: 0, 1: self.at, 2: self.size}[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def __iter__(self):
        while piece := self.read(1 << 16):
            yield piece


def upload(client: httpx.Client, size: int = 100 * MEGABYTE) -> None:
    content = Content(size)
    answer = client.post("/upload", files={"file": ("big file.bin", content)})
    expect = {"name": "big file.bin", "size": size, "sha256": content.digest.hexdigest()}
    assert answer.json() == expect, (answer.text, expect)


def small_upload(client: httpx.Client) -> None:
    for size in (0, 1, 10_000, 300_000):
        upload(client, size)


def session(client: httpx.Client) -> None:
    for count in (1, 2, 3):
        assert client.post("/session").json() == {"count": count}
    client.cookies.clear()
    assert client.post("/session").json() == {"count": 1}


def stream(client: httpx.Client) -> None:
    token = uuid.uuid4().hex
    with client.stream("GET", "/stream", params={"token": token}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "first"
        # Only now may the second line be written: the first was not kept back.
        assert client.get("/release", params={"token": token}).text == "released"
        assert list(lines) == ["last"]


def events(client: httpx.Client) -> None:
    before = client.get("/left").json()["left"]
    with client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert [next(data) for _ in range(3)] == ["data: 0", "data: 1", "data: 2"]
    end = time.monotonic() + PATIENCE
    while client.get("/left").json()["left"] == before:
        assert time.monotonic() < end, "the stream goes on without its reader"
        time.sleep(0.05)


def fault(client: httpx.Client) -> None:
    answer = client.get("/fault")
    assert answer.status_code == 500 and "Traceback" not in answer.text, answer.text
    # On a connection of its own: after a fault servers may close theirs.
    assert httpx.get(client.base_url).text == "the shop"


def echo(client: httpx.Client) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    async def play() -> None:
        url = str(client.base_url.join("/echo")).replace("http", "ws", 1)
        async with connect(url, max_size=None) as socket:
            for message in ("text", "\u00e9\u20ac", b"\0\1\2", "x" * 3_000_000, b"y" * 70_000, ""):
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())
            await socket.send(["a", "b", "c"])
            assert await socket.recv() == "abc"
            await socket.send("close")
            try:
                await socket.recv()
                raise AssertionError("a close frame expected")
            except ConnectionClosed as closed:
                assert closed.rcvd and (closed.rcvd.code, closed.rcvd.reason) == (4001, "as asked")
        sockets = [await connect(url) for _ in range(20)]
        for number, socket in enumerate(sockets):
            await socket.send(json.dumps(number))
        for number, socket in enumerate(sockets):
            assert await socket.recv() == json.dumps(number)
            await socket.close()

    asyncio.run(asyncio.wait_for(play(), PATIENCE * 2))


def main() -> None:
    visits = {f.__name__: f for f in (page, form, upload, small_upload, session)}
    visits |= {f.__name__: f for f in (stream, events, fault, echo)}
    url, *names = sys.argv[1:]
    for name in names:
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            visits[name](client)
        print(f"visited: {name}", flush=True)


if __name__ == "__main__":
    main()

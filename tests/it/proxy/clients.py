"""Python's client libraries through the proxy: `http FRONT` asks an nginx behind it, `websocket FRONT BACKEND` plays both ends.

Prints nothing and ends with 0 when all is well; exit status 77: the library is not there.
"""

import http.client
import sys
import urllib.error
import urllib.request


def over_http(front):
    connection = http.client.HTTPConnection("127.0.0.1", front, timeout=20)
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, "/data.bin", headers={"X-Client": "python"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and answer.getheader("Content-Length") == "200000"
        assert len(body) == (0 if method == "HEAD" else 200000), len(body)
    # A body of unknown length goes in chunks.
    connection.request("PUT", "/take", body=(b"x" * 1000 for _ in range(500)), encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    assert answer.read().startswith(b"PUT /say "), "the same connection goes on"
    connection.request("GET", "/data.bin", headers={"Range": "bytes=10-19"})
    answer = connection.getresponse()
    assert answer.status == 206 and len(answer.read()) == 10
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{front}/none", timeout=20)
        raise AssertionError("404 expected")
    except urllib.error.HTTPError as error:
        assert error.code == 404 and error.headers["Via"] == "1.1 lurcher"


def over_websocket(front, backend):
    try:
        import asyncio

        import websockets
    except ImportError:
        sys.exit(77)

    async def echo(socket, *_):
        async for message in socket:
            await socket.send(message)
            if message == "end":
                await socket.close(4001, "as asked")

    async def play():
        async with websockets.serve(echo, "127.0.0.1", backend, max_size=None):
            async with websockets.connect(f"ws://127.0.0.1:{front}/chat", max_size=None) as socket:
                for message in ("text", "é\u20ac", b"\0\1\2", "x" * 3_000_000, b"y" * 70_000, ""):
                    await socket.send(message)
                    assert await socket.recv() == message
                await (await socket.ping())
                await socket.send(["a", "b", "c"])
                assert await socket.recv() == "abc"
                await socket.send("end")
                assert await socket.recv() == "end"
                try:
                    await socket.recv()
                except websockets.ConnectionClosed as closed:
                    assert closed.code == 4001, closed
                else:
                    raise AssertionError("a close was expected")
            # And closed by the client.
            async with websockets.connect(f"ws://127.0.0.1:{front}/chat") as socket:
                await socket.send("once")
                assert await socket.recv() == "once"

    asyncio.run(asyncio.wait_for(play(), 30))


if sys.argv[1] == "http":
    over_http(int(sys.argv[2]))
else:
    over_websocket(int(sys.argv[2]), int(sys.argv[3]))

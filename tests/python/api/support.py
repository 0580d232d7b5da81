"""What the tests of the Python API have in common: the server that they run behind, and its clients.

Each script is run once for each kind of server, with its addresses in the environment.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import struct
import threading
import unittest
from typing import Any, Callable, Iterator

import lurcher

SEND = os.environ["LURCHER_SEND"]
RECV = os.environ["LURCHER_RECV"]
DATABASE = os.environ["LURCHER_DATABASE"]
IS_MONGREL2 = os.environ["LURCHER_KIND"] == "Mongrel2"
HOST, PORT = os.environ["LURCHER_HTTP"].rsplit(":", 1)

#: More than anything takes here, in seconds.
PATIENCE = 20.0

#: How often something is asked that a server may lose.
TRIES = 5


class Connection(lurcher.Connection):
    """One after which the server has heard that it is gone: what is asked next must not be pushed to it."""

    def __exit__(self, *error: Any) -> None:
        try:
            self.stop()
            while not self.ended:
                self.recv(timeout=PATIENCE)
        except lurcher.Error:
            # Closed already.
            pass
        super().__exit__(*error)


def connect(**options: Any) -> lurcher.Connection:
    """A connection that waits for a server that is slow to take it."""
    return Connection(SEND, RECV, subscription_timeout=PATIENCE, **options)


class Answer:
    """A response that was read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers
        self.body = response.read()


def ask(
    path: str = "/",
    method: str = "GET",
    body: bytes | None = None,
    headers: list[tuple[str, str]] | None = None,
) -> Answer:
    """One request on a connection of its own, which is closed then."""
    client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
    try:
        client.putrequest(method, path)
        if body is not None:
            client.putheader("Content-Length", str(len(body)))
        for name, value in headers or []:
            client.putheader(name, value)
        client.endheaders(body)
        return Answer(client.getresponse())
    finally:
        client.close()


def in_thread(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Begins to do something elsewhere; what is returned waits for it."""
    result: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function(*arguments))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(PATIENCE)
        if failed:
            raise failed[0]
        if not result:
            raise TimeoutError(f"{function} does not end")
        return result[0]

    return join


def requests(connection: lurcher.Connection) -> Iterator[lurcher.Request]:
    """What is to be answered, without the ends of earlier clients."""
    while True:
        request = connection.recv(timeout=PATIENCE)
        if request is None:
            raise TimeoutError("no request came")
        if not request.is_disconnect:
            yield request


def sweep() -> None:
    """Takes the ends of earlier clients, which a server tells to whoever is there: what comes afterwards is a test's own."""
    with connect() as connection:
        for _ in range(TRIES):
            client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
            # Whom the handler closes, the server says nothing of.
            client.request("GET", "/sweep", headers={"Connection": "close"})
            while request := connection.recv(timeout=PATIENCE / TRIES):
                if not request.is_disconnect:
                    request.respond_http("")
                    client.getresponse().read()
                    return
            # A Mongrel2 has sent it to the program before, which it did not know to have gone yet.
            client.close()
    raise TimeoutError("no request came")


class Case(unittest.TestCase):
    """A test that takes all that it needs a few times over before it gives up."""

    def setUp(self) -> None:
        sweep()

    def answered(self, answer: Callable[[lurcher.Request], None], *arguments: Any) -> Answer:
        """What comes back when one request is answered so."""
        with connect() as connection:
            asked = in_thread(ask, *arguments)
            answer(next(requests(connection)))
            result: Answer = asked()
            return result


class WebSocket:
    """A client of a WebSocket, in so many lines as the tests need."""

    def __init__(self, path: str = "/", protocols: str = "") -> None:
        self.socket = socket.create_connection((HOST, int(PORT)), timeout=PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        offer = f"Sec-WebSocket-Protocol: {protocols}\r\n" if protocols else ""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n{offer}\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            line = self.file.readline()
            if not line:
                raise ConnectionError(f"no head: {self.head!r}")
            self.head += line

    def send(self, payload: bytes, opcode: int = 1) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        assert len(payload) < 126
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload))
        self.socket.sendall(head + mask + masked)

    def receive(self) -> tuple[int, bytes]:
        """The opcode and the payload of a frame."""
        first, length = self.file.read(2)
        if length == 126:
            (length,) = struct.unpack("!H", self.file.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.file.read(8))
        return first & 15, self.file.read(length)

    def close(self) -> None:
        self.file.close()
        self.socket.close()

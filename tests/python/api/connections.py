"""`lurcher.Connection`, `Request`, `Client` and `Writer`: what comes, and what goes back."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
import unittest
from typing import Any

import lurcher
from support import (
    DATABASE,
    HOST,
    IS_MONGREL2,
    PATIENCE,
    PORT,
    RECV,
    SEND,
    Case,
    WebSocket,
    ask,
    connect,
    in_thread,
    requests,
)


class WhatComes(Case):
    def test_a_request_says_all_that_the_server_does(self) -> None:
        seen: list[lurcher.Request] = []

        def answer(request: lurcher.Request) -> None:
            seen.append(request)
            request.respond_http("ok")

        word = "gr\u00fcn".encode().decode("latin-1")
        fields = [("X-Two", "one"), ("X-Two", "two"), ("X-Word", word)]
        self.answered(answer, "/a%20b?c=%64", "POST", b"body", fields)
        [request] = seen
        self.assertEqual(request.kind, "request")
        self.assertFalse(request.is_disconnect)
        self.assertEqual((request.method, request.version), ("POST", "HTTP/1.1"))
        self.assertEqual((request.path, request.query), ("/a%20b", "c=%64"))
        self.assertEqual((request.uri, request.pattern), ("/a%20b?c=%64", "/"))
        self.assertEqual((request.body, request.read()), (b"body", b"body"))
        self.assertEqual((request.sender, request.client.server_id), ("app-ident", "app-ident"))
        self.assertEqual(request.conn_id, request.client.client_id)
        self.assertEqual(request.remote_addr, "127.0.0.1")
        self.assertIsNone(request.upload_path)
        headers = request.headers
        self.assertEqual(headers["METHOD"], "POST")
        self.assertEqual(headers["X-Two"], "one")
        self.assertEqual(headers.getall("x-two"), ["one", "two"])
        self.assertEqual(headers.getall("x-three"), [])
        self.assertEqual(headers.get("Content-Length"), "4")
        self.assertEqual(headers.get("x-none", 17), 17)
        self.assertIsNone(headers.get("x-none"))
        self.assertEqual(headers["x-word"], "gr\u00fcn")
        self.assertIn((b"x-two", b"two"), headers.raw())
        self.assertIn("x-two", list(headers))
        self.assertEqual(dict(headers.items())["x-two"], "one")
        self.assertEqual(len(headers), len(headers.keys()))
        with self.assertRaises(KeyError):
            headers["x-none"]

    @unittest.skipIf(IS_MONGREL2, "it does not tell what clients have taken")
    def test_a_flood_that_nobody_takes_does_not_stop_who_waits_for_something_else(self) -> None:
        size, piece = 24 << 20, b"x" * 65536
        with connect() as connection:
            waiting = requests(connection)
            connecting = in_thread(WebSocket)
            next(waiting).accept()
            flooding = connecting()
            with socket.create_connection((HOST, int(PORT)), timeout=PATIENCE) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                request = next(waiting)

                def read() -> int:
                    # Not before the other one was cut off.
                    with contextlib.suppress(ConnectionError):
                        while flooding.socket.recv(100):
                            pass
                    length = 0
                    while data := client.recv(1 << 20):
                        length += len(data)
                    return length

                for _ in range(1500):
                    flooding.send(b"frame")
                reading = in_thread(read)
                # That its client reads is told behind all those frames, to the only one who receives.
                with request.stream(length=size) as writer:
                    for _ in range(size // len(piece)):
                        writer.write(piece)
                self.assertGreater(reading(), size)
            seen = [next(connection) for _ in range(1000)]
            self.assertEqual({one.kind for one in seen}, {"frame"})
            flooding.close()

    def test_a_subclass_is_made_as_any_other(self) -> None:
        class Named(lurcher.Connection):
            def __init__(self, send_spec: str, recv_spec: str, **options: Any) -> None:
                super().__init__(send_spec, recv_spec, **options)
                self.shown = f"to {send_spec}"

        with Named(SEND, RECV, subscription_timeout=PATIENCE) as connection:
            self.assertEqual(connection.shown, f"to {SEND}")
            asked = in_thread(ask)
            next(requests(connection)).respond_http("subclass")
            self.assertEqual(asked().body, b"subclass")

    def test_nobody_who_waits_for_a_while_waits_for_longer(self) -> None:
        with connect() as connection:
            self.assertIsNone(connection.recv(timeout=0))
            began = time.monotonic()
            self.assertIsNone(connection.recv(timeout=0.05))
            self.assertGreaterEqual(time.monotonic() - began, 0.05)
            self.assertFalse(connection.ended)
            with self.assertRaises(ValueError):
                connection.recv(timeout=-1)

    def test_who_waits_is_interrupted_and_the_next_one_waits_again(self) -> None:
        with connect() as connection:
            over = threading.Event()

            def wait() -> lurcher.Request | None:
                try:
                    return connection.recv()
                finally:
                    over.set()

            waiting = in_thread(wait)
            # It may come before the other waits; then once more.
            while not over.wait(0.001):
                connection.interrupt()
            self.assertIsNone(waiting())
            self.assertFalse(connection.ended)
            asked = in_thread(ask)
            next(requests(connection)).respond_http("still here")
            self.assertEqual(asked().body, b"still here")

    def test_a_connection_that_is_stopped_ends(self) -> None:
        with connect() as connection:
            asked = in_thread(ask)
            next(requests(connection)).respond_http("")
            asked()
            waiting = in_thread(list, connection)
            connection.stop()
            self.assertEqual([request for request in waiting() if not request.is_disconnect], [])
            self.assertTrue(connection.ended)
            self.assertIsNone(connection.recv())

    def test_what_was_pushed_is_received_after_a_shutdown(self) -> None:
        connection = connect()
        asked = [in_thread(ask, f"/{number}") for number in range(3)]
        first = next(requests(connection))
        # They are with us as soon as the server has read them; it has, when one more is answered.
        time.sleep(0.2)
        connection.shutdown(timeout=PATIENCE)
        first.respond_http("1")
        while (request := connection.recv(timeout=0)) is not None:
            if not request.is_disconnect:
                request.respond_http("1")
        self.assertTrue(connection.ended)
        connection.close()
        # What a server had not pushed by then is for the next.
        with connect() as connection:
            answered = threading.Event()
            rest = in_thread(self._serve, connection, answered)
            self.assertEqual([one().body for one in asked], [b"1"] * 3)
            answered.set()
            connection.stop()
            rest()

    @staticmethod
    def _serve(connection: lurcher.Connection, _: threading.Event) -> None:
        for request in connection:
            if not request.is_disconnect:
                request.respond_http("1")

    def test_ctrl_c_interrupts_the_main_thread_and_breaks_nothing(self) -> None:
        with connect() as connection:
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with self.assertRaises(KeyboardInterrupt):
                connection.recv()
            asked = in_thread(ask)
            next(requests(connection)).respond_http("fine")
            self.assertEqual(asked().body, b"fine")

    def test_each_request_is_one_thread_s(self) -> None:
        with connect() as connection:
            seen: list[str] = []

            def serve() -> None:
                for request in connection:
                    if not request.is_disconnect:
                        seen.append(request.path)
                        request.respond_http(request.path)

            threads = [in_thread(serve) for _ in range(4)]
            paths = [f"/{number}" for number in range(40)]
            asked = [in_thread(ask, path) for path in paths]
            self.assertEqual([one().body.decode() for one in asked], paths)
            connection.stop()
            for thread in threads:
                thread()
            self.assertEqual(sorted(seen), sorted(paths))

    def test_a_configuration_tells_where_to_connect(self) -> None:
        with lurcher.Connection.from_config(
            DATABASE, route="/x", subscription_timeout=PATIENCE
        ) as connection:
            asked = in_thread(ask)
            next(requests(connection)).respond_http("found")
            self.assertEqual(asked().body, b"found")
        with self.assertRaisesRegex(lurcher.ConfigError, "app-ident"):
            lurcher.Connection.from_config(DATABASE, ident="other")
        with self.assertRaises(lurcher.ConfigError):
            lurcher.Connection.from_config("/nowhere/at/all.sqlite")

    def test_mistakes_in_arguments_are_told(self) -> None:
        with self.assertRaises(ValueError):
            lurcher.Connection("127.0.0.1:9999")
        with self.assertRaises(ValueError):
            lurcher.Connection("ipc:///tmp/no-port-to-count-down-from")
        with self.assertRaises(ValueError):
            lurcher.Connection([SEND, SEND], [SEND])
        with self.assertRaises(TypeError):
            lurcher.Connection()
        with self.assertRaisesRegex(TypeError, "recieve"):
            lurcher.Connection(SEND, recieve="tcp://127.0.0.1:1")  # type: ignore[call-arg]

    def test_a_child_by_fork_is_told_that_the_connection_is_not_its_own(self) -> None:
        with connect() as connection:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    connection.recv(timeout=1)
                except lurcher.ConnectError:
                    with connect(ident="child") as own:
                        own.recv(timeout=0)
                    with self.assertRaises(lurcher.ConnectError):
                        connection.close()
                    code = 0
                finally:
                    os._exit(code)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            asked = in_thread(ask)
            next(requests(connection)).respond_http("alive")
            self.assertEqual(asked().body, b"alive")


class WhatGoesBack(Case):
    def test_a_whole_response_is_as_it_was_said(self) -> None:
        answer = self.answered(
            lambda request: request.respond_http(
                "gr\u00fcn", "404 Not Here", [("Set-Cookie", "a"), ("Set-Cookie", "b")]
            )
        )
        self.assertEqual((answer.status, answer.reason), (404, "Not Here"))
        self.assertEqual(answer.headers.get_all("set-cookie"), ["a", "b"])
        self.assertEqual(answer.headers["content-length"], "5")
        self.assertIn("GMT", answer.headers["date"])
        self.assertEqual(answer.body, "gr\u00fcn".encode())

    def test_the_answer_to_head_has_no_body(self) -> None:
        answer = self.answered(lambda request: request.respond_http(b"four"), "/", "HEAD")
        self.assertEqual((answer.headers["content-length"], answer.body), ("4", b""))

    def test_json_goes_both_ways(self) -> None:
        answer = self.answered(
            lambda request: request.respond_json({"got": request.json()}, 201), "/", "POST", b"[1]"
        )
        self.assertEqual((answer.status, answer.body), (201, b'{"got": [1]}'))
        self.assertEqual(answer.headers["content-type"], "application/json")

    def test_bytes_go_out_as_they_are(self) -> None:
        def raw(request: lurcher.Request) -> None:
            request.respond(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
            request.respond(bytearray(b"ra"))
            request.client.send(memoryview(b"w"))

        self.assertEqual(self.answered(raw).body, b"raw")

    def test_what_is_no_response_is_refused_before_it_is_sent(self) -> None:
        def answer(request: lurcher.Request) -> None:
            with self.assertRaises(lurcher.ReplyError):
                request.respond_http("", headers={"X-Bad": "a\r\nSet-Cookie: b"})
            with self.assertRaises(lurcher.ReplyError):
                request.stream(headers={"Transfer-Encoding": "chunked"})
            with self.assertRaises(lurcher.ReplyError):
                request.accept()
            with self.assertRaises(ValueError):
                request.respond_http("", "fine")
            with self.assertRaises(TypeError):
                request.respond_http(17)  # type: ignore[arg-type]
            request.respond_http("after all")

        self.assertEqual(self.answered(answer).body, b"after all")

    def test_a_response_grows(self) -> None:
        def answer(request: lurcher.Request) -> None:
            with request.stream(headers={"Content-Type": "text/plain"}) as writer:
                self.assertFalse(writer.closed)
                for piece in ("one ", b"two ", "three"):
                    writer.write(piece)
                    writer.flush()
            self.assertTrue(writer.closed)
            writer.finish()
            with self.assertRaises(lurcher.ReplyError):
                writer.write("more")

        answer_ = self.answered(answer)
        self.assertEqual(answer_.headers["transfer-encoding"], "chunked")
        self.assertEqual(answer_.body, b"one two three")

    def test_a_response_that_is_left_in_the_middle_cuts_its_client_off(self) -> None:
        def answer(request: lurcher.Request) -> None:
            with self.assertRaises(ZeroDivisionError):
                with request.stream(length=100) as writer:
                    writer.write("a part")
                    writer.flush()
                    raise ZeroDivisionError

        with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
            self.answered(answer)

    def test_a_large_response_waits_for_its_client_with_nobody_else_receiving(self) -> None:
        size, piece = 24 << 20, b"x" * 65536

        def answer(request: lurcher.Request) -> None:
            with request.stream(length=size) as writer:
                for _ in range(size // len(piece)):
                    writer.write(piece)

        self.assertEqual(len(self.answered(answer).body), size)

    def test_a_client_that_leaves_is_told_of_and_answering_that_is_harmless(self) -> None:
        with connect() as connection:
            client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
            client.request("GET", "/")
            first = next(requests(connection))
            client.close()
            if client.sock is not None:
                client.sock.close()
            notice = connection.recv(timeout=PATIENCE)
            while notice is not None and not notice.is_disconnect:
                notice = connection.recv(timeout=PATIENCE)
            assert notice is not None
            self.assertEqual((notice.kind, notice.client), ("disconnect", first.client))
            notice.respond_http("too late")
            notice.respond(b"too late")
            notice.send_websocket("too late")
            notice.disconnect()
            with notice.stream() as writer:
                writer.write("too late")
                writer.flush()
            asked = in_thread(ask)
            request = connection.recv(timeout=PATIENCE)
            assert request is not None
            # Whatever was sent to one that is gone would have been answered by now.
            self.assertEqual(request.kind, "request")
            request.respond_http("next")
            self.assertEqual(asked().body, b"next")

    def test_many_clients_are_one_delivery(self) -> None:
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsame"
        with connect() as connection:
            asked = [in_thread(ask) for _ in range(7)]
            waiting = requests(connection)
            clients = {next(waiting).client for _ in asked}
            self.assertEqual(len(clients), 7)
            known = [clients.pop(), clients.pop()]
            connection.deliver(clients, whole)
            connection.deliver_ids("app-ident", [one.client_id for one in known], whole)
            self.assertEqual([one().body for one in asked], [b"same"] * 7)

    def test_a_client_is_the_same_from_request_to_request(self) -> None:
        with connect() as connection:
            client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
            seen = []
            for _ in range(2):
                client.request("GET", "/")
                request = next(requests(connection))
                seen.append(request.client)
                request.respond_http("")
                client.getresponse().read()
            self.assertEqual(seen[0], seen[1])
            self.assertEqual(len(set(seen)), 1)
            connection.send(seen[0], b"")
            # No bytes at all have closed it.
            self.assertEqual(client.sock.recv(1), b"")
            client.close()

    def test_nothing_is_sent_through_a_connection_that_is_closed(self) -> None:
        connection = connect()
        asked = in_thread(ask)
        request = next(requests(connection))
        request.respond_http("last")
        self.assertEqual(asked().body, b"last")
        connection.close()
        connection.close()
        self.assertIsNone(connection.recv())
        self.assertTrue(connection.ended)
        with self.assertRaises(lurcher.ReplyError):
            request.respond_http("more")


if __name__ == "__main__":
    unittest.main()

"""`lurcher.Handler` and `WSGIHandler`: the loop, its hooks, and how it ends."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
import unittest
from typing import Any, Iterable
from wsgiref.validate import validator

import lurcher
from support import HOST, PATIENCE, PORT, RECV, SEND, Case, ask, connect, in_thread


class Hello(lurcher.Handler):
    """Says where it was asked; and does what else a test wants."""

    def process_request(self, req: lurcher.Request) -> None:
        if req.path == "/fail":
            raise ZeroDivisionError("as asked")
        if req.path == "/fail-late":
            writer = req.stream(length=100)
            writer.write("a part")
            writer.flush()
            raise ZeroDivisionError("as asked")
        req.respond_http(f"{req.path} in {threading.current_thread().name}")


class Handlers(Case):
    def test_a_subclass_serves_until_it_is_stopped(self) -> None:
        handler = Hello(connect())
        serving = in_thread(handler.serve)
        self.assertTrue(ask("/one").body.startswith(b"/one"))
        self.assertTrue(handler.serving)
        handler.stop()
        serving()
        self.assertFalse(handler.serving)
        self.assertTrue(handler.connection.ended)

    def test_a_send_spec_does_for_a_connection(self) -> None:
        class Named(Hello):
            @staticmethod
            def ConnectionClass(spec: str) -> lurcher.Connection:  # type: ignore[override]
                # The test's servers have no recv spec one port down.
                self.assertEqual(spec, SEND)
                return connect()

        handler = Named(SEND)
        serving = in_thread(handler.serve)
        self.assertEqual(ask("/spec").status, 200)
        handler.stop()
        serving()

    def test_one_request_may_be_served_at_a_time(self) -> None:
        handler = Hello(connect())
        self.assertIsNone(handler.serve_one_request(timeout=0.01))
        asked = in_thread(ask, "/one")
        while (served := handler.serve_one_request(timeout=PATIENCE)) and served.is_disconnect:
            pass
        self.assertEqual(asked().status, 200)
        handler.connection.close()

    def test_several_threads_serve(self) -> None:
        together = threading.Barrier(3, timeout=PATIENCE)

        class Meeting(lurcher.Handler):
            """Answers three at once or none."""

            def process_request(self, req: lurcher.Request) -> None:
                together.wait()
                req.respond_http("met")

        handler = Meeting(connect())
        serving = in_thread(handler.serve, 3)
        asked = [in_thread(ask) for _ in range(3)]
        self.assertEqual([one().body for one in asked], [b"met"] * 3)
        handler.stop()
        serving()
        with self.assertRaises(ValueError):
            handler.serve(threads=0)

    def test_what_a_handler_raises_is_logged_and_answered_for(self) -> None:
        handler = Hello(connect())
        serving = in_thread(handler.serve)
        with self.assertLogs("lurcher") as logs:
            self.assertEqual(ask("/fail").status, 500)
            with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
                ask("/fail-late")
        self.assertIn("GET /fail: raised", logs.output[0])
        self.assertIn("ZeroDivisionError: as asked", logs.output[0])
        self.assertEqual(ask("/well").status, 200)
        handler.stop()
        serving()

    def test_a_signal_handler_may_stop_it_and_what_was_asked_is_answered(self) -> None:
        class Slow(lurcher.Handler):
            """Is in the middle of something when the signal comes."""

            def process_request(self, req: lurcher.Request) -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                req.respond_http("in time")

        handler = Slow(connect())
        before = signal.signal(signal.SIGTERM, lambda *_: handler.stop())
        try:
            asked = in_thread(ask)
            handler.serve()
            self.assertEqual(asked().body, b"in time")
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_ctrl_c_ends_it_and_what_was_asked_is_answered(self) -> None:
        handler = Hello(connect())
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with self.assertRaises(KeyboardInterrupt):
            handler.serve()
        self.assertTrue(handler.connection.ended)

    def test_the_client_that_leaves_is_told_to_its_hook(self) -> None:
        left = threading.Event()

        class Watching(lurcher.Handler):
            """Answers nobody, and waits for the end of that."""

            def process_request(self, req: lurcher.Request) -> None:
                pass

            def handle_disconnect(self, req: lurcher.Request) -> None:
                left.set()

        handler = Watching(connect())
        serving = in_thread(handler.serve)
        client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
        client.request("GET", "/")
        # A server that has not read the request yet tells nobody.
        time.sleep(0.2)
        client.close()
        self.assertTrue(left.wait(PATIENCE))
        handler.stop()
        serving()


class WSGI(Case):
    def serve(self, application: Any, threads: int = 1) -> Any:
        handler = lurcher.WSGIHandler(application, connect())
        serving = in_thread(handler.serve, threads)

        def stop() -> None:
            handler.stop()
            serving()

        self.addCleanup(stop)

    def test_an_application_answers_and_is_held_to_the_rules(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
            start_response("201 Created", [("Content-Type", "text/plain")])
            text = [environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]]
            return [" ".join(text).encode(), b" ", body]

        self.serve(validator(application), threads=2)
        answer = ask("/some%20where?q=%20", "POST", b"content")
        self.assertEqual(answer.status, 201)
        self.assertEqual(answer.body, b"POST /some where q=%20 content")

    def test_a_stream_goes_out_as_it_is_made_and_is_closed(self) -> None:
        seen = threading.Event()
        closed = threading.Event()

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            try:
                yield b"first"
                if not seen.wait(PATIENCE):
                    yield b"never seen"
                yield b"second"
            finally:
                closed.set()

        self.serve(application)
        client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)
        client.request("GET", "/")
        response = client.getresponse()
        self.assertEqual(response.read(5), b"first")
        seen.set()
        self.assertEqual(response.read(), b"second")
        client.close()
        self.assertTrue(closed.wait(PATIENCE))

    def test_a_large_answer_waits_for_its_client_in_the_only_thread(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            for _ in range(300):
                yield b"x" * 65536

        self.serve(application)
        self.assertEqual(len(ask().body), 300 * 65536)

    def test_an_application_that_raises_is_a_500_and_the_next_is_served(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/fail":
                raise ZeroDivisionError
            start_response("200 OK", [])
            return [b"fine"]

        self.serve(application)
        self.assertEqual(ask("/fail").status, 500)
        self.assertEqual(ask("/").body, b"fine")

    def test_ctrl_c_is_heard_while_a_client_takes_nothing(self) -> None:
        pieces = 0
        still = threading.Event()
        closed = threading.Event()

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            nonlocal pieces
            start_response("200 OK", [])
            try:
                while True:
                    pieces += 1
                    yield b"x" * 65536
            finally:
                closed.set()

        def interrupt() -> None:
            # It waits when no piece has been asked for in a while.
            before = 0
            while pieces == 0 or pieces != before:
                before = pieces
                time.sleep(0.5)
            still.set()
            os.kill(os.getpid(), signal.SIGINT)

        handler = lurcher.WSGIHandler(application, connect())
        with socket.create_connection((HOST, int(PORT)), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")
            interrupting = in_thread(interrupt)
            with self.assertRaises(KeyboardInterrupt):
                handler.serve()
            self.assertTrue(still.is_set())
            interrupting()
        self.assertTrue(closed.is_set())
        self.assertTrue(handler.connection.ended)

    def test_ctrl_c_in_an_application_ends_its_handler(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENCE)
            return []

        handler = lurcher.WSGIHandler(application, connect())
        asked = in_thread(ask)
        with self.assertRaises(KeyboardInterrupt):
            handler.serve()
        self.assertEqual(asked().status, 500)

    def test_what_is_no_application_is_refused(self) -> None:
        with connect() as connection, self.assertRaises(TypeError):
            lurcher.WSGIHandler(17, connection)  # type: ignore[arg-type]


if __name__ == "__main__":
    unittest.main()

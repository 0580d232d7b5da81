"""`lurcher.middleware`, called as a server calls it; and once behind one."""

from __future__ import annotations

import gzip
import unittest
import zlib
from typing import Any, Callable, Iterable
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import lurcher
from lurcher.middleware import Buffer, GZip
from support import Case, ask, connect, in_thread

TEXT = b"to be, or not to be; " * 100
Headers = list[tuple[str, str]]


def app(
    body: Iterable[bytes] | Callable[[], Iterable[bytes]] = (TEXT,),
    headers: Headers | None = None,
    status: str = "200 OK",
) -> Any:
    """An application that always answers so; text, where it does not say what it is."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        said = [("Content-Type", "text/plain")] if headers is None else list(headers)
        start_response(status, said)
        return body() if callable(body) else list(body)

    return application


class Call:
    """What an application answers to one request, piece by piece."""

    def __init__(self, application: Any, accept: str | None = "gzip", **more: str) -> None:
        environ: dict[str, Any] = {"QUERY_STRING": "", **more}
        setup_testing_defaults(environ)
        if accept is not None:
            environ["HTTP_ACCEPT_ENCODING"] = accept
        self.status = ""
        self.headers: Headers = []
        self.started = 0
        self.written: list[bytes] = []
        self.result = application(environ, self.start_response)
        self.pieces = iter(self.result)

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        if exc_info:
            if self.written:
                raise exc_info[1]
        else:
            assert not self.started
        self.started += 1
        self.status, self.headers = status, headers
        return self.written.append

    def body(self) -> bytes:
        pieces = self.written + list(self.pieces)
        self.close()
        return b"".join(pieces)

    def close(self) -> None:
        if hasattr(self.result, "close"):
            self.result.close()

    def __getitem__(self, name: str) -> str | None:
        values = [value for known, value in self.headers if known.lower() == name]
        assert len(values) < 2, f"{name}: {values}"
        return values[0] if values else None


class Closing:
    """A body that knows whether it was closed."""

    def __init__(self, pieces: Iterable[bytes], failing: bool = False) -> None:
        self.pieces = iter(pieces)
        self.failing = failing
        self.closed = 0

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.pieces)
        except StopIteration:
            if self.failing:
                raise ZeroDivisionError from None
            raise

    def close(self) -> None:
        self.closed += 1


class Compression(unittest.TestCase):
    def test_a_body_in_one_piece_gets_its_new_length(self) -> None:
        kind = ("Content-Type", "text/plain; charset=utf-8")
        headers = [kind, ("Content-Length", str(len(TEXT)))]
        call = Call(GZip(app(headers=headers)))
        body = call.body()
        self.assertEqual(gzip.decompress(body), TEXT)
        self.assertEqual(call["content-encoding"], "gzip")
        self.assertEqual(call["content-length"], str(len(body)))
        self.assertEqual(call["vary"], "Accept-Encoding")
        self.assertLess(len(body), 100)

    def test_what_is_streamed_is_seen_piece_by_piece(self) -> None:
        pieces = [b"first piece " * 3, b"", b"second piece"]
        call = Call(GZip(app(lambda: iter(pieces))))
        self.assertEqual(call.started, 0)
        unpack = zlib.decompressobj(31)
        seen = [unpack.decompress(piece) for piece in call.pieces]
        self.assertEqual(seen[:3], pieces)
        self.assertTrue(unpack.eof)
        self.assertEqual(call["content-encoding"], "gzip")
        self.assertIsNone(call["content-length"])

    def test_a_generator_that_says_its_head_late_is_understood(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", "2100")])
            yield TEXT

        call = Call(GZip(application))
        self.assertEqual(gzip.decompress(call.body()), TEXT)
        self.assertIsNone(call["content-length"])

    def test_who_does_not_want_it_gets_it_plain_and_caches_are_told(self) -> None:
        for accept in (None, "", "br", "gzip;q=0", "*;q=0", "gzip;q=0.2, identity", "gzip;q=x"):
            call = Call(GZip(app()), accept)
            self.assertEqual(call.body(), TEXT, accept)
            self.assertIsNone(call["content-encoding"])
            self.assertEqual(call["vary"], "Accept-Encoding")
        for accept in ("gzip", "br, GZIP;q=0.5", "*", "x-gzip", "identity;q=0.5, gzip"):
            self.assertEqual(Call(GZip(app()), accept)["content-encoding"], "gzip", accept)

    def test_what_is_no_use_to_compress_is_left_alone(self) -> None:
        text = ("Content-Type", "text/plain")
        cases: list[Any] = [
            app(headers=[("Content-Type", "image/png")]),
            app(headers=[]),
            app((b"short",)),
            app(lambda: iter([b"short"]), [text, ("Content-Length", "5")]),
            app(headers=[text, ("Content-Encoding", "br")]),
            app(headers=[text, ("Cache-Control", "private, no-transform")]),
            app(status="206 Partial Content", headers=[text, ("Content-Range", "bytes 0-1/2")]),
            app((), [text], "204 No Content"),
        ]
        for application in cases:
            plain = Call(application)
            packed = Call(GZip(application))
            self.assertEqual(packed.body(), plain.body())
            self.assertEqual(packed["content-encoding"], plain["content-encoding"])
            self.assertEqual(packed.status, plain.status)

    def test_kinds_are_matched_whole(self) -> None:
        for kind, wanted in (
            ("application/json", True),
            ("application/problem+json", True),
            ("image/svg+xml", True),
            ("TEXT/HTML", True),
            ("application/jsonish", False),
            ("application/zip", False),
        ):
            call = Call(GZip(app(headers=[("Content-Type", kind)])))
            self.assertEqual(call["content-encoding"] == "gzip", wanted, kind)
        only = GZip(app(), content_types=["text/html"], min_size=0, level=9)
        self.assertIsNone(Call(only)["content-encoding"])

    def test_what_held_of_the_bytes_does_not_go_with_others(self) -> None:
        headers = [
            ("Content-Type", "text/plain"),
            ("ETag", '"strong"'),
            ("Vary", "Cookie"),
            ("Accept-Ranges", "bytes"),
            ("Content-MD5", "abc"),
        ]
        call = Call(GZip(app(headers=headers)))
        self.assertEqual(call["etag"], 'W/"strong"')
        self.assertEqual(call["vary"], "Cookie, Accept-Encoding")
        self.assertIsNone(call["accept-ranges"])
        self.assertIsNone(call["content-md5"])
        plain = Call(GZip(app(headers=headers)), "br")
        self.assertEqual(plain["etag"], '"strong"')
        weak = [("Content-Type", "text/plain"), ("ETag", 'W/"weak"'), ("Vary", "*")]
        call = Call(GZip(app(headers=weak)))
        self.assertEqual((call["etag"], call["vary"]), ('W/"weak"', "*"))
        unchanged = Call(GZip(app((), [("ETag", '"strong"')], "304 Not Modified")))
        self.assertEqual((unchanged["etag"], unchanged.body()), ('W/"strong"', b""))
        self.assertIsNone(unchanged["content-encoding"])

    def test_the_answer_to_head_is_that_to_get_without_the_body(self) -> None:
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(TEXT)))]
        call = Call(GZip(app((), headers)), REQUEST_METHOD="HEAD")
        self.assertEqual(call.body(), b"")
        self.assertEqual((call["content-encoding"], call["content-length"]), ("gzip", None))

    def test_the_body_is_closed_whatever_happens(self) -> None:
        for failing in (False, True):
            for accept in ("gzip", "br"):
                body = Closing([TEXT], failing)
                call = Call(GZip(app(lambda body=body: body)), accept)  # type: ignore[misc]
                if failing:
                    with self.assertRaises(ZeroDivisionError):
                        list(call.pieces)
                call.close()
                self.assertEqual(body.closed, 1)

    def test_what_is_not_compressed_is_handed_on_as_it_is(self) -> None:
        file = Closing([b"pixels"])
        call = Call(GZip(app(lambda: file, [("Content-Type", "image/png")])))
        self.assertIs(call.result, file)

    def test_write_goes_the_same_way(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            write(b"written ")
            write(b"")
            return [b"and ", b"returned"]

        call = Call(GZip(application))
        self.assertEqual(gzip.decompress(call.body()), b"written and returned")
        call = Call(Buffer(application))
        self.assertEqual(call.body(), b"written and returned")

    def test_an_error_before_the_body_takes_the_place_of_the_head(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                import sys

                start_response("500 Sorry", [("Content-Type", "image/png")], sys.exc_info())
            return [TEXT]

        for wrap in (GZip, Buffer):
            call = Call(wrap(application))
            self.assertEqual((call.body(), call.status), (TEXT, "500 Sorry"))
            self.assertEqual(call.started, 1)

        def twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            start_response("200 OK", [])
            return []

        with self.assertRaises(RuntimeError):
            Call(GZip(twice))

    def test_an_error_after_the_head_is_the_server_s(self) -> None:
        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            write(b"some")
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                import sys

                start_response("500 Sorry", [], sys.exc_info())
            return []

        with self.assertRaises(ZeroDivisionError):
            Call(GZip(application))

    def test_it_keeps_to_the_rules_of_wsgi(self) -> None:
        inner = validator(app(lambda: iter([TEXT, b"", TEXT])))
        for wrapped in (GZip(inner), Buffer(inner), GZip(Buffer(inner))):
            call = Call(validator(wrapped))
            body = call.body()
            if call["content-encoding"]:
                body = gzip.decompress(body)
            self.assertEqual(body, TEXT + TEXT)

    def test_mistakes_are_told_at_once(self) -> None:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            pass

        class Asgi:
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                pass

        for wrap in (GZip, Buffer):
            for application in (asgi, Asgi()):
                with self.assertRaises(TypeError):
                    wrap(application)  # type: ignore[arg-type]
        with self.assertRaises(ValueError):
            GZip(app(), level=0)


class Gathering(unittest.TestCase):
    def test_pieces_become_one_with_a_length(self) -> None:
        body = Closing([b"one ", b"", b"two"])
        call = Call(Buffer(app(lambda: body)))
        self.assertEqual(list(call.pieces), [b"one two"])
        self.assertEqual(call["content-length"], "7")
        call.close()
        self.assertEqual(body.closed, 1)

    def test_a_body_that_becomes_too_long_is_streamed(self) -> None:
        call = Call(Buffer(app(lambda: iter([b"1234", b"5678", b"90", b"!"])), size=6))
        self.assertEqual(list(call.pieces), [b"12345678", b"90", b"!"])
        self.assertIsNone(call["content-length"])

    def test_events_are_not_held_back(self) -> None:
        headers = [("Content-Type", "text/event-stream; charset=utf-8")]
        call = Call(Buffer(app(lambda: iter([b"data: 1\n\n", b"data: 2\n\n"]), headers)))
        self.assertEqual(next(call.pieces), b"data: 1\n\n")
        self.assertEqual(next(call.pieces), b"data: 2\n\n")

    def test_a_length_that_was_said_and_bodies_that_are_none_stay(self) -> None:
        call = Call(Buffer(app(lambda: iter([b"a", b"b"]), [("Content-Length", "2")])))
        self.assertEqual((call.body(), call["content-length"]), (b"ab", "2"))
        call = Call(Buffer(app(lambda: iter([]), [], "304 Not Modified")))
        self.assertEqual((call.body(), call["content-length"]), (b"", None))
        call = Call(Buffer(app(lambda: iter([]), [])), REQUEST_METHOD="HEAD")
        self.assertEqual((call.body(), call["content-length"]), (b"", None))


class BehindAServer(Case):
    def test_what_is_packed_arrives(self) -> None:
        wrapped = GZip(Buffer(app(lambda: iter([TEXT, TEXT]))))
        handler = lurcher.WSGIHandler(wrapped, connect())
        serving = in_thread(handler.serve)
        answer = ask("/", "GET", None, [("Accept-Encoding", "gzip")])
        self.assertEqual(answer.headers["content-encoding"], "gzip")
        self.assertEqual(gzip.decompress(answer.body), TEXT + TEXT)
        streamed = lurcher.WSGIHandler(GZip(app(lambda: iter([TEXT, TEXT]))), handler.connection)
        handler._wsgi = streamed._wsgi
        answer = ask("/", "GET", None, [("Accept-Encoding", "gzip")])
        self.assertEqual(answer.headers["transfer-encoding"], "chunked")
        self.assertEqual(gzip.decompress(answer.body), TEXT + TEXT)
        handler.stop()
        serving()


if __name__ == "__main__":
    unittest.main()

"""Bodies above `limits.content_length`, which servers store in files or send in parts."""

from __future__ import annotations

import io
import os
import shutil
import unittest

import lurcher
from support import Case, ask, connect, in_thread, requests

STORED = os.environ["LURCHER_UPLOADS"] == "stored"
CHROOT = "/" if STORED else None
CONTENT = bytes(range(256)) * 4096


def connect_for_uploads() -> lurcher.Connection:
    return connect(chroot=CHROOT)


class Uploads(Case):
    def test_a_large_body_is_read_piece_by_piece_in_the_thread_that_receives(self) -> None:
        with connect_for_uploads() as connection:
            asked = in_thread(ask, "/", "POST", CONTENT)
            request = next(requests(connection))
            self.assertEqual((request.kind, request.body), ("request", b""))
            pieces = list(request.input)
            self.assertEqual(b"".join(pieces), CONTENT)
            self.assertGreater(len(pieces), 1)
            self.assertEqual(request.input.read(), b"")
            request.respond_http("thanks")
            self.assertEqual(asked().body, b"thanks")

    def test_a_large_body_is_a_file_to_copy_from(self) -> None:
        with connect_for_uploads() as connection:
            asked = in_thread(ask, "/", "POST", CONTENT)
            request = next(requests(connection))
            copy = io.BytesIO(request.input.read(1000))
            copy.seek(0, io.SEEK_END)
            shutil.copyfileobj(request.input, copy)
            self.assertEqual(copy.getvalue(), CONTENT)
            request.respond_http("thanks")
            asked()

    def test_a_body_above_the_limit_is_refused(self) -> None:
        with connect_for_uploads() as connection:
            asked = in_thread(ask, "/", "POST", CONTENT)
            request = next(requests(connection))
            with self.assertRaises(lurcher.BodyError):
                request.read(limit=1000)
            # Of what was not read the rest still comes.
            request.respond_http("too large", 413, close=True)
            try:
                self.assertEqual(asked().status, 413)
            except ConnectionError:
                pass

    @unittest.skipUnless(STORED, "of stored uploads")
    def test_a_stored_body_is_a_file_until_the_request_goes(self) -> None:
        with connect_for_uploads() as connection:
            asked = in_thread(ask, "/", "POST", CONTENT)
            request = next(requests(connection))
            path = request.upload_path
            assert path is not None
            self.assertEqual(path.read_bytes(), CONTENT)
            request.respond_http("thanks")
            asked()
            del request
            self.assertFalse(path.exists())
            asked = in_thread(ask, "/", "POST", CONTENT)
            request = next(requests(connection))
            path = request.keep_upload()
            request.respond_http("thanks")
            asked()
            del request
            self.assertTrue(path.exists())
            path.unlink()

    @unittest.skipUnless(STORED, "of stored uploads")
    def test_whoever_wants_to_know_is_told_of_the_beginning(self) -> None:
        with connect(chroot=CHROOT, announce_uploads=True) as connection:
            asked = in_thread(ask, "/", "POST", CONTENT)
            waiting = requests(connection)
            started, done = next(waiting), next(waiting)
            self.assertEqual((started.kind, done.kind), ("upload_started", "request"))
            self.assertEqual(started.upload_path, done.upload_path)
            done.respond_http("thanks")
            asked()

    def test_an_upload_that_a_client_invents_opens_no_file(self) -> None:
        names = ("X-Mongrel2-Upload-Start", "X-Mongrel2-Upload-Done")
        seen = []

        class Refuse(lurcher.Handler):
            """Servers may take such headers away; then it is a request like any other."""

            def process_request(self, req: lurcher.Request) -> None:
                seen.append(req.upload_path)
                req.respond_http("", 400)

        handler = Refuse(connect_for_uploads())
        serving = in_thread(handler.serve)
        answer = ask("/", "GET", None, [(name, __file__) for name in names])
        self.assertEqual(answer.status, 400)
        handler.stop()
        serving()
        self.assertIn(seen, ([], [None]))
        self.assertTrue(os.path.exists(__file__))

    def test_a_wsgi_application_reads_it(self) -> None:
        seen = []

        def application(environ, start_response):  # type: ignore[no-untyped-def]
            body = environ["wsgi.input"]
            pieces = iter(lambda: body.read(10_000), b"")
            seen.append(sum(len(piece) for piece in pieces))
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        handler = lurcher.WSGIHandler(application, connect_for_uploads())
        serving = in_thread(handler.serve)
        self.assertEqual(ask("/", "POST", CONTENT).body, b"ok")
        handler.stop()
        serving()
        self.assertEqual(seen, [len(CONTENT)])


if __name__ == "__main__":
    unittest.main()

"""A loop around a connection, to be subclassed: who says what is done with a request, says it here.

What a handler does is a matter of its methods; receiving, dealing out and stopping without losing a
request are the same for all. Nothing here is about asyncio: `lurcher.aio` has its own.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, Iterable, Mapping

from lurcher._lurcher import Connection, Request, WSGIApp

_log = logging.getLogger("lurcher")


class Handler:
    """Serves requests of a connection with its method `process_request`.

        class Hello(lurcher.Handler):
            def process_request(self, req):
                req.respond_http("hello\\n", headers={"Content-Type": "text/plain"})

        Hello("tcp://127.0.0.1:9999").serve()

    For convenience a send spec may stand in the place of the connection. The other `handle_...`
    methods are for what is no request; what they do by themselves is what most want.
    """

    #: What is made of a send spec.
    ConnectionClass: type[Connection] = Connection

    def __init__(self, connection: Connection | str) -> None:
        if isinstance(connection, str):
            connection = self.ConnectionClass(connection)
        self.connection = connection
        #: Whether `serve` is at work and nobody has called `stop`.
        self.serving = False

    def serve(self, threads: int = 1) -> None:
        """Serve requests until `stop` is called, or Ctrl-C is pressed, then close the connection.

        What servers have sent by then is served still. With several threads, the calling one among
        them, as many requests are served at once; `process_request` has to bear that.
        """
        if threads < 1:
            raise ValueError(f"at least one thread, not {threads}")
        self.serving = True
        others = [
            threading.Thread(target=self._serve, name=f"lurcher handler {number}", daemon=True)
            for number in range(2, threads + 1)
        ]
        for thread in others:
            thread.start()
        try:
            self._serve()
        finally:
            self.serving = False
            try:
                # Nothing is lost: what was sent to us is served, by the other threads too.
                self.connection.stop()
                self._serve()
                for thread in others:
                    thread.join()
                self.wait_for_completion()
            finally:
                self.connection.close()

    def _serve(self) -> None:
        for req in self.connection:
            self.handle_request(req)

    def stop(self) -> None:
        """End `serve`, from any thread or a signal handler, when all that was sent is served."""
        self.serving = False
        self.connection.stop()

    def serve_one_request(self, timeout: float | None = None) -> Request | None:
        """Receive one request and serve it, for those who have a loop of their own.

        Returns what was served; None when `timeout` seconds have passed, or at the end.
        """
        req = self.connection.recv(timeout=timeout)
        if req is not None:
            self.handle_request(req)
        return req

    def handle_request(self, req: Request) -> None:
        """Give what was received to the method for it, and what that raises to `handle_error`.

        Subclasses that serve requests elsewhere, in a pool of threads for one, override this, and
        `wait_for_completion` with it.
        """
        process = getattr(self, _METHODS.get(req.kind, "handle_other"))
        try:
            process(req)
        except Exception as error:
            self.handle_error(req, error)

    def process_request(self, req: Request) -> None:
        """Answer an HTTP request: what a handler is for. By itself it answers 404."""
        req.respond_http("not found\n", 404, {"Content-Type": "text/plain"})

    def handle_disconnect(self, req: Request) -> None:
        """The client is gone: whoever keeps something for it forgets it here."""

    def handle_handshake(self, req: Request) -> None:
        """A client wants to speak WebSocket: `req.accept()`, or any other response; 404 else."""
        req.respond_http("no WebSocket here\n", 404, {"Content-Type": "text/plain"}, close=True)

    def handle_frame(self, req: Request) -> None:
        """A WebSocket message or control frame. By itself it answers pings and closes alone."""
        req.answer_control()

    def handle_message(self, req: Request) -> None:
        """A message of a JSON or XML socket."""

    def handle_upload_started(self, req: Request) -> None:
        """A server has begun to store a large body, for connections that want to know."""

    def handle_other(self, req: Request) -> None:
        """Anything else."""

    def handle_error(self, req: Request, error: Exception) -> None:
        """A method has raised: the error is logged, and a client that still waits is answered.

        One that has got something already is cut off, so that it does not take it for the whole.
        """
        _log.error("%s %s: raised while it was handled", req.method, req.path, exc_info=error)
        if req.kind in ("request", "handshake") and not req.answered:
            headers = {"Content-Type": "text/plain"}
            req.respond_http("internal server error\n", 500, headers, close=True)
        elif req.kind != "disconnect":
            req.client.cancel()

    def wait_for_completion(self) -> None:
        """Wait for requests that are served elsewhere, before the connection is closed."""


#: Which method is for which kind of request.
_METHODS: Mapping[str, str] = {
    "request": "process_request",
    "disconnect": "handle_disconnect",
    "handshake": "handle_handshake",
    "frame": "handle_frame",
    "message": "handle_message",
    "upload_started": "handle_upload_started",
}


class WSGIHandler(Handler):
    """Serves requests with a WSGI application, in the threads that call `serve`.

        lurcher.WSGIHandler(application, "tcp://127.0.0.1:9999").serve(threads=8)

    `lurcher run module:application` does the same in processes that are watched; this is for
    programs that have the application at hand.
    """

    def __init__(
        self,
        application: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]],
        connection: Connection | str,
    ) -> None:
        super().__init__(connection)
        self.application = application
        self._wsgi = WSGIApp(application)

    def process_request(self, req: Request) -> None:
        """Call the application, and send what it answers; what it raises is logged and a 500."""
        self._wsgi(req)

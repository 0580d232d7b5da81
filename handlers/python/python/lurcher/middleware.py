"""Middleware for WSGI applications: compression (`GZip`) and bodies in one piece (`Buffer`).

    lurcher run shop:application tcp://127.0.0.1:9999 --middleware lurcher.middleware:GZip

or, where the application is made, `application = GZip(application, level=9)`. Both keep to what WSGI
asks of middleware: what the application streams is streamed on, piece by piece and without delay
(`Buffer` says where it does not), and its `close()` is called whatever happens. Neither is for ASGI
applications, which have their own.
"""

from __future__ import annotations

import inspect
import zlib
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, Optional, Protocol, Union

__all__ = ["Buffer", "BufferMiddleware", "GZip", "GZipMiddleware"]

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
ExcInfo = Union[
    tuple[type[BaseException], BaseException, TracebackType], tuple[None, None, None], None
]
Write = Callable[[bytes], object]


class StartResponse(Protocol):
    """What an application says its status and headers with."""

    def __call__(self, status: str, headers: Headers, exc_info: ExcInfo = None, /) -> Write:
        """Take note of the head of the response."""
        ...


Application = Callable[[Environ, Any], Iterable[bytes]]

#: What is worth compressing: the rest has been compressed by whoever made it.
COMPRESSIBLE = (
    "text/*",
    "application/javascript",
    "application/json",
    "application/wasm",
    "application/xml",
    "application/*+json",
    "application/*+xml",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/svg+xml",
)

#: Shorter bodies get longer when they are compressed, or shorter by less than a packet; in bytes.
MIN_SIZE = 500

#: What `Buffer` waits for at most, in bytes.
BUFFER_SIZE = 256 * 1024

#: `zlib.compressobj`: the largest window, in the format of gzip.
GZIP_WINDOW = 16 + zlib.MAX_WBITS


class GZip:
    """Compresses what the application answers, for clients that want it so.

    Left alone is what is no use or no right to compress: other types than `content_types` (`*` for
    any part of a name), less than `min_size` bytes, what is encoded already, parts of something
    (206), and what says `Cache-Control: no-transform`. `level` is that of zlib, from 1, fast, to 9.

    A response in one piece gets the `Content-Length` of what it has become. Of one that is streamed
    each piece is compressed and flushed, so that the client sees it when the application meant it
    to; small pieces compress badly, and `Buffer` inside of this makes large ones of them. A strong
    `ETag` becomes a weak one, since bytes differ; `Vary` tells caches.
    """

    def __init__(
        self,
        application: Application,
        *,
        level: int = 6,
        min_size: int = MIN_SIZE,
        content_types: Iterable[str] = COMPRESSIBLE,
    ) -> None:
        self.application = _wsgi(application)
        if not 1 <= level <= 9:
            raise ValueError(f"a level is from 1 to 9, not {level}")
        self.level = level
        self.min_size = min_size
        self.content_types = tuple(kind.lower() for kind in content_types)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request with the application's answer."""
        head = _Head(start_response)
        result = self.application(environ, _starter(head, lambda: self._compressor(environ, head)))
        if head.status is not None and head.write is None and not self._wanted(environ, head):
            # As it is, so that the server knows a file when it sees one.
            head.send()
            return result
        if isinstance(result, (list, tuple)) and head.status is not None and head.write is None:
            return self._whole(environ, head, b"".join(result))
        return _Stream(result, head, lambda: self._compressor(environ, head))

    def _whole(self, environ: Environ, head: _Head, body: bytes) -> list[bytes]:
        is_head = environ.get("REQUEST_METHOD") == "HEAD"
        if is_head or len(body) >= self.min_size:
            compressor = zlib.compressobj(self.level, zlib.DEFLATED, GZIP_WINDOW)
            self._encode(head)
            if not is_head:
                body = compressor.compress(body) + compressor.flush()
                head.headers.append(("Content-Length", str(len(body))))
        head.send()
        return [body]

    def _compressor(self, environ: Environ, head: _Head) -> _Filter:
        """What becomes of a body that is streamed, when its head is known."""
        if not self._wanted(environ, head):
            return _Filter()
        self._encode(head)
        return _Compressor(zlib.compressobj(self.level, zlib.DEFLATED, GZIP_WINDOW))

    def _wanted(self, environ: Environ, head: _Head) -> bool:
        """Whether to compress; notes for caches that this depends on the client."""
        if not self._possible(head):
            return False
        vary = head.get("vary")
        if vary.strip() != "*" and "accept-encoding" not in _words(vary):
            head.remove("vary")
            head.headers.append(("Vary", f"{vary}, Accept-Encoding" if vary else "Accept-Encoding"))
        if not _accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
            return False
        if head.code == 304:
            # It stands for what the client was sent before, under the name that it had.
            head.weaken()
            return False
        return True

    def _possible(self, head: _Head) -> bool:
        if head.code < 200 or head.code in (204, 206) or head.get("content-range"):
            return False
        if head.get("content-encoding").strip().lower() not in ("", "identity"):
            return False
        if "no-transform" in _words(head.get("cache-control")):
            return False
        length = head.get("content-length")
        if length.isdigit() and int(length) < self.min_size and head.code != 304:
            return False
        kind = head.get("content-type").partition(";")[0].strip().lower()
        # A 304 does without.
        return (head.code == 304 and not kind) or any(
            _matches(kind, wanted) for wanted in self.content_types
        )

    @staticmethod
    def _encode(head: _Head) -> None:
        """Say in the head that the body is compressed, and nothing that holds of the other one."""
        for name in (
            "accept-ranges",
            "content-digest",
            "content-encoding",
            "content-length",
            "content-md5",
            "digest",
        ):
            head.remove(name)
        head.weaken()
        head.headers.append(("Content-Encoding", "gzip"))


class Buffer:
    """Gathers a body that comes in pieces, up to `size` bytes, and sends it in one with its length.

    A body that becomes longer is sent as far as it has been gathered, and streamed from there on. So
    pieces are delayed, which WSGI would not have: that is the trade. Pieces that are to be seen as
    they come belong to `text/event-stream`, which is never touched, or to an application that is
    not wrapped in this.
    """

    def __init__(self, application: Application, *, size: int = BUFFER_SIZE) -> None:
        self.application = _wsgi(application)
        self.size = size

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request with the application's answer."""
        if environ.get("REQUEST_METHOD") == "HEAD":
            return self.application(environ, start_response)
        head = _Head(start_response)
        result = self.application(environ, _starter(head, _Filter))
        if head.write is not None or (isinstance(result, (list, tuple)) and len(result) == 1):
            head.send()
            return result
        return _Gathered(result, head, self.size)


#: As m2wsgi calls them.
GZipMiddleware = GZip
BufferMiddleware = Buffer


class _Head:
    """Status and headers that an application has said and that were not passed on yet."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self.status: Optional[str] = None
        self.headers: Headers = []
        self.exc_info: ExcInfo = None
        #: The server's, once they were passed on.
        self.write: Optional[Write] = None
        #: What becomes of the body, once an application has begun to `write` it.
        self.filter = _Filter()

    @property
    def code(self) -> int:
        digits = (self.status or "")[:3]
        return int(digits) if digits.isdigit() else 0

    def get(self, name: str) -> str:
        """The values of a header, as one."""
        return ", ".join(value for known, value in self.headers if known.lower() == name)

    def remove(self, name: str) -> None:
        self.headers = [pair for pair in self.headers if pair[0].lower() != name]

    def weaken(self) -> None:
        """Have the ETag say that what it names is the same, but perhaps in other bytes."""
        self.headers = [
            (name, f"W/{value}" if name.lower() == "etag" and value.startswith('"') else value)
            for name, value in self.headers
        ]

    def send(self) -> Write:
        """Pass them on, once."""
        if self.write is None:
            if self.status is None:
                raise AssertionError("a body before start_response was called")
            try:
                if self.exc_info is not None:
                    self.write = self._start_response(self.status, self.headers, self.exc_info)
                else:
                    self.write = self._start_response(self.status, self.headers)
            finally:
                # It would keep frames that keep this.
                self.exc_info = None
        return self.write

    def again(self, status: str, headers: Headers, exc_info: ExcInfo) -> Write:
        """Another head when one was passed on: the server knows what is to be said of that."""
        return self._start_response(status, headers, exc_info)


class _Filter:
    """What becomes of the pieces of a body: by itself nothing."""

    def feed(self, piece: bytes) -> bytes:
        return piece

    def end(self) -> bytes:
        return b""


class _Compressor(_Filter):
    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def feed(self, piece: bytes) -> bytes:
        # So that the client can make all of the piece out of what it has got.
        packed: bytes = self._compressor.compress(piece)
        rest: bytes = self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return packed + rest

    def end(self) -> bytes:
        rest: bytes = self._compressor.flush()
        return rest


def _starter(head: _Head, make_filter: Callable[[], _Filter]) -> StartResponse:
    """The start_response that an application is given: it only takes note.

    The `write` that it returns is for applications of an older time. It cannot be taken back, so it
    passes the head on, and the body is streamed from there.
    """

    def write(piece: bytes) -> object:
        if head.write is None:
            # The rest of the body goes the same way.
            head.filter = make_filter()
        send = head.send()
        return send(head.filter.feed(piece)) if piece else None

    def start_response(status: str, headers: Headers, exc_info: ExcInfo = None, /) -> Write:
        if head.write is not None:
            return head.again(status, headers, exc_info)
        if head.status is not None and exc_info is None:
            raise RuntimeError("start_response was called twice without exc_info")
        head.status, head.headers, head.exc_info = status, list(headers), exc_info
        return write

    return start_response


class _Stream:
    """A body piece by piece. Its head is passed on with the first, when it is certain."""

    def __init__(
        self, result: Iterable[bytes], head: _Head, make_filter: Callable[[], _Filter]
    ) -> None:
        self._result = result
        self._pieces = iter(result)
        self._head = head
        self._make_filter = make_filter
        self._filter: Optional[_Filter] = None
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._ended = True
            return self._begun().end()
        if not piece:
            return piece
        return self._begun().feed(piece)

    def _begun(self) -> _Filter:
        if self._filter is None:
            if self._head.write is not None:
                # By `write`.
                self._filter = self._head.filter
            else:
                self._filter = self._make_filter()
                self._head.send()
        return self._filter

    def close(self) -> None:
        close = getattr(self._result, "close", None)
        if close is not None:
            close()


class _Gathered:
    """A body that is gathered before it is sent, see `Buffer`."""

    def __init__(self, result: Iterable[bytes], head: _Head, size: int) -> None:
        self._result = result
        self._pieces = iter(result)
        self._head = head
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        gathered: list[bytes] = []
        length = 0
        for piece in self._pieces:
            if self._is_stream():
                self._head.send()
                yield piece
                break
            gathered.append(piece)
            length += len(piece)
            if length > self._size:
                self._head.send()
                yield b"".join(gathered)
                break
        else:
            if not self._is_stream():
                bodiless = self._head.code < 200 or self._head.code in (204, 304)
                if not bodiless and not self._head.get("content-length"):
                    self._head.headers.append(("Content-Length", str(length)))
            self._head.send()
            yield b"".join(gathered)
            return
        yield from self._pieces

    def _is_stream(self) -> bool:
        kind = self._head.get("content-type").partition(";")[0]
        return self._head.write is not None or kind.strip().lower() == "text/event-stream"

    def close(self) -> None:
        close = getattr(self._result, "close", None)
        if close is not None:
            close()


def _wsgi(application: Application) -> Application:
    call = application if inspect.isroutine(application) else type(application).__call__
    if inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(call):
        raise TypeError(f"this is for WSGI, and {application!r} speaks ASGI")
    return application


def _words(value: str) -> list[str]:
    return [word.strip().lower() for word in value.split(",")]


def _matches(kind: str, wanted: str) -> bool:
    before, star, behind = wanted.partition("*")
    if not star:
        return kind == wanted
    return (
        len(kind) > len(before) + len(behind) and kind.startswith(before) and kind.endswith(behind)
    )


def _accepts_gzip(value: str) -> bool:
    """Whether a client would have it compressed (RFC 9110 12.5.3), and not rather as it is."""
    weights: dict[str, float] = {}
    for member in value.split(","):
        coding, *parameters = (part.strip().lower() for part in member.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, number = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(number)
                except ValueError:
                    weight = 0.0
        weights[coding] = weight
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)

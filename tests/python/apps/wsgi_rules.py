"""What PEP 3333 asks of a server, one small application for each path: what may be said, what must not, and what is made of either."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from typing import Any, Callable, Iterable, Iterator

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]

TEXT = [("Content-Type", "text/plain")]
OK = ("200 OK", TEXT)
LINE = b"the same line again and again\n"

#: What was done, in that order, for a later request to see.
DONE: list[str] = []

#: Heads that are none.
HEADS: dict[str, tuple[Any, ...]] = {
    "a status of bytes": (b"200 OK", []),
    "no digits": ("Fine", []),
    "a letter in the code": ("20x Fine", []),
    "four digits": ("2000 Fine", []),
    "below any code": ("099 Fine", []),
    "a code alone": ("200", []),
    "no space": ("200Fine", []),
    "a line end in the reason": ("200 Fine\r\nX-More: yes", []),
    "headers in a tuple": ("200 Fine", (("X-A", "b"),)),
    "headers in a dict": ("200 Fine", {"X-A": "b"}),
    "headers in a str": ("200 Fine", "X-A: b"),
    "no headers": ("200 Fine", None),
    "a header in a str": ("200 Fine", ["X-A: b"]),
    "a header in a list": ("200 Fine", [["X-A", "b"]]),
    "one of one": ("200 Fine", [("X-A",)]),
    "one of three": ("200 Fine", [("X-A", "b", "c")]),
    "a name of bytes": ("200 Fine", [(b"X-A", "b")]),
    "a number for a value": ("200 Fine", [("X-A", 1)]),
    "an empty name": ("200 Fine", [("", "b")]),
    "a space in a name": ("200 Fine", [("X A", "b")]),
    "a tab in a name": ("200 Fine", [("X\tA", "b")]),
    "a colon in a name": ("200 Fine", [("X-A:", "b")]),
    "a name beyond ASCII": ("200 Fine", [("X-\xe9", "b")]),
    "a line end in a value": ("200 Fine", [("X-A", "b\r\nX-B: c")]),
    "half a line end": ("200 Fine", [("X-A", "b\nc")]),
    "a zero in a value": ("200 Fine", [("X-A", "b\0")]),
    "a value beyond Latin-1": ("200 Fine", [("X-A", "5 \u20ac")]),
    "a very long value": ("200 Fine", [("X-A", "b" * 1000 + "\n")]),
    "what is the server's": ("200 Fine", [("Transfer-Encoding", "chunked")]),
    "its connection": ("200 Fine", [("Connection", "upgrade")]),
    "a length of words": ("200 Fine", [("Content-Length", "some")]),
    "a length below zero": ("200 Fine", [("Content-Length", "-1")]),
    "two lengths": ("200 Fine", [("Content-Length", "1"), ("Content-Length", "2")]),
    "a text for an exception": ("200 Fine", [], "an error"),
    "a list for an exception": ("200 Fine", [], [ValueError, ValueError(), None]),
    "half an exception": ("200 Fine", [], (ValueError, ValueError())),
}


def told(call: Callable[[], Any]) -> list[Any] | None:
    """What a call has raised, and what was noted beside."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "__notes__", [])]
    return None


def raised(what: str) -> Any:
    """What `sys.exc_info()` has of an error."""
    try:
        raise RuntimeError(what)
    except RuntimeError:
        return sys.exc_info()


def heads(environ: Environ, start: Start) -> Iterable[bytes]:
    found = {case: told(lambda: start(*arguments)) for case, arguments in HEADS.items()}
    found["notes"] = sys.version_info >= (3, 11)
    start(*OK)
    return [json.dumps(found).encode()]


def twice(environ: Environ, start: Start) -> Iterable[bytes]:
    """Nothing has left, and still there is one head only without a reason for another."""
    start("202 First", TEXT)
    return [json.dumps(told(lambda: start("203 Second", TEXT))).encode()]


def twice_late(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start("202 First", TEXT)
    write(b"begun ")
    write(json.dumps([
        told(lambda: start("203 Second", TEXT)),
        told(lambda: start("203 Second", TEXT, "an error")),
        told(lambda: start("203 Second", TEXT, (None, None, None))),
        told(lambda: start("203 Second", TEXT, raised("what went wrong"))),
    ]).encode())  # fmt: skip
    return [b" ended"]


def replaced(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 First", [*TEXT, ("X-First", "1"), ("Content-Length", "1")])
    write = start("418 Second", [*TEXT, ("X-Second", "2")], raised("in between"))
    write(b"the second")
    return []


def writes(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start(*OK)
    for piece in (b"one ", b"", b"two "):
        write(piece)
    return (b"three ", b"", b"four")


def sized(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("Content-Length", "10")])
    return (piece for piece in (b"ten ", b"bytes!"))


def tuple_(environ: Environ, start: Start) -> Iterable[bytes]:
    start(*OK)
    return (b"of ", b"two")


def nothing(environ: Environ, start: Start) -> Iterable[bytes]:
    start(*OK)
    return {"list": [], "tuple": (), "empty": [b"", b""], "generator": (x for x in ())}[
        environ["QUERY_STRING"]
    ]


def many(environ: Environ, start: Start) -> Iterable[bytes]:
    start(*OK)
    return (b"%d," % number for number in range(300))


class Noted:
    """Produces some pieces, and notes its end."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def __iter__(self) -> Noted:
        return self

    def __next__(self) -> bytes:
        if not self.pieces:
            raise StopIteration
        return self.pieces.pop(0)

    def close(self) -> None:
        DONE.append("closed")


def noted(environ: Environ, start: Start) -> Iterable[bytes]:
    start(*OK)
    return Noted(b"a ", b"b")


def at_last(environ: Environ, start: Start) -> Iterator[bytes]:
    """A generator that ends, or not, and does what comes last either way."""
    how = environ["QUERY_STRING"]
    start(*OK)
    try:
        if how == "raises first":
            raise ValueError("before the first piece")
        yield b"begun"
        if how == "raises":
            raise ValueError("behind the first piece")
        if how == "no bytes":
            yield 12345  # type: ignore[misc]
        yield b" ended"
    except GeneratorExit:
        DONE.append("left")
        raise
    finally:
        DONE.append(how)


def no_bytes(environ: Environ, start: Start) -> Iterable[Any]:
    start(*OK)
    return {"first": ["text"], "behind nothing": [b"", None], "second": [b"begun", 12345, b"never"]}[
        environ["QUERY_STRING"]
    ]


def fields(environ: Environ, start: Start) -> Iterable[bytes]:
    several = [(f"X-Field-{number}", f"value {number}") for number in range(1, 31)]
    again = [("X-Again", "one"), ("X-Other", ""), ("x-again", "two, three")]
    start("401 Who Are You", [*several, ("WWW-Authenticate", 'Basic realm="here"'), *again])
    return [b"nobody"]


def bad_length(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", [("Content-Length", "some")])
    return [b"never"]


def method(environ: Environ, start: Start) -> Iterable[bytes]:
    said = environ["REQUEST_METHOD"]
    start("200 OK", [*TEXT, ("Content-Length", str(len(said))), ("X-Method", said)])
    return [said.encode()]


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    """The body, read in blocks."""
    blocks = list(iter(lambda: environ["wsgi.input"].read(8192), b""))
    start("200 OK", [("Content-Type", "application/octet-stream")])
    return blocks


#: Each as the standard library's files do it, which is what is compared.
WAYS: dict[str, Callable[[Any], Any]] = {
    "read": lambda body: [body.read(), body.read()],
    "read None": lambda body: [body.read(None), body.read(3)],
    "read -1": lambda body: body.read(-1),
    "two parts": lambda body: [body.read(10), body.read()],
    "by seven": lambda body: list(iter(lambda: body.read(7), b"")),
    "nothing first": lambda body: [body.read(0), body.readline(0), body.read()],
    "readline": lambda body: list(iter(body.readline, b"")),
    "readline of five": lambda body: [body.readline(5), body.readline(5), body.read()],
    "readlines": lambda body: [body.readlines(), body.readlines()],
    "a hint": lambda body: [body.readlines(1), body.readlines(4), body.readlines(0)],
    "iteration": lambda body: [list(body), list(body)],
    "iteration and more": lambda body: [next(iter(body), None), body.read(2), body.readline()],
}


def ways(environ: Environ, start: Start) -> Iterable[bytes]:
    way = WAYS[environ["HTTP_X_WAY"]]
    found = way(environ["wsgi.input"])
    start(*OK)
    return [repr(found).encode()]


def expected(environ: Environ, start: Start) -> Iterable[bytes]:
    """What a file with the same content would have given; it is in a header, in hexadecimal."""
    way = WAYS[environ["HTTP_X_WAY"]]
    start(*OK)
    return [repr(way(io.BytesIO(bytes.fromhex(environ["HTTP_X_BODY"])))).encode()]


def file(environ: Environ, start: Start) -> Iterable[bytes]:
    """A hundred lines, or less of them, with the length said before."""
    form, length = environ["QUERY_STRING"].split("=")
    opened: Any = io.BytesIO() if form == "memory" else tempfile.TemporaryFile()
    opened.write(LINE * 100)
    opened.seek(len(LINE) if form == "part" else 0)
    start("200 OK", [*TEXT, ("Content-Length", length)])
    return environ["wsgi.file_wrapper"](opened)


def done(environ: Environ, start: Start) -> Iterable[bytes]:
    found = json.dumps(DONE).encode()
    DONE.clear()
    start(*OK)
    return [found]


PATHS = {
    f"/{app.__name__.rstrip('_')}": app
    for app in (
        heads, twice, twice_late, replaced, writes, sized, tuple_, nothing, many, noted, at_last,
        no_bytes, fields, bad_length, method, echo, ways, expected, file, done,
    )  # fmt: skip
}


def application(environ: Environ, start: Start) -> Iterable[bytes]:
    environ["QUERY_STRING"] = environ["QUERY_STRING"].replace("+", " ")
    return PATHS[environ["PATH_INFO"]](environ, start)

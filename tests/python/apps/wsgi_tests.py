"""What the tests of WSGI ask for: one small application for each path, all of them behind `wsgiref.validate`.

`application` is checked, `bare` is not: it does what no application may.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import threading
from typing import Any, Callable, Iterable, Iterator
from wsgiref.validate import validator

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]

TEXT = [("Content-Type", "text/plain")]

#: Lets what waits go on.
GATE = threading.Event()
#: What has happened, for other requests to see.
SEEN: dict[str, int] = {"closed": 0, "produced": 0}
#: Four that must be here at once.
TOGETHER = threading.Barrier(4)


def environ_of(environ: Environ, start: Start) -> Iterable[bytes]:
    """The environ itself, as far as JSON can say it."""
    assert type(environ) is dict
    plain = (str, bool, int)
    said = {k: v for k, v in environ.items() if isinstance(v, plain)}
    said["wsgi.version"] = list(environ["wsgi.version"])
    start("200 OK", TEXT)
    return [json.dumps(said).encode()]


def pieces(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return [b"a", b"", b"bc", b"\n"]


def gated(environ: Environ, start: Start) -> Iterator[bytes]:
    """Two pieces, and a wait between them."""
    GATE.clear()
    start("200 OK", TEXT)
    yield b"first\n"
    GATE.wait(20)
    yield b"second\n"


def opens(environ: Environ, start: Start) -> Iterable[bytes]:
    GATE.set()
    start("200 OK", TEXT)
    return [b"open\n"]


def written(environ: Environ, start: Start) -> Iterable[bytes]:
    write = start("200 OK", TEXT)
    write(b"one\n")
    write(b"two\n")
    return [b"three\n"]


def late(environ: Environ, start: Start) -> Iterator[bytes]:
    """Begins its response when the first piece is asked for."""
    start("202 Taken", TEXT)
    yield b"late\n"


def reads(environ: Environ, start: Start) -> Iterable[bytes]:
    body = environ["wsgi.input"]
    found = [
        body.read(2),
        body.readline(3),
        body.readline(-1),
        body.readlines(1),
        next(iter(body)),
        body.read(0),
        body.read(),
        body.read(),
        body.read(5),
        body.readline(-1),
        body.readlines(),
    ]
    start("200 OK", TEXT)
    return [repr(found).encode()]


def counts(environ: Environ, start: Start) -> Iterable[bytes]:
    """Reads a body piece by piece."""
    total, sum_ = 0, 0
    while piece := environ["wsgi.input"].read(100_000):
        total += len(piece)
        sum_ += sum(piece)
    start("200 OK", TEXT)
    said = environ.get("CONTENT_LENGTH")
    return [f"{total} {sum_} {said}\n".encode()]


def loses(environ: Environ, start: Start) -> Iterable[bytes]:
    """Reads a body that does not come to its end."""
    try:
        while environ["wsgi.input"].read(10_000):
            SEEN["reading"] = 1
    except OSError:
        SEEN["lost"] = SEEN.get("lost", 0) + 1
        raise
    start("200 OK", TEXT)
    return [b"all\n"]


def ignores(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return [b"not read\n"]


class Closing:
    """An iterable that tells when it is closed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces

    def close(self) -> None:
        SEEN["closed"] += 1


def endless(environ: Environ, start: Start) -> Iterable[bytes]:
    def pieces() -> Iterator[bytes]:
        while True:
            SEEN["produced"] += 1
            yield b"x" * 65_536

    start("200 OK", TEXT)
    return Closing(pieces())


def closes(environ: Environ, start: Start) -> Iterable[bytes]:
    """Fails in the middle, and is closed all the same."""

    def pieces() -> Iterator[bytes]:
        yield b"part\n"
        raise ValueError("in the middle")

    start("200 OK", TEXT)
    return Closing(pieces())


def seen(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return [json.dumps(SEEN).encode()]


def raises(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    raise KeyError("before the body")


def leaves(environ: Environ, start: Start) -> Iterable[bytes]:
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[environ["QUERY_STRING"]]("no")


def too_late(environ: Environ, start: Start) -> Iterator[bytes]:
    """Wants another head when the first has left."""
    start("200 OK", TEXT)
    yield b"begun\n"
    try:
        raise RuntimeError("what it was about")
    except RuntimeError as error:
        start("500 Sorry", TEXT, (type(error), error, error.__traceback__))
    yield b"never\n"


def no_start(environ: Environ, start: Start) -> Iterable[bytes]:
    return [b"headless"]


def no_bytes(environ: Environ, start: Start) -> Iterable[Any]:
    start("200 OK", TEXT)
    return ["text"]


def long_body(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT + [("Content-Length", "3")])
    return [b"abc", b"def"] if environ["QUERY_STRING"] else iter([b"ab", b"cd", b"ef"])


def short_body(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT + [("Content-Length", "30")])
    return [b"abc"] if environ["QUERY_STRING"] else iter([b"a", b"bc"])


def status(environ: Environ, start: Start) -> Iterable[bytes]:
    code = environ["QUERY_STRING"]
    headers = [] if code in ("204", "304") else TEXT
    start(f"{code} Some Reason", headers)
    return [] if code in ("204", "304") else [b"a body\n"]


def cookies(environ: Environ, start: Start) -> Iterable[bytes]:
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Latin", "\xe9"), *TEXT]
    start("200 OK", headers + [("Connection", "keep-alive")])
    return [b""]


def file(environ: Environ, start: Start) -> Iterable[bytes]:
    """A file of 1,000,000 bytes by the server's wrapper, in the form that is asked for."""
    content = b"0123456789" * 100_000
    form = environ["QUERY_STRING"]
    where = environ.get("HTTP_X_FOLDER")
    if form == "memory":
        opened: Any = io.BytesIO(content)
    elif form == "packed":
        # It has a descriptor too, and that of something else.
        packed = tempfile.TemporaryFile()
        packed.write(gzip.compress(content))
        packed.seek(0)
        opened = gzip.GzipFile(fileobj=packed)
    else:
        opened = tempfile.NamedTemporaryFile(dir=where, delete=form != "named")
        opened.write(content)
        opened.flush()
        opened.seek(10 if form == "offset" else 0)
    start("200 OK", [("Content-Type", "text/plain")])
    return environ["wsgi.file_wrapper"](opened, 4096)


def large(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", TEXT)
    return [b"y" * 3_000_000, b"z"]


def meets(environ: Environ, start: Start) -> Iterable[bytes]:
    """Answers when four are here."""
    TOGETHER.wait(20)
    start("200 OK", TEXT)
    return [threading.current_thread().name.encode()]


def ordered(environ: Environ, start: Start) -> Iterable[bytes]:
    """The first of some requests takes longer than the others."""
    if environ["QUERY_STRING"] == "1":
        GATE.clear()
        GATE.wait(0.2)
    start("200 OK", TEXT)
    return [environ["QUERY_STRING"].encode()]


PATHS: dict[str, Callable[[Environ, Start], Iterable[bytes]]] = {
    f"/{app.__name__}": app
    for app in (
        pieces, gated, opens, written, late, reads, counts, loses, ignores, endless, closes, seen,
        raises, leaves, too_late, no_start, no_bytes, long_body, short_body, status,
        cookies, file, large, meets, ordered,
    )  # fmt: skip
}


def bare(environ: Environ, start: Start) -> Iterable[bytes]:
    return PATHS.get(environ["PATH_INFO"], environ_of)(environ, start)


application = validator(bare)

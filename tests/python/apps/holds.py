"""Applications that keep their thread, or their loop, to themselves until a file is there."""

import os
import time
from urllib.parse import unquote


def answer(path, query):
    """What is said, when it may be said."""
    if path == "/hold":
        while not os.path.exists(unquote(query)):
            time.sleep(0.01)
    return f"{path}\n".encode()


def application(environ, start_response):
    body = answer(environ["PATH_INFO"], environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    body = answer(scope["path"], scope["query_string"].decode())
    head = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})

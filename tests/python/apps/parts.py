"""Several applications of one process: each says who it is, and some speak to each other."""

import json
import os
import sys

from lurcher import internal, signals

heard = []


def respond(start_response, text, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain")])
    return [text.encode("latin-1")]


def place(name):
    def application(environ, start_response):
        script, path = environ["SCRIPT_NAME"], environ["PATH_INFO"]
        return respond(start_response, f"{name} {script}|{path}")

    return application


whole = place("whole")
blog = place("blog")
old = place("old")
shop = place("shop")
wild = place("wild")


def process(environ, start_response):
    """Which process this is, and whose child."""
    if environ["PATH_INFO"].endswith("/exit"):
        os._exit(3)
    return respond(start_response, f"{os.getpid()} {os.getppid()} {LOADED}")


LOADED = os.getpid()


def listener(environ, start_response):
    return respond(start_response, " ".join(heard))


def fails(**data):
    raise RuntimeError("a subscriber that fails")


signals.subscribe("paid", fails)
signals.subscribe("paid", lambda number: heard.append(str(number)))


def speaker(environ, start_response):
    count = signals.publish("paid", number=len(heard) + 17)
    return respond(start_response, str(count))


def asks(environ, start_response):
    """Asks the application whose path is in the query."""
    try:
        path = environ["QUERY_STRING"].replace("EURO", "\u20ac")
        host = environ.get("HTTP_X_HOST")
        found = internal.request("POST", path, {"X-Word": "w"}, b"body", host)
    except internal.NoApplication:
        return respond(start_response, "nobody")
    return respond(start_response, f"{found.status} {found.header('content-type')} {found.text}")


async def asks_async(scope, receive, send):
    if scope["type"] != "http":
        return
    found = await internal.arequest("POST", scope["query_string"].decode(), [], b"body")
    text = f"{found.status} {found.text}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


def told(environ, start_response):
    body = environ["wsgi.input"].read().decode()
    word = environ.get("HTTP_X_WORD", "")
    text = f"wsgi {environ['SCRIPT_NAME']}|{environ['PATH_INFO']}|{environ['QUERY_STRING']} {body} {word}"
    return respond(start_response, text, "201 Created")


async def told_async(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["word"] = "lasting"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    message = await receive()
    if scope["query_string"]:
        told = {**scope["state"], "server": scope["server"], "query": scope["query_string"].decode()}
        message["body"] = f"{scope['raw_path'].decode()} {json.dumps(told)}".encode()
    text = f"asgi {scope['root_path']}|{scope['path']} ".encode() + message["body"]
    headers = [(b"content-type", b"text/x-told")]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def make(word="made"):
    return place(word)


class outer:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        return [b"outer("] + list(self.app(environ, start_response)) + [b")"]


def inner(app):
    def application(environ, start_response):
        return [b"inner("] + list(app(environ, start_response)) + [b")"]

    return application


def logs(environ, start_response):
    import logging

    logging.getLogger("parts").info("a word of the application")
    return respond(start_response, "logged")


if os.environ.get("PARTS_FAIL"):
    print("parts is about to fail", file=sys.stderr)
    raise ValueError("parts does not load")

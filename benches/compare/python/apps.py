"""What all servers run: a hello by itself in WSGI and in ASGI, and a route of Flask and of FastAPI, by environment where they are wanted."""

import os

BODY = b"hello world\n"
WSGI_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
ASGI_HEADERS = [(name.lower().encode(), value.encode()) for name, value in WSGI_HEADERS]


def wsgi(environ, start_response):
    start_response("200 OK", list(WSGI_HEADERS))
    return [BODY]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": ASGI_HEADERS})
        await send({"type": "http.response.body", "body": BODY})


match os.environ.get("BENCH_FRAMEWORK"):
    case "flask":
        from flask import Flask, request

        flask = Flask(__name__)

        @flask.get("/item/<int:number>")
        def flask_item(number: int) -> dict:
            return {"item": number, "q": request.args.get("q")}

    case "fastapi":
        from fastapi import FastAPI

        fastapi = FastAPI()

        @fastapi.get("/item/{number}")
        async def fastapi_item(number: int, q: str | None = None) -> dict:
            return {"item": number, "q": q}

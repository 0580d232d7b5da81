"""The sample site in Starlette, with a lifespan whose state the requests see."""

import asyncio
import contextlib
import hashlib
from collections import defaultdict

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

PATIENCE = 20
PIECE = 1 << 16


@contextlib.asynccontextmanager
async def lifespan(app):
    print("the shop opens", flush=True)
    yield {"released": defaultdict(asyncio.Event), "left": []}
    print("the shop closes", flush=True)


async def index(request):
    return PlainTextResponse("the shop")


async def form(request):
    async with request.form() as fields:
        return JSONResponse({"name": fields["name"], "tags": fields.getlist("tags")})


async def upload(request):
    async with request.form() as fields:
        file = fields["file"]
        digest, size = hashlib.sha256(), 0
        while piece := await file.read(PIECE):
            digest.update(piece)
            size += len(piece)
        told = {"name": file.filename, "size": size, "sha256": digest.hexdigest()}
        return JSONResponse(told)


async def session(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"]})


async def stream(request):
    event = request.state.released[request.query_params["token"]]

    async def lines():
        yield "first\n"
        await asyncio.wait_for(event.wait(), PATIENCE)
        yield "last\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def release(request):
    request.state.released[request.query_params["token"]].set()
    return PlainTextResponse("released")


async def events(request):
    async def forever():
        try:
            for number in range(1_000_000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.02)
        finally:
            request.state.left.append("events")

    return StreamingResponse(forever(), media_type="text/event-stream")


async def left(request):
    return JSONResponse({"left": len(request.state.left)})


async def fault(request):
    raise RuntimeError("a fault of the shop")


async def echo(websocket):
    await websocket.accept()
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if message.get("text") == "close":
            await websocket.close(4001, "as asked")
            break
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])


app = Starlette(
    routes=[
        Route("/", index),
        Route("/form", form, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/session", session, methods=["POST"]),
        Route("/stream", stream),
        Route("/release", release),
        Route("/events", events),
        Route("/left", left),
        Route("/fault", fault),
        WebSocketRoute("/echo", echo),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of a sample only")],
    lifespan=lifespan,
)

"""The sample site in FastAPI."""

import asyncio
import hashlib
from collections import defaultdict
from typing import Annotated

from fastapi import FastAPI, Form, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.middleware.sessions import SessionMiddleware

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key="of a sample only")

RELEASED: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
LEFT: list[str] = []
PATIENCE = 20
PIECE = 1 << 16


@app.get("/", response_class=PlainTextResponse)
async def index() -> str:
    return "the shop"


@app.post("/form")
async def form(name: Annotated[str, Form()], tags: Annotated[list[str], Form()]) -> dict:
    return {"name": name, "tags": tags}


@app.post("/upload")
async def upload(file: UploadFile) -> dict:
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(PIECE):
        digest.update(piece)
        size += len(piece)
    return {"name": file.filename, "size": size, "sha256": digest.hexdigest()}


@app.post("/session")
async def session(request: Request) -> dict:
    request.session["count"] = request.session.get("count", 0) + 1
    return {"count": request.session["count"]}


@app.get("/stream")
async def stream(token: str) -> StreamingResponse:
    async def lines():
        yield "first\n"
        await asyncio.wait_for(RELEASED[token].wait(), PATIENCE)
        yield "last\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/release", response_class=PlainTextResponse)
async def release(token: str) -> str:
    RELEASED[token].set()
    return "released"


@app.get("/events")
async def events() -> StreamingResponse:
    async def forever():
        try:
            for number in range(1_000_000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.02)
        finally:
            LEFT.append("events")

    return StreamingResponse(forever(), media_type="text/event-stream")


@app.get("/left")
def left() -> dict:
    # Not async on purpose: in a thread, as many a route is.
    return {"left": len(LEFT)}


@app.get("/fault")
async def fault() -> None:
    raise RuntimeError("a fault of the shop")


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "close":
                await websocket.close(4001, "as asked")
                return
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass

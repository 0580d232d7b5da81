"""The sample site in Flask."""

import hashlib
import threading
import time
from collections import defaultdict

from flask import Flask, Response, jsonify, request, session

app = Flask(__name__)
app.secret_key = "of a sample only"

RELEASED: defaultdict[str, threading.Event] = defaultdict(threading.Event)
LEFT: list[str] = []
PATIENCE = 20
PIECE = 1 << 16


@app.get("/")
def index():
    return "the shop"


@app.post("/form")
def form():
    return jsonify(name=request.form["name"], tags=request.form.getlist("tags"))


@app.post("/upload")
def upload():
    file = request.files["file"]
    digest, size = hashlib.sha256(), 0
    while piece := file.stream.read(PIECE):
        digest.update(piece)
        size += len(piece)
    return jsonify(name=file.filename, size=size, sha256=digest.hexdigest())


@app.post("/session")
def count():
    session["count"] = session.get("count", 0) + 1
    return jsonify(count=session["count"])


@app.get("/stream")
def stream():
    event = RELEASED[request.args["token"]]

    def lines():
        yield "first\n"
        yield "last\n" if event.wait(PATIENCE) else "never\n"

    return Response(lines(), content_type="text/plain")


@app.get("/release")
def release():
    RELEASED[request.args["token"]].set()
    return "released"


@app.get("/events")
def events():
    def forever():
        try:
            for number in range(1_000_000):
                yield f"data: {number}\n\n"
                time.sleep(0.02)
        finally:
            LEFT.append("events")

    return Response(forever(), content_type="text/event-stream")


@app.get("/left")
def left():
    return jsonify(left=len(LEFT))


@app.get("/fault")
def fault():
    raise RuntimeError("a fault of the shop")

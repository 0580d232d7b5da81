"""The site's answers. Views that stream are written for both interfaces: Django wants the iterator that fits."""

import asyncio
import hashlib
import threading
import time
from collections import defaultdict

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

RELEASED: defaultdict[str, threading.Event] = defaultdict(threading.Event)
LEFT: list[str] = []
PATIENCE = 20


def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the shop")


def form(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"name": request.POST["name"], "tags": request.POST.getlist("tags")})


def upload(request: HttpRequest) -> HttpResponse:
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for piece in file.chunks():
        digest.update(piece)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest()})


def session(request: HttpRequest) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return JsonResponse({"count": request.session["count"]})


def stream(request: HttpRequest) -> HttpResponse:
    event = RELEASED[request.GET["token"]]

    def lines():
        yield "first\n"
        yield "last\n" if event.wait(PATIENCE) else "never\n"

    async def lines_later():
        yield "first\n"
        yield "last\n" if await asyncio.to_thread(event.wait, PATIENCE) else "never\n"

    later = isinstance(request, ASGIRequest)
    return StreamingHttpResponse(lines_later() if later else lines(), content_type="text/plain")


def release(request: HttpRequest) -> HttpResponse:
    RELEASED[request.GET["token"]].set()
    return HttpResponse("released")


def events(request: HttpRequest) -> HttpResponse:
    def forever():
        try:
            for number in range(1_000_000):
                yield f"data: {number}\n\n"
                time.sleep(0.02)
        finally:
            LEFT.append("events")

    async def forever_later():
        try:
            for number in range(1_000_000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.02)
        finally:
            LEFT.append("events")

    later = isinstance(request, ASGIRequest)
    content = forever_later() if later else forever()
    return StreamingHttpResponse(content, content_type="text/event-stream")


def left(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"left": len(LEFT)})


def fault(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a fault of the shop")

"""Requests that leave something behind on their task or in their context, and look whether anybody has before them."""

import asyncio
import contextvars
import time
import weakref

fresh = contextvars.ContextVar("fresh", default=None)
known = contextvars.ContextVar("known")
known.set("as it was")

kept = {}
weakly = weakref.WeakKeyDictionary()
# Who waited for the end of a request.
called = []


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/called":
        return await answer(send, str(len(called)))
    if scope["path"] == "/named":
        # Python counts tasks by their names.
        return await answer(send, asyncio.current_task().get_name())
    leave = LEAVES[scope["path"][1:]]
    found = traces()
    await answer(send, found or "nothing")
    ending = leave(asyncio.current_task())
    if ending is not None:
        await ending


async def answer(send, text):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def traces():
    task = asyncio.current_task()
    found = {
        "an attribute": hasattr(task, "mark"),
        "a new variable": fresh.get() is not None,
        "a variable": known.get() != "as it was",
        "a reference": task in kept,
        "a weak reference": task in weakly,
        "a name": task.get_name() == "mine",
        "cancelling": getattr(task, "cancelling", int)() > 0,
        "a callback": bool(task._callbacks),
    }
    return ", ".join(name for name, is_there in found.items() if is_there)


def holds(task):
    """Keeps the loop from turning, so that what comes meanwhile comes together."""
    time.sleep(0.1)


def attribute(task):
    task.mark = 1


def reference(task):
    kept[task] = 1


def weak_reference(task):
    weakly[task] = 1


def callback(task):
    task.add_done_callback(lambda task: called.append("called"))


def raises(task):
    raise RuntimeError(f"with {task} in its frame")


LEAVES = {
    "": lambda task: None,
    "holds": holds,
    "attribute": attribute,
    "new-variable": lambda task: fresh.set("set") and None,
    "variable": lambda task: known.set("another") and None,
    "reference": reference,
    "weak-reference": weak_reference,
    "name": lambda task: task.set_name("mine"),
    "cancel": lambda task: task.cancel() and None,
    "callback": callback,
    "waits": lambda task: asyncio.sleep(0),
    "raises": raises,
}

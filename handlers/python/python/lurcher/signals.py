"""Signals between the applications of one process: one says that something has happened, others hear.

    from lurcher import signals

    signals.subscribe("order.paid", send_invoice)
    signals.publish("order.paid", number=17)

Names are anybody's choice. Whoever publishes need not know who listens, nor whether anybody does; a
worker process has signals of its own, and other workers hear nothing of them.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable

_lock = threading.Lock()
#: Never changed in place, so that it can be gone through without the lock.
_subscribers: dict[str, tuple[Callable[..., Any], ...]] = {}
_log = logging.getLogger("lurcher.signals")


def subscribe(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function called with the data of every signal of that name; returns the function.

    It is called in the thread that publishes, before `publish` returns, and after those that have
    subscribed before it. A function that subscribes twice is called once.
    """
    if not callable(function):
        raise TypeError(f"a subscriber is called, and {function!r} cannot be")
    with _lock:
        present = _subscribers.get(name, ())
        if function not in present:
            _subscribers[name] = (*present, function)
    return function


def unsubscribe(name: str, function: Callable[..., Any]) -> None:
    """End that; who has not subscribed is passed over."""
    with _lock:
        rest = tuple(one for one in _subscribers.get(name, ()) if one != function)
        if rest:
            _subscribers[name] = rest
        else:
            _subscribers.pop(name, None)


def publish(name: str, /, **data: Any) -> int:
    """Call all subscribers with this data; returns how many have done their work.

    One that raises does not stop the others, nor the one who publishes: its exception is logged.
    """
    done = 0
    for function in _subscribers.get(name, ()):
        try:
            function(**data)
        except Exception:
            _log.exception("a subscriber of %r raised", name)
        else:
            done += 1
    return done

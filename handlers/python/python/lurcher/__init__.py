"""Lurcher: web applications in Python behind Mongrel2 and Lurcher, and handlers of your own.

`lurcher run shop.wsgi:application tcp://127.0.0.1:9999` serves an application; what is here is for
programs that want more of it:

* `lurcher.Connection`, `Request`, `Client`: receive what servers send, and answer, without being a
  web application; `lurcher.aio` has the same for asyncio;
* `lurcher.Handler` and `WSGIHandler`: a loop around them, to be subclassed;
* `lurcher.middleware`: compression and buffering around WSGI applications;
* `lurcher.signals`: applications of one process tell each other that something has happened;
* `lurcher.internal`: one of them asks another, without a socket.
"""

from lurcher._lurcher import (
    Body,
    BodyError,
    Client,
    ClientGone,
    ConfigError,
    ConnectError,
    Connection,
    Error,
    Headers,
    ReplyError,
    Request,
    Writer,
)
from lurcher.handlers import Handler, WSGIHandler

__all__ = [
    "Body",
    "BodyError",
    "Client",
    "ClientGone",
    "ConfigError",
    "ConnectError",
    "Connection",
    "Error",
    "Handler",
    "Headers",
    "ReplyError",
    "Request",
    "WSGIHandler",
    "Writer",
]

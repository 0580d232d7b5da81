"""Lurcher: web applications in Python behind Mongrel2 and Lurcher.

`lurcher run shop.wsgi:application tcp://127.0.0.1:9999` serves an application; what is here is for
programs that want more of it:

* `lurcher.signals`: applications of one process tell each other that something has happened;
* `lurcher.internal`: one of them asks another, without a socket.
"""

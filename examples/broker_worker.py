#!/usr/bin/env python3
"""A worker of a broker with nothing but pyzmq: python3 broker_worker.py tcp://127.0.0.1:9000 [NAME]

It answers one request after the other. docs/broker-protocol.md says what the frames mean, docs/PROTOCOL.md what is in a message.
"""
import json
import signal
import sys
import time

import zmq


def answer(message):
    """The reply to a request: who sent it and for whom it is, and a whole HTTP response."""
    sender, client, path, rest = message.split(b" ", 3)
    length, rest = rest.split(b":", 1)
    headers = json.loads(rest[: int(length)])
    body = b"%s %s\n" % (headers.get("METHOD", "").encode(), path)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    if headers.get("METHOD") == "HEAD":
        body = b""
    return b"%s %d:%s, %s%s" % (sender, len(client), client, head, body)


def work(socket, stopping):
    """Works until all is done (true), or the broker is gone or is another one (false)."""
    draining, heard, patience = False, time.monotonic(), 5.0
    while True:
        if stopping and not draining:
            socket.send_multipart([b"DRAIN"])
            draining = True
        if not socket.poll(100):
            if time.monotonic() - heard > patience:
                return draining
            continue
        command, *fields = socket.recv_multipart()
        heard = time.monotonic()
        if command == b"WELCOME":
            # It is asked for a sign of life in each interval, so this silence is the broker's end.
            patience = max(3 * int(fields[1]), int(fields[2])) / 1000
        elif command == b"REQUEST":
            number, _attempt, _left, message = fields[:4]
            socket.send_multipart([b"FIRST", number])
            socket.send_multipart([b"REPLY", number, answer(message)])
            took = time.monotonic() - heard
            socket.send_multipart([b"DONE", number, b"%d" % (took * 1e6)])
        elif command == b"PING":
            # Its work takes no time. One whose work does answers from another thread, or never.
            socket.send_multipart([b"PONG", fields[0], b"0"])
        elif command == b"REFUSED":
            sys.exit("refused: " + fields[0].decode(errors="replace"))
        elif command == b"DRAIN" and draining:
            socket.send_multipart([b"BYE"])
            return True
        elif command == b"BYE":
            return draining
        # MESSAGE and CANCEL are news of clients, which nothing here is kept for.


def main(broker, name="python"):
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    context = zmq.Context()
    while True:
        # Another socket for each connection, so that HELLO is the first that is said on it.
        socket = context.socket(zmq.DEALER)
        socket.connect(broker)
        socket.send_multipart([b"HELLO", b"1", name.encode(), b"1", b"1", b""])
        done = work(socket, stopping)
        socket.close(linger=1000 if done else 0)
        if done:
            return
        time.sleep(0.1)


main(*sys.argv[1:])

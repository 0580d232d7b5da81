"""A handler as people write them for Mongrel2: handler.py SEND RECV. Answers every request with what it was asked;
prints a line per disconnect notice. Knows nothing of Lurcher."""
import json
import sys

import zmq


def netstring(text):
    length, rest = text.split(b":", 1)
    return rest[: int(length)], rest[int(length) + 1 :]


context = zmq.Context()
requests = context.socket(zmq.PULL)
requests.connect(sys.argv[1])
replies = context.socket(zmq.PUB)
replies.connect(sys.argv[2])
print("connected", flush=True)

while True:
    sender, connection, path, rest = requests.recv().split(b" ", 3)
    headers, rest = netstring(rest)
    headers = json.loads(headers)
    body, _ = netstring(rest)
    if headers["METHOD"] == "JSON":
        print("notice", json.loads(body)["type"], connection.decode(), flush=True)
        continue
    print("request", connection.decode(), flush=True)
    answer = b"%s %s %s" % (headers["METHOD"].encode(), path, body)
    http = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer)
    replies.send(b"%s %d:%s, %s" % (sender, len(connection), connection, http))

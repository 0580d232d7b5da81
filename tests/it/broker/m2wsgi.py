"""A handler of m2wsgi's dispatcher: what it says and hears, written from the protocol and nothing else.

`m2wsgi.py WORKERS PINGS`: says `ready` at the first ping, `got PATH` for each request, which it answers with its path; leaves at the
end of its standard input, and says `left` when it has been told that it may.
"""

import sys
import threading

import zmq

workers, pings = sys.argv[1:]
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.linger = 1000
dealer.connect(workers)
ping = context.socket(zmq.SUB)
ping.setsockopt(zmq.SUBSCRIBE, b"")
ping.connect(pings)
leave = context.socket(zmq.PAIR)
leave.bind("inproc://leave")


def wait_for_the_end():
    sys.stdin.read()
    told = context.socket(zmq.PAIR)
    told.connect("inproc://leave")
    told.send(b"")


threading.Thread(target=wait_for_the_end, daemon=True).start()
dealer.send_multipart([b"", b""])
poller = zmq.Poller()
for socket in (dealer, ping, leave):
    poller.register(socket, zmq.POLLIN)
pinged = 0
while True:
    ready = dict(poller.poll())
    if ping in ready:
        ping.recv()
        pinged += 1
        print("pinged", pinged, flush=True)
        dealer.send_multipart([b"", b""])
    if leave in ready:
        leave.recv()
        dealer.send_multipart([b"", b"X"])
    if dealer in ready:
        delimiter, message = dealer.recv_multipart()
        assert delimiter == b"", delimiter
        if message == b"X":
            print("left", flush=True)
            break
        sender, client, path, rest = message.split(b" ", 3)
        if path == b"@*":
            continue
        print("got", path.decode(), flush=True)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path)
        reply = b"%s %d:%s, %s" % (sender, len(client), client, answer)
        dealer.send_multipart([b"", reply])
dealer.close()
context.destroy()

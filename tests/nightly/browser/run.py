#!/usr/bin/python3
"""A real browser against the real program: run.py LURCHER.

Starts `lurcher serve` with a directory, an upload store and one handler (this program, over ZeroMQ, as any handler), opens the page
in Chromium without a window, and waits for what the page says of its checks. Exit status 0: all of them held.
"""
import hashlib, json, os, shutil, socket, subprocess, sys, tempfile, time
import zmq

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 120  # seconds for all of it


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    sys.exit("browser: no Chromium is installed")


def netstring(data):
    length, rest = data.split(b":", 1)
    return rest[: int(length)], rest[int(length) + 1 :]


def frame(first, payload):
    size = len(payload)
    if size < 126:
        head = bytes([first, size])
    elif size < 65536:
        head = bytes([first, 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 127]) + size.to_bytes(8, "big")
    return head + payload


class Handler:
    """What the page talks to."""

    def __init__(self, context, send, recv, folder):
        self.requests = context.socket(zmq.PULL)
        self.requests.connect(send)
        self.replies = context.socket(zmq.PUB)
        self.replies.connect(recv)
        self.folder, self.streams, self.result = folder, [], None

    def reply(self, sender, ident, payload):
        self.replies.send(b"%s %d:%s, " % (sender, len(ident), ident) + payload)

    def http(self, sender, ident, body, kind=b"application/json"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
        self.reply(sender, ident, head + body)

    def handle(self, message):
        sender, ident, path, rest = message.split(b" ", 3)
        headers, rest = netstring(rest)
        headers, body = json.loads(headers), netstring(rest)[0]
        method = headers["METHOD"]
        if method == "JSON":
            return
        if method == "WEBSOCKET_HANDSHAKE":
            self.reply(sender, ident, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + body + b"\r\n\r\n")
        elif method == "WEBSOCKET":
            flags = int(headers["FLAGS"], 16)
            self.reply(sender, ident, frame(flags, body))
            if flags == 0x88:
                self.reply(sender, ident, b"")
        elif path == b"/upload":
            done = headers.get("x-mongrel2-upload-done")
            if done and done == headers.get("x-mongrel2-upload-start"):
                with open(os.path.join(self.folder, done), "rb") as file:
                    data = file.read()
                os.unlink(os.path.join(self.folder, done))
                self.http(sender, ident, json.dumps({"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}).encode())
        elif path == b"/stream":
            self.reply(sender, ident, b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.streams.append([sender, ident, 10, 0.0])
        elif path == b"/result":
            self.result = json.loads(body)
            self.http(sender, ident, b"{}")
        else:
            self.http(sender, ident, b"{}")

    def tick(self):
        now = time.monotonic()
        for stream in self.streams:
            sender, ident, left, due = stream
            if now >= due:
                self.reply(sender, ident, b"a\r\n0123456789\r\n" if left else b"0\r\n\r\n")
                stream[2], stream[3] = left - 1, now + 0.1
        self.streams = [stream for stream in self.streams if stream[2] >= 0]


def main():
    lurcher = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(os.path.join(HERE, "www"), os.path.join(folder, "www"))
        port, send, recv = free_port(), "tcp://127.0.0.1:%d" % free_port(), "tcp://127.0.0.1:%d" % free_port()
        with open(os.path.join(folder, "mongrel2.conf"), "w") as conf:
            conf.write(f"""
app = Handler(send_spec='{send}', send_ident='app', recv_spec='{recv}', recv_ident='')
main = Server(uuid='main', name='main', access_log='{folder}/access.log', error_log='{folder}/error.log', chroot='', pid_file='{folder}/main.pid',
    default_host='localhost', bind_addr='127.0.0.1', port={port}, control_port='ipc://{folder}/control',
    hosts=[Host(name='localhost', routes={{'/': Dir(base='{folder}/www/', index_file='index.html', default_ctype='text/plain'),
        '/ws': app, '/upload': app, '/stream': app, '/result': app}})])
settings = {{'server.daemonize': 0, 'upload.temp_store': '{folder}/upload.XXXXXX', 'limits.body_rate': 0}}
servers = [main]
""")
        server = subprocess.Popen([lurcher, "serve", "mongrel2.conf"], cwd=folder)
        handler = Handler(zmq.Context(), send, recv, folder)
        page = subprocess.Popen(
            [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile", f"http://127.0.0.1:{port}/"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        try:
            while handler.result is None and time.monotonic() < end and server.poll() is None:
                if handler.requests.poll(20):
                    handler.handle(handler.requests.recv())
                handler.tick()
        finally:
            for process in (page, server):
                process.terminate()
                process.wait()
    results = handler.result or {"the page told its results": "it did not"}
    for name, outcome in results.items():
        print(f"browser: {name}: {outcome}")
    sys.exit(any(outcome != "ok" for outcome in results.values()))


main()

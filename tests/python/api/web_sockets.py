"""WebSocket through `lurcher.Connection`, and the bodies of uploads."""

from __future__ import annotations

import unittest

import lurcher
from support import Case, WebSocket, connect, in_thread, requests


class Echo(lurcher.Handler):
    """Sends every message back; a protocol is agreed upon where one is offered."""

    def handle_handshake(self, req: lurcher.Request) -> None:
        req.accept(req.protocols[-1] if req.protocols else None, {"X-Said": "yes"})

    def handle_frame(self, req: lurcher.Request) -> None:
        if not req.answer_control():
            req.send_websocket(req.text if req.text is not None else req.body)


class WebSockets(Case):
    def test_messages_go_both_ways_and_control_frames_are_answered(self) -> None:
        handler = Echo(connect())
        serving = in_thread(handler.serve)
        client = WebSocket("/echo", "one, two")
        self.assertIn(b"Sec-WebSocket-Protocol: two\r\n", client.head)
        self.assertIn(b"X-Said: yes\r\n", client.head)
        client.send("gr\u00fcn".encode())
        self.assertEqual(client.receive(), (1, "gr\u00fcn".encode()))
        client.send(b"\x00\xff", 2)
        self.assertEqual(client.receive(), (2, b"\x00\xff"))
        client.send(b"ping", 9)
        self.assertEqual(client.receive(), (10, b"ping"))
        client.send(b"\x03\xe8bye", 8)
        self.assertEqual(client.receive(), (8, b"\x03\xe8"))
        client.close()
        handler.stop()
        serving()

    def test_frames_tell_what_they_are(self) -> None:
        with connect() as connection:
            connecting = in_thread(WebSocket)
            waiting = requests(connection)
            handshake = next(waiting)
            self.assertEqual((handshake.kind, handshake.protocols), ("handshake", []))
            handshake.accept()
            client = connecting()
            client.send(b"text")
            frame = next(waiting)
            self.assertEqual((frame.kind, frame.opcode, frame.text), ("frame", 1, "text"))
            self.assertEqual((frame.body, frame.client), (b"text", handshake.client))
            with self.assertRaises(lurcher.ReplyError):
                frame.send_websocket(b"x" * 126, 9)
            with self.assertRaises(ValueError):
                frame.send_websocket(b"", 3)
            connection.deliver_websocket([frame.client], "to all")
            self.assertEqual(client.receive(), (1, b"to all"))
            frame.close_websocket(1001, "enough")
            self.assertEqual(client.receive(), (8, b"\x03\xe9enough"))
            client.send(b"\x03\xe9", 8)
            last = next(waiting)
            self.assertEqual((last.opcode, last.close_code), (8, (1001, "")))
            self.assertTrue(last.answer_control())
            client.close()

    def test_a_handshake_may_be_refused(self) -> None:
        handler = lurcher.Handler(connect())
        serving = in_thread(handler.serve)
        client = WebSocket()
        self.assertTrue(client.head.startswith(b"HTTP/1.1 404 "), client.head)
        client.close()
        handler.stop()
        serving()


if __name__ == "__main__":
    unittest.main()

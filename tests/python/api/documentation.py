"""The examples of docs/PYTHON.md run as they stand, but for the address."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys
import unittest

from support import PATIENCE, RECV, SEND, Case, WebSocket, ask, in_thread

GUIDE = pathlib.Path(__file__).parents[3] / "docs" / "PYTHON.md"
ADDRESS = '"tcp://127.0.0.1:9999"'


def examples() -> list[str]:
    """The programs of the section about the API."""
    section = GUIDE.read_text().split("\n## The API\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


class Documentation(Case):
    def run_example(self, mark: str) -> subprocess.Popen[bytes]:
        [text] = [text for text in examples() if mark in text]
        self.assertIn(ADDRESS, text)
        text = text.replace(ADDRESS, f'"{SEND}", "{RECV}"')
        program = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE)
        self.addCleanup(self.end, program)
        return program

    def end(self, program: subprocess.Popen[bytes]) -> None:
        program.send_signal(signal.SIGINT)
        _, words = program.communicate(timeout=PATIENCE)
        # Ctrl-C, and nothing else.
        self.assertIn(b"KeyboardInterrupt", words)
        self.assertNotIn(b"Error", words.replace(b"CancelledError", b""))

    def test_every_example_is_tried(self) -> None:
        self.assertEqual(len(examples()), 5)

    def test_receiving_and_answering(self) -> None:
        self.run_example("for request in connection:")
        answer = ask("/there")
        self.assertEqual((answer.status, answer.body), (200, b"hello /there\n"))

    def test_a_stream(self) -> None:
        self.run_example("class Clock")
        self.assertEqual(len(ask().body.splitlines()), 3)

    def test_a_room(self) -> None:
        self.run_example("class Room")
        self.assertEqual(ask().body, b"0 are here\n")
        clients = [WebSocket(), WebSocket()]
        clients[0].send(b"hello")
        self.assertEqual([client.receive() for client in clients], [(1, b"hello")] * 2)
        clients[1].send(b"", 8)
        self.assertEqual(clients[1].receive()[0], 8)
        self.assertEqual(ask().body, b"1 are here\n")
        for client in clients:
            client.close()

    def test_a_wsgi_application(self) -> None:
        self.run_example("WSGIHandler(")
        self.assertEqual(ask("/there").body, b"hello from /there\n")

    def test_asyncio(self) -> None:
        self.run_example("lurcher.aio.serve")
        asked = [in_thread(ask) for _ in range(10)]
        self.assertEqual([one().body for one in asked], [b"hello\n"] * 10)


if __name__ == "__main__":
    unittest.main()

"""What the library says about connections reaches `logging`, and holds nobody up."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import unittest
from typing import Callable

import lurcher

import support
from support import PATIENCE

#: Two connections to nobody, the second in a child by fork; ends right after.
PROGRAM = """
import logging, os, sys
import lurcher

def connect():
    lurcher.Connection(*sys.argv[1:3], subscription_timeout=0.1)

logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
connect()
child = os.fork()
if child == 0:
    connect()
    sys.exit(0)
os.waitpid(child, 0)
"""


def nobody() -> tuple[str, str]:
    """Where no server is."""
    return ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")


class Ear(logging.Handler):
    """Calls this with each record of the library."""

    def __init__(self, hear: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record)

    def __enter__(self) -> Ear:
        logging.getLogger("lurcher").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("lurcher").removeHandler(self)


class Logs(unittest.TestCase):
    def test_warnings_reach_logging(self) -> None:
        records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        with Ear(records.put), lurcher.Connection(*nobody(), subscription_timeout=0.1):
            record = records.get(timeout=PATIENCE)
        self.assertEqual((record.name, record.levelno), ("lurcher.handler.connection", logging.WARNING))
        self.assertIn("server has not subscribed to replies yet", record.getMessage())
        self.assertIn("127.0.0.1:2", record.getMessage())

    def test_a_handler_that_waits_holds_up_no_request(self) -> None:
        waits, goes_on = threading.Event(), threading.Event()

        def hear(_: logging.LogRecord) -> None:
            waits.set()
            goes_on.wait(PATIENCE)

        with Ear(hear), lurcher.Connection(*nobody(), subscription_timeout=0.1):
            try:
                self.assertTrue(waits.wait(PATIENCE))
                with support.connect() as connection:
                    answers: queue.SimpleQueue[support.Answer] = queue.SimpleQueue()
                    client = threading.Thread(target=lambda: answers.put(support.ask()))
                    client.start()
                    request = connection.recv(timeout=PATIENCE)
                    assert request is not None
                    request.respond_http("well\n")
                    self.assertEqual(answers.get(timeout=PATIENCE).body, b"well\n")
                    client.join()
                self.assertFalse(goes_on.is_set())
            finally:
                goes_on.set()

    def test_last_words_are_heard_and_those_of_children(self) -> None:
        command = [sys.executable, "-c", PROGRAM, *nobody()]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE * 2, env=os.environ)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        heard = ended.stderr.count("lurcher.handler.connection WARNING server has not subscribed")
        self.assertEqual(heard, 2, ended.stderr)


if __name__ == "__main__":
    unittest.main()

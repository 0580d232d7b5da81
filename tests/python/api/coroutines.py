"""`lurcher.aio`: the same on an event loop."""

from __future__ import annotations

import asyncio
import gc
import http.client
import os
import unittest
import weakref
from typing import Any, Callable

import lurcher
import lurcher.aio
from support import DATABASE, HOST, PATIENCE, PORT, RECV, SEND, Answer, WebSocket, ask, in_thread, sweep


def connect() -> lurcher.aio.Connecting:
    return lurcher.aio.connect(SEND, RECV, subscription_timeout=PATIENCE)


async def asking(*arguments: Any) -> Answer:
    """`ask`, for an event loop."""
    answer: Answer = await elsewhere(ask, *arguments)
    return answer


def given_up(connection: lurcher.aio.Connection) -> asyncio.Future[None]:
    """What a task waits with that is cancelled."""
    future = connection._ready()
    future.cancel()
    return future


async def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    # Begun in a thread of its own: the loop's executor may have fewer than are asked for at once.
    join = in_thread(function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(None, join)


async def request_of(connection: lurcher.aio.Connection) -> lurcher.aio.Request:
    while True:
        request = await asyncio.wait_for(connection.recv(), PATIENCE)
        assert request is not None
        if not request.is_disconnect:
            return request


class Coroutines(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        sweep()

    async def test_requests_are_iterated_over_and_answered(self) -> None:
        async with connect() as connection:
            asked = asyncio.create_task(asking("/one", "POST", b"body"))
            async for request in connection:
                if request.is_disconnect:
                    continue
                self.assertIsInstance(request, lurcher.aio.Request)
                self.assertNotIsInstance(request, lurcher.Request)
                self.assertEqual((request.path, await request.read()), ("/one", b"body"))
                self.assertEqual([piece async for piece in request.input], [])
                await request.respond_json([1], headers={"X-A": "b"})
                break
            self.assertEqual((await asked).body, b"[1]")

    async def test_receiving_that_is_cancelled_loses_nothing(self) -> None:
        async with connect() as connection:
            paths = [f"/{number}" for number in range(30)]
            asked = [asyncio.create_task(asking(path)) for path in paths]
            answered = 0
            while answered < len(paths):
                try:
                    request = await asyncio.wait_for(connection.recv(), 0.001)
                except asyncio.TimeoutError:
                    continue
                assert request is not None
                if not request.is_disconnect:
                    answered += 1
                    await request.respond_http(request.path)
            self.assertEqual([(await one).body.decode() for one in asked], paths)

    async def test_serving_that_is_cancelled_leaves_no_tasks_behind(self) -> None:
        begun = asyncio.Event()

        async def process(request: lurcher.aio.Request) -> None:
            begun.set()
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                await request.respond_http("cancelled")

        async with connect() as connection:
            serving = asyncio.create_task(lurcher.aio.serve(connection, process))
            asked = asyncio.create_task(asking())
            await asyncio.wait_for(begun.wait(), PATIENCE)
            serving.cancel()
            await asyncio.wait([serving])
            self.assertTrue(serving.cancelled())
            self.assertEqual((await asked).body, b"cancelled")

    async def test_those_that_give_up_behind_one_that_waits_are_forgotten(self) -> None:
        async with connect() as connection:
            patient = asyncio.ensure_future(connection.recv())
            left = [weakref.ref(given_up(connection)) for _ in range(300)]
            gc.collect()
            self.assertLess(sum(one() is not None for one in left), 100)
            asked = asyncio.create_task(asking("/first"))
            request = await asyncio.wait_for(patient, PATIENCE)
            assert request is not None
            await request.respond_http("")
            await asked

    async def test_who_waited_first_is_served_first(self) -> None:
        async with connect() as connection:
            waiting = [asyncio.ensure_future(connection.recv()) for _ in range(3)]
            waiting.pop(0).cancel()
            asked = asyncio.create_task(asking("/first"))
            request = await asyncio.wait_for(waiting[0], PATIENCE)
            assert request is not None
            self.assertFalse(waiting[1].done())
            await request.respond_http("")
            await asked
            connection.stop()
            last = await asyncio.wait_for(waiting[1], PATIENCE)
            self.assertTrue(last is None or last.is_disconnect)

    async def test_other_tasks_have_their_turn_under_a_flood(self) -> None:
        async with connect() as connection:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            client = http.client.HTTPConnection(HOST, int(PORT), timeout=PATIENCE)

            def flood() -> bool:
                for _ in range(100):
                    client.request("GET", "/")
                    client.getresponse().read()
                client.close()
                return True

            counting = asyncio.create_task(count())
            flooding = asyncio.create_task(elsewhere(flood))
            for _ in range(100):
                await (await request_of(connection)).respond_http("")
            await flooding
            counting.cancel()
            self.assertGreater(turns, 10)

    async def test_a_response_grows_and_one_that_is_left_is_cut_off(self) -> None:
        async with connect() as connection:
            asked = asyncio.create_task(asking())
            request = await request_of(connection)
            async with request.stream() as writer:
                for piece in ("one ", b"two ", "three"):
                    await writer.write(piece)
                    await writer.flush()
            self.assertEqual((await asked).body, b"one two three")
            asked = asyncio.create_task(asking())
            request = await request_of(connection)
            with self.assertRaises(ZeroDivisionError):
                async with request.stream(length=100) as writer:
                    await writer.write("a part")
                    await writer.flush()
                    raise ZeroDivisionError
            with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
                await asked

    async def test_a_large_response_waits_for_its_client_and_others_do_not(self) -> None:
        size, piece = 24 << 20, b"x" * 65536
        async with connect() as connection:
            asked = asyncio.create_task(asking("/large"))
            request = await request_of(connection)

            async def large() -> None:
                async with request.stream(length=size) as writer:
                    for _ in range(size // len(piece)):
                        await writer.write(piece)

            writing = asyncio.create_task(large())
            small = asyncio.create_task(asking("/small"))
            await (await request_of(connection)).respond_http("small")
            self.assertEqual((await small).body, b"small")
            await writing
            self.assertEqual(len((await asked).body), size)

    async def test_errors_are_raised_where_they_are_awaited(self) -> None:
        async with connect() as connection:
            asked = asyncio.create_task(asking())
            request = await request_of(connection)
            refused = request.respond_http("", headers={"X-Bad": "a\r\nb"})
            with self.assertRaises(lurcher.ReplyError):
                await refused
            await request.respond_http("fine")
            self.assertEqual((await asked).body, b"fine")
        with self.assertRaises(ValueError):
            await lurcher.aio.connect("nowhere")

    async def test_a_websocket_speaks(self) -> None:
        async with connect() as connection:
            connecting = asyncio.create_task(elsewhere(WebSocket))
            handshake = await request_of(connection)
            await handshake.accept()
            client = await connecting
            client.send(b"hello")
            frame = await request_of(connection)
            self.assertEqual((frame.text, await frame.answer_control()), ("hello", False))
            await connection.deliver_websocket([frame.client], b"\x00")
            self.assertEqual(await elsewhere(client.receive), (2, b"\x00"))
            client.send(b"", 8)
            last = await request_of(connection)
            self.assertTrue(await last.answer_control())
            client.close()

    async def test_closing_ends_whoever_waits(self) -> None:
        connection = await connect()
        waiting = asyncio.ensure_future(connection.recv())
        iterating = asyncio.create_task(self.list_of(connection))
        await asyncio.sleep(0.01)
        await connection.close()
        self.assertIsNone(await asyncio.wait_for(waiting, PATIENCE))
        self.assertEqual(await asyncio.wait_for(iterating, PATIENCE), [])
        self.assertIsNone(await connection.recv())

    @staticmethod
    async def list_of(connection: lurcher.aio.Connection) -> list[lurcher.aio.Request]:
        return [request async for request in connection if not request.is_disconnect]

    async def test_a_connection_that_is_stopped_ends(self) -> None:
        async with connect() as connection:
            iterating = asyncio.create_task(self.list_of(connection))
            connection.stop()
            self.assertEqual(await asyncio.wait_for(iterating, PATIENCE), [])
            self.assertTrue(connection.ended)

    async def test_everything_is_served_in_tasks_of_its_own(self) -> None:
        together = 0
        met = asyncio.Event()

        async def process(request: lurcher.aio.Request) -> None:
            nonlocal together
            if request.is_disconnect:
                return
            if request.path == "/fail":
                raise ZeroDivisionError
            together += 1
            if together == 5:
                met.set()
            await asyncio.wait_for(met.wait(), PATIENCE)
            await request.respond_http("met")

        async with lurcher.aio.from_config(DATABASE, subscription_timeout=PATIENCE) as connection:
            serving = asyncio.create_task(lurcher.aio.serve(connection, process, concurrency=50))
            asked = [asyncio.create_task(asking()) for _ in range(5)]
            self.assertEqual([(await one).body for one in asked], [b"met"] * 5)
            with self.assertLogs("lurcher"):
                self.assertEqual((await asking("/fail")).status, 500)
            connection.stop()
            await asyncio.wait_for(serving, PATIENCE)

    async def test_a_connection_that_is_dropped_leaves_nothing_behind(self) -> None:
        # What the first connection of a process makes, stays.
        await (await connect()).close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            connection = await connect()
            waiting = asyncio.ensure_future(connection.recv())
            await asyncio.sleep(0.01)
            waiting.cancel()
            del connection, waiting
        for _ in range(1000):
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await asyncio.sleep(0.01)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)


if __name__ == "__main__":
    unittest.main()

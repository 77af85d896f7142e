"""Clients that leave, stall, send too much or come all at once: the others are served, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from agents import Agent
from framework.config import Settings
from framework.errors import TooLarge
from framework.messages import Delta
from framework.testing.scripted import ScriptedChat
from server.config import ServerConfig
from server.middleware import Gate, Intake

HELLO = [{"role": "user", "content": "Hello"}]


class Waiting(ScriptedChat):
    """Says `before`, then waits for ever; tells when it is asked and when its work is closed."""

    def __init__(self, before: tuple[str, ...] = ()) -> None:
        super().__init__([], name="waiting")
        self.before = before
        self.asked = threading.Semaphore(0)
        self.closed = threading.Semaphore(0)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Delta]:
        self.loop = asyncio.get_running_loop()
        self.asked.release()
        try:
            for text in self.before:
                yield Delta(text)
            await asyncio.Event().wait()
        finally:
            self.closed.release()


class Endless(ScriptedChat):
    """Says the same for ever; counts how much of it was taken."""

    def __init__(self) -> None:
        super().__init__(["Yes."], name="endless")
        self.taken = 0
        self.closed = threading.Event()

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Delta]:
        try:
            while True:
                self.taken += 1
                yield Delta("x" * 10_000)
                await asyncio.sleep(0)
        finally:
            self.closed.set()


def request(model: str, **body: Any) -> bytes:
    data = json.dumps({"model": model, "messages": HELLO, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + data


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def leave(running: Any, model: Waiting, stream: bool) -> None:
    """Ask, wait until the work has begun, hang up, and wait until it is closed."""
    with closing(connect(running.port)) as client:
        client.sendall(request("waiting", stream=stream))
        assert model.asked.acquire(timeout=10)
        if model.before and stream:
            assert b"200 OK" in client.recv(100)
    assert model.closed.acquire(timeout=10), "the client left and its work went on"


def tasks_at_rest(running: Any, model: Waiting, most: int = 0) -> int:
    """Tasks of the server's loop once no request is here; a request's last task ends within a few turns."""

    async def count() -> int:
        await running.app.state.gate.emptied(10)
        for _ in range(1000):
            if len(asyncio.all_tasks()) <= most:
                break
            await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), model.loop).result(20)


@pytest.mark.parametrize("before", [(), ("One", " two")], ids=["before its first token", "after it"])
def test_a_thousand_clients_that_leave_leave_nothing_behind(serving: Any, before: tuple[str, ...]) -> None:
    model = Waiting(before)
    running = serving(ServerConfig(max_concurrent=2, max_waiting=2), chat=model)
    leave(running, model, stream=True)
    baseline = tasks_at_rest(running, model)
    for number in range(500):
        leave(running, model, stream=number % 2 == 0)
    assert tasks_at_rest(running, model, baseline) <= baseline
    assert running.app.state.gate.inside == 0


def test_an_agents_work_ends_with_its_client(serving: Any, settings: Settings) -> None:
    model = Waiting(("One", " two"))
    agent = Agent("waiting", model=model, settings=settings)
    running = serving(chat=ScriptedChat([]), agents={"waiting": agent})
    for stream in (True, False):
        leave(running, model, stream)
    assert tasks_at_rest(running, model) < 10


def test_a_client_that_leaves_while_it_waits_for_its_turn_is_forgotten(serving: Any) -> None:
    model = Waiting()
    running = serving(ServerConfig(max_concurrent=1, max_waiting=1), chat=model)
    with closing(connect(running.port)) as first:
        first.sendall(request("waiting"))
        assert model.asked.acquire(timeout=10)
        for _ in range(20):  # had one of them stayed, the next would get 429 and its connection would not hang
            with closing(connect(running.port)) as waiting:
                waiting.sendall(request("waiting"))
                assert occupied(running, model, 2)
            assert occupied(running, model, 1)
    assert model.closed.acquire(timeout=10)
    assert not model.asked.acquire(blocking=False)


def occupied(running: Any, model: Waiting, number: int) -> bool:
    """Whether that many requests come to be inside, within a bounded number of the loop's turns."""

    async def watch() -> bool:
        for _ in range(200_000):
            if running.app.state.gate.inside == number:
                return True
            await asyncio.sleep(0)
        return False

    return asyncio.run_coroutine_threadsafe(watch(), model.loop).result(30)


def test_beyond_the_bound_a_request_gets_429_and_a_time_to_come_back(serving: Any) -> None:
    model = Waiting()
    running = serving(ServerConfig(max_concurrent=1, max_waiting=0), chat=model)
    with closing(connect(running.port)) as first:
        first.sendall(request("waiting"))
        assert model.asked.acquire(timeout=10)
        refused = httpx.post(f"{running.url}/v1/chat/completions", content=request("waiting").partition(b"\r\n\r\n")[2])
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{running.url}/v1/models").status_code == 200  # only what computes is counted
    assert model.closed.acquire(timeout=10)


def test_many_at_once_are_all_answered_in_turn(serving: Any) -> None:
    running = serving(ServerConfig(max_concurrent=2, max_waiting=30), chat=ScriptedChat(["Yes."] * 30))
    url = f"{running.url}/v1/chat/completions"
    with ThreadPoolExecutor(15) as pool:
        answers = list(pool.map(lambda _: httpx.post(url, json={"model": "scripted", "messages": HELLO}), range(30)))
    assert {answer.status_code for answer in answers} == {200}


def test_a_reader_that_stalls_fills_no_memory_and_is_given_up(serving: Any) -> None:
    model = Endless()
    running = serving(ServerConfig(stall_timeout=0.5), chat=model)
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(("127.0.0.1", running.port))
        client.sendall(request("endless", stream=True))
        assert httpx.get(f"{running.url}/v1/models").status_code == 200
        assert model.closed.wait(20)
        assert model.taken < 1000  # 10 MB: the kernel's buffers, not ours
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_body_over_the_limit_gets_413_however_it_comes(serving: Any) -> None:
    running = serving(ServerConfig(max_body=100_000), chat=ScriptedChat([]))

    def parts() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 100_000

    for content in (b"x" * 20_000_000, parts()):
        refused = httpx.post(f"{running.url}/v1/chat/completions", content=content)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "too_large"
        assert "100000 are allowed" in refused.json()["error"]["message"]


async def test_a_body_of_100_mb_takes_no_memory() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the body must not get here")

    left = [1600]

    async def receive() -> Message:
        left[0] -= 1
        return {"type": "http.request", "body": bytes(65_536), "more_body": left[0] > 0}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    intake = Intake(app, Gate(1, 1), 8_000_000, 30, 30)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="104857600 bytes"):
            await intake({"type": "http", "method": "POST", "path": "/v1/x", "headers": []}, receive, send)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_body_that_does_not_come_gets_408(serving: Any) -> None:
    running = serving(ServerConfig(body_timeout=0.1), chat=ScriptedChat([]))
    with closing(connect(running.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{")
        assert b"408 " in client.recv(1000)


def test_endless_headers_are_cut_off(serving: Any) -> None:
    running = serving(chat=ScriptedChat([]))
    with closing(connect(running.port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        answer = b""
        try:
            for _ in range(1600):
                client.sendall(b"x" * 65_536)
        except ConnectionError:
            pass
        else:
            answer = client.recv(1000)
            assert b"400 " in answer
    assert httpx.get(f"{running.url}/health").status_code == 200

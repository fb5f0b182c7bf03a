"""The server's process: how it starts, and in which order it stops. The engine and the library are fakes."""

import socket
import threading

import httpx
import pytest
import uvicorn

from ma2mba.errors import UserError
from ma2mba.serving.server import Server
from tests.unit.serving.fakes import FakeEngine, FakeLibrary, make_app, wait_for

HELLO = {"model": "toy", "messages": [{"role": "user", "content": "?"}]}


class Started:
    """A server in a thread, at `url`."""

    def __init__(self, app, listener):
        self.server = Server(uvicorn.Config(app, lifespan="off", log_level="warning"), app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def parts():
    return FakeEngine(), FakeLibrary()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def started(parts, tmp_path, listener):
    started = Started(make_app(*parts, tmp_path), listener)
    wait_for(lambda: started.server.started)
    yield started
    started.stop()


def test_a_library_that_cannot_start_is_told(parts, tmp_path, listener, capfd):
    engine, library = parts

    async def fail():
        raise UserError("the folder is in use. Name another")

    library.start = fail
    app = make_app(engine, library, tmp_path)
    server = Server(uvicorn.Config(app, lifespan="off", log_level="warning"), app)
    with pytest.raises(UserError, match="in use"):
        server.run(sockets=[listener])
    assert "Traceback" not in capfd.readouterr().err


def test_the_library_starts_before_and_ends_after_the_connections(parts, started):
    engine, library = parts
    assert library.started
    engine.pause = 0.3
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{started.url}/v1/chat/completions", json=HELLO, timeout=30))
    )
    asking.start()
    wait_for(lambda: engine.asked)
    started.server.should_exit = True
    wait_for(lambda: engine.stopped)
    assert not library.closed  # the answer is still being written
    asking.join(20)
    assert answers[0].json()["choices"][0]["message"]["content"] == "a cat"
    started.thread.join(20)
    assert library.closed


def test_events_end_when_the_server_stops(parts, started):
    engine, _ = parts
    video = httpx.post(f"{started.url}/v1/videos", content=b"bytes").json()
    with httpx.stream("GET", f"{started.url}/v1/videos/{video['id']}/events", timeout=30) as events:
        lines = events.iter_lines()
        assert next(lines) == "event: progress"
        started.server.should_exit = True
        assert [line for line in lines if line.startswith("event")] == []
    assert engine.reads[0].released

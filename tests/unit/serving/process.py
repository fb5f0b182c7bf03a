"""`ma2mba serve` as a process of its own."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai

from tests.unit.serving.fakes import wait_for

STARTING = 400
"""Seconds for a server's start: on a busy machine, the imports alone take minutes."""


class Server:
    """A process of `ma2mba serve`. `url` is known as soon as it listens."""

    def __init__(self, *arguments: object):
        command = [sys.executable, "-m", "ma2mba", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log += line

    @property
    def url(self) -> str:
        found = re.search(r"at (http://\S+)/ ", self.log)
        return found[1].replace("0.0.0.0", "127.0.0.1") if found else ""

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


def start(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ma2mba", "serve", "--port", "0", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=STARTING)


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        wait_for(lambda: server.url or server.process.poll() is not None, STARTING)
        assert server.url, server.log
        wait_for(lambda: answers(server.url), STARTING)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False

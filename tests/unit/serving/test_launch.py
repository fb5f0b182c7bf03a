"""The files in launch/ that run the server: the systemd unit, the reverse proxy, the container file."""

import json
import re
import secrets
import shutil
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.unit.serving.fakes import wait_for

LAUNCH = Path(__file__).resolve().parents[3] / "launch"


class StandIn(BaseHTTPRequestHandler):
    """Gives ids, and says which server was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._say({"server": self.server.server_port, "client": self.headers.get("X-Forwarded-For")})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        id = f"video-{secrets.token_urlsafe(32)}"
        headers = {"Location": f"/v1/videos/{id}"} if self.path == "/v1/videos" else {}
        self._say({"server": self.server.server_port, "id": id}, headers)

    def _say(self, value, headers=None):
        body = json.dumps(value).encode()
        self.send_response(200)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def stand_in():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.handle_error = lambda *_: None  # a check of health may close the connection early
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """The address of HAProxy with the shipped configuration, in front of two servers."""
    if not shutil.which("haproxy"):
        pytest.skip("HAProxy is not installed")
    with ExitStack() as stack:
        ports = [stack.enter_context(stand_in()) for _ in range(2)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        text = (LAUNCH / "haproxy.cfg").read_text().replace(":8080", f"127.0.0.1:{port}")
        for number, at in enumerate(ports):
            assert f"127.0.0.1:800{number}" in text
            text = text.replace(f"127.0.0.1:800{number}", f"127.0.0.1:{at}")
        path = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
        path.write_text(text)
        process = stack.enter_context(subprocess.Popen(["haproxy", "-db", "-f", path]))
        stack.callback(process.kill)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: works(url), 30)
        yield url


def works(url):
    try:
        return httpx.get(f"{url}/v1/models").status_code == 200
    except httpx.HTTPError:
        return False


def ask(proxy, url, **more):
    """Ask about a video; return which server answered."""
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": 'and "url": "this"?'}]
    body = {"messages": [{"role": "user", "content": content}], **more}
    return httpx.post(f"{proxy}/v1/chat/completions", json=body, timeout=60).json()["server"]


def test_questions_about_an_id_go_to_the_server_that_has_it(proxy):
    stored = [httpx.post(f"{proxy}/v1/videos", content=b"x" * size).json() for size in (10, 300_000) * 4]
    assert len({video["server"] for video in stored}) == 2
    for video in stored:
        assert ask(proxy, video["id"]) == video["server"]
        for path in (video["id"], f"{video['id']}/events"):
            assert httpx.get(f"{proxy}/v1/videos/{path}").json()["server"] == video["server"]


def test_questions_about_a_url_go_to_one_server(proxy):
    found = {n: {ask(proxy, f"https://example.org/{n}.mp4", seed=seed) for seed in range(2)} for n in range(8)}
    assert all(len(servers) == 1 for servers in found.values())
    assert len(set.union(*found.values())) == 2


def test_other_questions_go_to_all_servers(proxy):
    assert len({ask(proxy, "data:video/mp4;base64," + "A" * 500_000) for _ in range(16)}) == 2


def test_a_browser_stays_at_its_server(proxy):
    with httpx.Client(base_url=proxy) as browser:
        assert len({browser.get("/").json()["server"] for _ in range(8)}) == 1
        assert browser.get("/").json()["client"] == "127.0.0.1"
    assert len({httpx.get(f"{proxy}/").json()["server"] for _ in range(8)}) == 2


def test_metrics_are_not_public(proxy):
    assert httpx.get(f"{proxy}/metrics").status_code == 404


def test_the_unit_is_valid_and_hardened(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    text = (LAUNCH / "ma2mba-serve.service").read_text()
    unit = tmp_path / "ma2mba-serve.service"
    unit.write_text(text.replace("/opt/ma2mba/.venv/bin/ma2mba", "/bin/true"))
    for check in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(["systemd-analyze", *check, unit], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Unknown" not in done.stderr


def test_the_unit_and_the_image_call_serve_with_options_that_it_has():
    known = set(re.findall(r'"(--[a-z-]+)"', (LAUNCH.parent / "ma2mba" / "cli" / "serve.py").read_text()))
    known |= {"--model", "--device", "--dtype"}
    unit = re.search("ExecStart=.*", (LAUNCH / "ma2mba-serve.service").read_text())[0]
    image = re.search("ENTRYPOINT .*", (LAUNCH / "Containerfile").read_text())[0]
    for line in (unit, image):
        used = set(re.findall(r"--[a-z-]+", line))
        assert len(used) >= 2
        assert used <= known
    page = (LAUNCH.parent / "docs" / "serving.md").read_text()
    table = page.partition("## Options")[2].partition("##")[0]
    assert set(re.findall(r"`(--[a-z-]+)", table)) == known

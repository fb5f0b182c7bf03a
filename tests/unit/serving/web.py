"""A web server on this machine, and a resolver that leads made-up hosts to it, for tests of fetching."""

import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ma2mba.serving import remote


@dataclass
class Web:
    """A server and what it was asked for. `pages`: path -> what writes the answer."""

    port: int
    certificate: Path
    pages: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]]
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


@contextmanager
def web(folder: Path, encrypted: bool = True) -> Iterator[Web]:
    """Serve on 127.0.0.1 as videos.example, with its own certificate."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:videos.example,DNS:other.example"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=videos.example", "-addext", names]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.asked.append((self.headers["Host"], self.path, dict(self.headers)))
            self.close_connection = True
            served.pages[self.path](self)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    served = Web(server.server_port, certificate, {})
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def page(content: bytes, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def moved(to: str, status: int = 302) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def lead_to(monkeypatch, served: Web, addresses: dict[str, list[str]], public: tuple[str, ...] = ("127.0.0.1",)):
    """Resolve hosts as told, take `public` for public, and let the server's port stand for 443 and 80."""

    async def resolve(host: str, port: int) -> list[str]:
        return addresses[host]

    real = remote.address_problem
    monkeypatch.setattr(remote, "resolve", resolve)
    monkeypatch.setattr(remote, "address_problem", lambda address: "" if address in public else real(address))
    monkeypatch.setattr(remote, "PORTS", {"https": served.port, "http": served.port})

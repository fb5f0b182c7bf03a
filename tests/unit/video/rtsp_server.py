"""A small RTSP server on loopback: it sends MPEG-TS packets in RTP, within the RTSP connection (RFC 2326, 10.12)."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=a\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
)
PACKETS = 7
"""MPEG-TS packets of 188 bytes in one RTP packet."""


class Server:
    """Serves one client. `transport`: what the client asked for."""

    def __init__(self, content: bytes, *, ends: bool):
        self._content, self._ends, self._stop = content, ends, threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port, self.transport = self._listening.getsockname()[1], ""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._listening.close()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        client, _ = self._listening.accept()
        with client, client.makefile("rb") as lines:
            while first := lines.readline():
                heads = dict(self._heads(lines))
                method = first.split()[0].decode()
                client.sendall(self._answer(method, heads))
                if method == "PLAY":
                    self._send(client)
                    if self._ends:
                        return
                    self._stop.wait()

    def _heads(self, lines) -> Iterator[tuple[str, str]]:
        while line := lines.readline().strip().decode():
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()

    def _answer(self, method: str, heads: dict[str, str]) -> bytes:
        more, body = "", ""
        if method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            more, body = f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n", SDP
        elif method == "SETUP":
            self.transport = heads["transport"]
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            more = "Session: 1\r\n"
        return f"RTSP/1.0 200 OK\r\nCSeq: {heads['cseq']}\r\n{more}\r\n{body}".encode()

    def _send(self, client: socket.socket) -> None:
        step = 188 * PACKETS
        for number, at in enumerate(range(0, len(self._content), step)):
            payload = self._content[at : at + step]
            rtp = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 1000, 1) + payload
            client.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)


@contextmanager
def serve(content: bytes, *, ends: bool = True) -> Iterator[Server]:
    """Serve the bytes of an MPEG-TS file. With `ends`, close the connection after them."""
    server = Server(content, ends=ends)
    try:
        yield server
    finally:
        server.close()

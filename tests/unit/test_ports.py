"""Where rank 0 listens."""

import socket

import pytest

from launch import ports


def test_a_port_that_is_taken_is_passed_over(monkeypatch):
    with socket.socket() as listener:
        taken = ports.free_port()
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        other = ports.free_port()
        monkeypatch.setattr(ports, "PORTS", (taken, other))
        assert {ports.free_port() for _ in range(20)} == {other}
        monkeypatch.setattr(ports, "PORTS", (taken,))
        with pytest.raises(OSError, match="is free"):
            ports.free_port()

"""The port on which rank 0 listens."""

import socket

import pytest

from ma2mba.training import launcher


def test_a_port_that_is_taken_is_passed_over(monkeypatch):
    with socket.socket() as listener:
        taken = launcher.free_port()
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        other = launcher.free_port()
        monkeypatch.setattr(launcher, "PORTS", (taken, other))
        assert {launcher.free_port() for _ in range(20)} == {other}
        monkeypatch.setattr(launcher, "PORTS", (taken,))
        with pytest.raises(OSError, match="is free"):
            launcher.free_port()

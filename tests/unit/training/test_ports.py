"""The port on which rank 0 listens."""

import socket

import pytest

from ma2mba.errors import UserError
from ma2mba.training import ports


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


def test_the_port_of_the_environment_is_used_unless_it_is_taken(caplog):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        free = ports.free_port()
        assert ports.choose_port({"MASTER_PORT": str(free)}, taken) == str(free)
        assert ports.choose_port({}, free) == str(free)
        for other in (ports.choose_port({"MASTER_PORT": str(taken)}), ports.choose_port({}, taken)):
            assert int(other) in ports.PORTS
        assert f"port {taken} is in use: rank 0 listens on port {other}" in caplog.text


@pytest.mark.parametrize("text", ["x", "0", "65536", "-1", "\u0663", "9" * 5000])
def test_a_wrong_port_is_refused(text):
    with pytest.raises(UserError, match=r"MASTER_PORT: .* is not a port"):
        ports.choose_port({"MASTER_PORT": text})

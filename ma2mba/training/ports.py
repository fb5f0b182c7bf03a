"""Choose the port on which rank 0 listens for the other ranks."""

import logging
import random
import socket
from collections.abc import Mapping

from ma2mba.errors import UserError
from ma2mba.text import brief

log = logging.getLogger(__name__)
PORTS = range(10000, 20000)
"""Below the ports that Linux assigns by itself (32768 and above), and below the ports of launch/slurm.sbatch."""
MOST = 65535


def choose_port(environment: Mapping[str, str], default: int | None = None) -> str:
    """Return MASTER_PORT or `default` if no process of this host listens on it, otherwise another free port.

    Raise UserError if MASTER_PORT is not a port.
    """
    wanted = given_port(environment) or default
    if wanted is None:
        return str(free_port())
    if is_free(wanted):
        return str(wanted)
    port = free_port()
    log.warning("port %d is in use: rank 0 listens on port %d", wanted, port)
    return str(port)


def given_port(environment: Mapping[str, str]) -> int | None:
    """Return MASTER_PORT, None if it is not set. Raise UserError if it is not a port."""
    text = environment.get("MASTER_PORT", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MOST):
        raise UserError(f"MASTER_PORT: {brief(text)} is not a port. Set a number from 1 to {MOST}, or unset it")
    return int(text)


def free_port() -> int:
    """Return a port on which no process listens, and that the system will not assign to another process.

    Raise OSError when no port is free.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # not the seeded generator: two runs must differ
        if is_free(port):
            return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")


def is_free(port: int) -> bool:
    """Return True if this process can listen on a port of this host."""
    with socket.socket() as probe:
        # as the ranks' store does: connections of a run that has just ended do not keep the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True

"""A port for rank 0 to listen on."""

import random
import socket

PORTS = range(10000, 20000)
"""Below those that Linux gives to whoever asks for any (32768 and above), and below those of launch/slurm.sbatch."""


def free_port() -> int:
    """A port of this machine that nobody listens on, nor will by chance before rank 0 does.

    Raises OSError when there is none.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # processes with equal seeds get different ones
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")

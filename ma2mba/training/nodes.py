"""What the deepspeed launcher must know about several nodes: options, and the variables that other nodes need.

The environment describes the machines, the recipe has every hyperparameter (docs/cluster.md):
MASTER_ADDR, MASTER_PORT   where the ranks meet: an address of the first node (default: its own), and a port (29500)
NODE_RANK                  this node's line in the hostfile, from 0; the launcher then starts this node alone
INTERFACE                  the network interface that the nodes share, such as eth0 or ib0
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.files import read_bounded
from ma2mba.text import RECIPE_BYTES, brief, shorten
from ma2mba.training.ports import choose_port, given_port

PORT = 29500
FORWARDED = re.compile(r"(NCCL|GLOO|TORCH|OMP|MA2MBA)_|DEEPSPEED_TIMEOUT$")
"""Variables for nodes that are started by ssh. DeepSpeed forwards those that begin with PYTHON, UCX, MV2 or MLFLOW."""

NODE = re.compile(r"\s*(?P<name>[A-Za-z0-9_][\w.:@-]*)\s+slots=(?P<ranks>[1-9][0-9]{0,5})(?!\S)", re.ASCII)
"""A line of a hostfile. The launcher gives the name to ssh, where one that begins with "-" would be an option."""
MOST_RANKS = 100_000


def slots(hostfile: Path) -> list[int]:
    """Return the number of ranks on each node of a hostfile. Raise UserError if the file is missing or malformed."""
    where = f"--hostfile {hostfile}"
    try:
        text = read_bounded(hostfile, RECIPE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: cannot be read ({error}). Give the path of a text file") from error
    found: dict[str, int] = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = NODE.match(line)
        if match is None:
            raise UserError(f"{where}: the line {brief(line)} is not NODE slots=RANKS, as node-1 slots=8")
        if match["name"] in found:
            raise UserError(f"{where}: names {shorten(match['name'])} twice. Write one line for each node")
        found[match["name"]] = int(match["ranks"])
    if not found:
        raise UserError(f"{where}: names no node. Write a line for each node, as node-1 slots=8")
    if sum(found.values()) > MOST_RANKS:
        raise UserError(f"{where}: stands for {sum(found.values()):,} ranks. Write at most {MOST_RANKS:,} in all")
    return list(found.values())


def options(hostfile: Path, environment: Mapping[str, str]) -> list[str]:
    """Return the deepspeed launcher's options.

    Raise UserError if the hostfile is wrong, or NODE_RANK, or if NODE_RANK is set without MASTER_ADDR.
    """
    nodes = len(slots(hostfile))
    address, rank = environment.get("MASTER_ADDR"), environment.get("NODE_RANK")
    # By ssh, this command alone chooses the port. Started on every node, all commands must choose the same one.
    port = given_port(environment) or (PORT if rank else int(choose_port({}, PORT)))
    found = ["--hostfile", str(hostfile), "--master_port", str(port)]
    if address:
        found += ["--master_addr", address]
    if rank:
        if not address:
            raise UserError(
                f"NODE_RANK={rank} without MASTER_ADDR. Set MASTER_ADDR to an address of the first node, the same on "
                "all nodes"
            )
        if not re.fullmatch(r"[0-9]{1,9}", rank) or int(rank) >= nodes:
            raise UserError(f"NODE_RANK={rank}: not a line of {hostfile}. Set a number from 0 to {nodes - 1}")
        found += ["--no_ssh", "--node_rank", rank]
    return found


@contextmanager
def variables(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the launcher's environment; while in use, a temporary file names the variables that other nodes need.

    The file also holds the user's own `.deepspeed_env`, of the home folder and of the current directory.
    """
    interface = environment.get("INTERFACE")
    both = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}
    found = {"OMP_NUM_THREADS": "1"} | dict(environment) | both
    own = environment.get("DS_ENV_FILE", ".deepspeed_env")
    with tempfile.NamedTemporaryFile("w", suffix=".deepspeed_env", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in found.items() if FORWARDED.match(name))
        for path in dict.fromkeys((Path.home() / own, Path(os.path.abspath(own)))):
            if path.is_file():  # the last value of a name counts
                lines = path.read_text(encoding="utf-8").splitlines()
                file.writelines(f"{line}\n" for line in lines if line.strip())
        file.flush()
        yield found | {"DS_ENV_FILE": file.name}

"""Train on two nodes: two network namespaces that share one pair of interfaces, each with its own launcher.

Needs root and iproute2.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest

from tests.dist.launching import ROOT, TIMEOUT_SECONDS, curve, running, train

pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Node:
    """A network namespace, its interface and the interface's address."""

    space: str
    interface: str
    address: str


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def nodes():
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two nodes are two network namespaces: needs root and iproute2")
    names = f"ma2mba-{os.getpid()}"
    made = [Node(f"{names}-{n}", f"m{os.getpid() % 100000}n{n}", f"10.213.7.{n + 1}") for n in range(2)]
    try:
        try:
            join(*made)
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        yield made
    finally:
        for node in made:
            subprocess.run(["ip", "netns", "delete", node.space], capture_output=True)
        subprocess.run(["ip", "link", "delete", made[0].interface], capture_output=True)


def join(first: Node, second: Node) -> None:
    """Create the namespaces of two nodes and connect their interfaces."""
    for node in (first, second):
        ip("netns", "add", node.space)
    ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
    for node in (first, second):
        ip("link", "set", node.interface, "netns", node.space)
        ip("-n", node.space, "address", "add", f"{node.address}/24", "dev", node.interface)
        for interface in ("lo", node.interface):
            ip("-n", node.space, "link", "set", interface, "up")


def launch(nodes: list[Node], folder: Path, *overrides: str) -> list[tuple[int, str]]:
    """Start the launcher on every node, as a user without ssh does. Return each exit code and output."""
    (folder / "hosts").write_text("".join(f"{node.address} slots=1\n" for node in nodes))
    with ExitStack() as stack:
        started = [
            stack.enter_context(start(node, rank, nodes[0].address, folder, *overrides))
            for rank, node in enumerate(nodes)
        ]
        said = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in started]
    return [(process.returncode, words) for process, words in zip(started, said, strict=True)]


def start(node: Node, rank: int, master: str, folder: Path, *overrides: str) -> AbstractContextManager[Popen[str]]:
    script = [str(ROOT / "launch" / "multi_node.sh"), "hosts", "recipe.yaml", *overrides]
    variables = {"NODE_RANK": str(rank), "MASTER_ADDR": master, "INTERFACE": node.interface}
    variables["DEEPSPEED"] = str(Path(sys.executable).with_name("deepspeed"))
    return running(["ip", "netns", "exec", node.space, *script], folder, **variables)


def test_two_nodes_train_as_one_process_does(nodes, folder):
    done = launch(nodes, folder, "run=two-nodes", "steps=3")
    assert [code for code, _ in done] == [0, 0], "\n".join(words for _, words in done)
    assert all("nnodes=2" in words for _, words in done)
    train(folder, 0, "run=one-node", "steps=3")
    assert curve(folder / "two-nodes") == pytest.approx(curve(folder / "one-node"), rel=1e-5)  # measured: 1e-7


@pytest.mark.slow
def test_a_failure_on_one_node_ends_the_other_too(nodes, folder, tmp_path):
    shutil.copytree(folder / "shards", tmp_path / "damaged")
    payload = tmp_path / "damaged" / "payload" / "part-00000.parquet"
    content = bytearray(payload.read_bytes())
    content[len(content) // 3] ^= 1
    payload.write_bytes(content)
    done = launch(nodes, folder, f"data={tmp_path / 'damaged'}", f"run={tmp_path / 'run'}", "watchdog=null")
    assert [code for code, _ in done] == [2, 2], "\n".join(words for _, words in done)
    told = "".join(words for _, words in done).replace("\n", "")
    assert len(re.findall(r"part-00000.parquet: sample s\d is damaged", told)) == 1

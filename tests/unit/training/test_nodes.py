"""What the deepspeed launcher is told about several nodes."""

import re
from pathlib import Path

import pytest

from ma2mba.errors import UserError
from ma2mba.training import launcher, nodes, ports

HOSTS = "node-1 slots=8\n# a comment\n\nnode-2 slots=4  # the small one\n"


@pytest.fixture
def hosts(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


def test_the_ranks_of_a_hostfile(hosts):
    assert nodes.slots(hosts) == [8, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no node"),
        ("node-1\n", r"the line 'node-1' is not NODE slots=RANKS"),
        ("node-1 slots=0\n", "is not NODE slots=RANKS"),
        ("node-1 slots=2x\n", "is not NODE slots=RANKS"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_hostfile_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=message):
        nodes.slots(tmp_path / "hosts")


@pytest.fixture
def all_ports_free(monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda port: True)


def test_a_port_in_use_is_replaced_where_one_command_chooses_it(hosts, monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda port: port == 12345)
    assert nodes.options(hosts, {})[-1] == "12345"
    assert nodes.options(hosts, {"MASTER_PORT": "7000"})[-1] == "7000", "the first node may be another host"
    assert "29500" in nodes.options(hosts, {"NODE_RANK": "0", "MASTER_ADDR": "node-1"})


@pytest.mark.parametrize("given", [["--hostfile", "HOSTS"], ["-H", "HOSTS"], ["--hostfile=HOSTS", "--num_gpus", "2"]])
def test_the_launcher_checks_hostfiles(hosts, monkeypatch, given):
    started = []
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda *_, **__: started.append(1))
    hosts.write_text("node-1 slots=0\n")
    arguments = [word.replace("HOSTS", str(hosts)) for word in given]
    with pytest.raises(UserError, match=r"hosts: the line 'node-1 slots=0' is not NODE slots=RANKS"):
        launcher.run_launcher([*arguments, "launch/train.py", "recipe.yaml"])
    assert not started


@pytest.mark.usefixtures("all_ports_free")
def test_options_follow_the_environment(hosts):
    assert nodes.options(hosts, {}) == ["--hostfile", str(hosts), "--master_port", "29500"]
    alone = {"NODE_RANK": "1", "MASTER_ADDR": "node-1", "MASTER_PORT": "7000"}
    expected = ["--master_port", "7000", "--master_addr", "node-1", "--no_ssh", "--node_rank", "1"]
    assert nodes.options(hosts, alone)[2:] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"NODE_RANK": "1"}, "NODE_RANK=1 without MASTER_ADDR"),
        ({"NODE_RANK": "2", "MASTER_ADDR": "a"}, "NODE_RANK=2: not a line of .*from 0 to 1"),
        ({"NODE_RANK": "x", "MASTER_ADDR": "a"}, "NODE_RANK=x: not a line of"),
    ],
)
def test_a_wrong_environment_is_refused(hosts, given, message):
    with pytest.raises(UserError, match=message):
        nodes.options(hosts, given)


def test_variables_for_other_nodes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("HF_HOME=/data\n\nOMP_NUM_THREADS=3")
    with nodes.variables({"INTERFACE": "ib0", "MA2MBA_OPS": "torch", "OTHER": "x"}) as found:
        lines = Path(found["DS_ENV_FILE"]).read_text().splitlines()
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["OTHER"] == "x"
    assert found["OMP_NUM_THREADS"] == "1"
    expected = {"NCCL_SOCKET_IFNAME=ib0", "GLOO_SOCKET_IFNAME=ib0", "MA2MBA_OPS=torch", "HF_HOME=/data"}
    assert set(lines) == expected | {"OMP_NUM_THREADS=1", "OMP_NUM_THREADS=3"}
    assert lines.index("OMP_NUM_THREADS=3") > lines.index("OMP_NUM_THREADS=1"), "the last value counts"


@pytest.mark.usefixtures("all_ports_free")
def test_the_launcher_starts_the_module_of_a_rank(hosts, monkeypatch):
    asked = []
    monkeypatch.setattr(launcher, "run_launcher", lambda *given: asked.append(given) or 7)
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "INTERFACE"):
        monkeypatch.delenv(name, raising=False)
    assert launcher.launch(["recipe.yaml", "run=r"], gpus=2) == 7
    assert launcher.launch(["recipe.yaml", "run=r"], hostfile=hosts) == 7
    here, there = (" ".join(arguments) for arguments, *_ in asked)
    module = "--module ma2mba.training.rank recipe.yaml run=r"
    assert re.fullmatch(rf"--quiet --num_gpus 2 --master_port \d+ {module}", here)
    assert there == f"--hostfile {hosts} --master_port 29500 {module}"

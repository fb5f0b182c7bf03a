"""launch/multi_node.sh and launch/slurm.sbatch, with stand-ins for SLURM's own programs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ma2mba.training.recipe.loading import load_recipe
from tests.dist.launching import ROOT, TIMEOUT_SECONDS, curve, environment

SCRIPTS = [ROOT / "launch" / "multi_node.sh", ROOT / "launch" / "slurm.sbatch"]
SRUN = r"""#!/bin/bash
trap 'echo "srun got TERM" >> "$CALLS"; kill $(jobs -p); exit 0' TERM
echo "srun $*" >> "$CALLS"
for option in "$@"; do [[ $option == -* ]] || break; shift; done
if [[ -n $IDLE ]]; then sleep 120 & wait; fi
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & ranks+=($!); done
for rank in "${ranks[@]}"; do wait "$rank" || exit; done
"""
SCONTROL = r"""#!/bin/bash
echo "scontrol $*" >> "$CALLS"
[[ $1 == show ]] && echo 127.0.0.1
exit 0
"""


@pytest.fixture
def slurm(tmp_path):
    """Return the environment of a job of 2 tasks. The file CALLS lists the programs that were called."""
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return environment() | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "PYTHON": sys.executable,
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": "2",
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    checks = [["bash", "-n", str(script)]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", str(script)])
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    without_arguments = subprocess.run(["bash", str(script)], capture_output=True, text=True, cwd=ROOT)
    assert without_arguments.returncode == 2
    assert "RECIPE.yaml" in without_arguments.stderr


def test_slurm_trains_with_the_recipe(folder, slurm):
    run = folder / "by-slurm"
    arguments = ["recipe.yaml", f"data={folder / 'shards'}", f"run={run}", "steps=2", "checkpoint.every=2"]
    arguments[0] = str(folder / arguments[0])
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *arguments],
        cwd=ROOT,
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert len(curve(run)) == 2
    assert (run / "checkpoints" / "latest").read_text() == "step-000002\n"
    called = Path(slurm["CALLS"]).read_text()
    assert "--kill-on-bad-exit=1" in called
    assert "requeue" not in called


@pytest.mark.parametrize("name", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_has_the_ranks_save_and_queues_again(slurm, name):
    process = subprocess.Popen(
        ["bash", "launch/slurm.sbatch", "recipe.yaml", "run=elsewhere"], cwd=ROOT, env=slurm | {"IDLE": "yes"}
    )
    calls, until = Path(slurm["CALLS"]), time.monotonic() + TIMEOUT_SECONDS
    while not calls.exists() or "srun --" not in calls.read_text():
        assert time.monotonic() < until, "srun was not called"
        time.sleep(0.05)
    process.send_signal(name)
    assert process.wait(TIMEOUT_SECONDS) == 0
    assert calls.read_text().splitlines()[-2:] == ["srun got TERM", f"scontrol requeue {os.getpid()}"]


@pytest.mark.parametrize("stage", ["stage1", "stage1_5", "stage2"])
def test_the_trainer_takes_what_slurm_gives_it(slurm, stand_in, stage):
    """The trainer's parser accepts the command line of the sbatch file, for each recipe."""
    command = ["bash", "launch/slurm.sbatch", f"launch/recipes/{stage}.yaml", "run=runs/a b", "trainable.vision=null"]
    subprocess.run(command, cwd=ROOT, env=slurm | stand_in, check=True)
    for rank in ("0", "1"):
        said = Path(f"{slurm['CALLS']}.{rank}").read_text().splitlines()
        assert said[:5] == [rank, rank, "1", "2", "launch/train.py"]
        recipe = load_recipe(ROOT / said[5], said[6:])
        assert (recipe.stage, recipe.resume, recipe.run, recipe.trainable.vision) == (
            stage,
            "auto",
            str(Path("runs/a b").absolute()),
            None,
        )


@pytest.fixture
def stand_in(tmp_path):
    """A stand-in for the trainer that writes its arguments to a file."""
    process = tmp_path / "python"
    what = '"$RANK" "$LOCAL_RANK" "$LOCAL_SIZE" "$WORLD_SIZE" "$@"'
    process.write_text(f'#!/bin/bash\nprintf "%s\\n" {what} > "$CALLS.$RANK"\n')
    process.chmod(0o755)
    return {"PYTHON": str(process)}


@pytest.mark.parametrize(
    ("tasks", "node", "size"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_TASKS_PER_NODE": "1"}, 3, "8"),
        ({"SLURM_TASKS_PER_NODE": "8(x2),4,2(x12)"}, 1, "8"),
        ({"SLURM_TASKS_PER_NODE": "8(x2),4,2(x12)"}, 2, "4"),
        ({"SLURM_TASKS_PER_NODE": "8(x2),4,2(x12)"}, 14, "2"),
        ({"SLURM_NTASKS_PER_NODE": "6"}, 1, "6"),
    ],
)
def test_a_rank_learns_how_many_share_its_node(slurm, stand_in, tasks, node, size):
    given = slurm | stand_in | tasks | {"SLURM_NODEID": str(node)}
    subprocess.run(["bash", "launch/slurm.sbatch", "launch/recipes/stage1.yaml"], cwd=ROOT, env=given, check=True)
    assert Path(f"{slurm['CALLS']}.1").read_text().splitlines()[2] == size


def test_a_signal_before_the_trainer_is_known_reaches_it_all_the_same(slurm, tmp_path):
    """The shell is stopped right after it has set its trap, and receives the signal there."""
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    told = tmp_path / "slurm.sbatch"
    told.write_text(
        script.replace("trap save_and_requeue USR1 TERM\n", "trap save_and_requeue USR1 TERM\nkill -USR1 $$\n")
    )
    done = subprocess.run(["bash", str(told), "recipe.yaml"], cwd=ROOT, env=slurm | {"IDLE": "yes"}, timeout=60)
    assert done.returncode in (0, 128 + signal.SIGTERM)
    assert Path(slurm["CALLS"]).read_text().splitlines()[-1] == f"scontrol requeue {os.getpid()}"


def test_the_other_nodes_get_the_variables(tmp_path):
    """DeepSpeed's own runner, with stand-ins for ssh and for pdsh, which prints the command that every node runs."""
    (tmp_path / "hosts").write_text("node-1 slots=8\nnode-2 slots=8\n")
    shutil.copy(ROOT / "launch/recipes/stage1.yaml", tmp_path / "recipe.yaml")
    (tmp_path / ".deepspeed_env").write_text("HF_HOME=/data\n\nOMP_NUM_THREADS=3")  # without a last end of line
    for name, script in (("ssh", "exit 0"), ("pdsh", "echo $*")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPTS[0]), "hosts", "recipe.yaml", "run=r"],
        cwd=tmp_path,
        env=environment()
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        | {"DEEPSPEED": str(Path(sys.executable).with_name("deepspeed")), "MASTER_ADDR": "node-1"}
        | {"INTERFACE": "ib0", "DEEPSPEED_TIMEOUT": "20", "MA2MBA_OPS": "torch", "TORCH_SHOWN": "a b"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exported = dict(re.findall(r"export (\w+)=(.*?); ", done.stdout))
    expected = {
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
        "DEEPSPEED_TIMEOUT": "20",
        "MA2MBA_OPS": "torch",
        "TORCH_SHOWN": '"a b"',
        "HF_HOME": "/data",
        "OMP_NUM_THREADS": "3",
    }
    assert exported.items() >= expected.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".deepspeed_env", "hosts", "pdsh", "recipe.yaml", "ssh"]

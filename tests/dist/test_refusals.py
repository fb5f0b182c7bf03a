"""A user's errors: exit code 2 through the launcher, one message, no half-written files."""

import re
import shutil
import socket
import sys

from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from tests.dist.launching import RECIPE, ROOT, TRAINER, command, finished, launch


def refused(folder, ranks, *overrides, run="refused") -> str:
    done = launch(folder, ranks, *overrides, f"run={run}")
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert not (folder / run).exists()
    return done.stdout


def test_a_bad_recipe_names_every_key_once(folder):
    said = refused(folder, 2, "optimiser.eps=1", "global_batch=many", "magc.stash=disk")
    assert said.count("error:") == 1
    for key in ("optimiser: unknown key. Did you mean optimizer?", "global_batch: 'many'", "magc.stash: 'disk'"):
        assert said.count(key) == 1


def test_weights_of_another_architecture(folder):
    other = {**RECIPE["model"], "language_model": {**RECIPE["model"]["language_model"], "d_model": 48}}
    save_model(VideoMa2mba(ModelConfig.model_validate(other)), folder / "shards" / "tokenizer.json", folder / "other")
    said = refused(folder, 2, "init_from=other")
    assert said.count("error:") == 1
    assert re.search(r"other/model.safetensors: has another architecture than the model: \d+ tensors differ", said)


def test_a_checkpoint_that_does_not_exist(folder):
    said = refused(folder, 0, "resume=runs/gone/checkpoints/step-000003")
    assert f"resume: {folder}/runs/gone/checkpoints/step-000003 does not exist" in said


def test_a_damaged_shard_ends_every_rank(folder, tmp_path):
    shutil.copytree(folder / "shards", tmp_path / "damaged")
    payload = tmp_path / "damaged" / "payload" / "part-00000.parquet"
    content = bytearray(payload.read_bytes())
    content[len(content) // 3] ^= 1
    payload.write_bytes(content)
    done = launch(folder, 2, f"data={tmp_path / 'damaged'}", f"run={tmp_path / 'run'}")
    assert done.returncode == 2, done.stdout
    assert re.search(r"part-00000.parquet: sample s\d is damaged", done.stdout.replace("\n", ""))
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()


def test_a_projector_for_a_language_model_of_random_weights(folder):
    said = refused(folder, 0, "trainable.language_model=null", "trainable.vision=null")
    assert said.startswith("error: trainable: trains only projector, for a language model of random weights")
    assert said.count("\n") == 1


def test_a_port_in_use(folder):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        arguments = command(2, "run=port")
        arguments[arguments.index("--master_port") + 1] = port
        done = finished(arguments, folder)
        assert done.returncode == 2, done.stdout
        assert done.stdout.count(f"error: MASTER_PORT: port {port} is in use on {socket.gethostname()}. Set") == 1
        assert "Traceback" not in done.stdout
        assert not (folder / "port").exists()
        # `ma2mba train --gpus` and the make targets choose another port
        again = [sys.executable, "-m", "ma2mba", "train", "recipe.yaml", "run=port", "steps=1", "--gpus", "1"]
        done = finished(again, folder, MASTER_PORT=port, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout
    assert f"port {port} is in use: rank 0 listens on port" in done.stdout


def test_a_hostfile_that_starts_nothing(folder, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=0\n")
    done = finished(
        [sys.executable, str(ROOT / "launch/run.py"), "-H", str(hosts), str(TRAINER), "recipe.yaml"], folder
    )
    assert done.returncode == 2, done.stdout
    expected = f"error: --hostfile {hosts}: the line 'localhost slots=0' is not NODE slots=RANKS, as node-1 slots=8\n"
    assert done.stdout == expected

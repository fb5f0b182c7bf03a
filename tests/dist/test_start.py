"""A start of 8 ranks on one host reads the weights once and holds them once on each rank, and says where time went."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import load_model, save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from tests.dist.launching import RECIPE, command, finished
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

RANKS, TIMEOUT_SECONDS = 8, 1500
LARGER = {"d_model": 1024, "n_layer": 6, "headdim": 64}
COUNTED = Path(__file__).with_name("counted_train.py")
PHASES = ["launch", "imports", "checkpoint", "weights", "data", "plan", "processes", "kernels", "engine", "first step"]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Train one step on 8 ranks from a model of 150 MiB. Return the folder."""
    folder = tmp_path_factory.mktemp("start")
    write_shards(folder / "shards", [(3, 4), (0, 5), (7, 2), (1, 9), (2, 3), (5, 5), (4, 12), (1, 1)])
    torch.manual_seed(0)
    values = TINY_MODEL | {"language_model": TINY_MODEL["language_model"] | LARGER}
    model = VideoMa2mba(ModelConfig.model_validate(values))
    save_model(model, folder / "shards/tokenizer.json", folder / "model")
    recipe = RECIPE | {"model": None, "init_from": "model", "global_batch": RANKS, "micro_batch": 1, "steps": 1}
    rates = {"trainable": {"projector": 2e-3, "language_model": 1e-30}}  # so small that no weight of it changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | rates))
    done = finished(command(RANKS, script=COUNTED), folder, TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def ranks(started):
    return [json.loads((started / f"start-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def weights(started):
    """The size of the weights in MiB."""
    return (started / "model/model.safetensors").stat().st_size >> 20


def test_one_rank_reads_the_weights(ranks, weights):
    read = [rank["after build"]["read"] - rank["before build"]["read"] for rank in ranks]
    assert weights <= read[0] < 1.6 * weights, "what it imports counts as well"
    assert max(read[1:]) < weights / 2
    engine = [rank["after engine"]["read"] - rank["before engine"]["read"] for rank in ranks]
    assert max(engine) < weights / 2


def test_no_rank_holds_a_second_copy(ranks, weights):
    """Beside the weights, a rank holds its eighth of the fp32 copy and of both moments: 3/8 of the weights.

    Measured: 1.7 times the weights above a rank that holds none; as DeepSpeed joins parameters, 2.5 to 2.7.
    """
    program = [rank["after build"]["rss"] for rank in ranks[1:]]
    assert max(program) - min(program) < weights / 4, "these ranks hold no weights yet"
    peaks = [rank["after engine"]["peak"] - max(program) for rank in ranks]
    assert max(peaks) < 2.2 * weights


def test_every_rank_has_the_weights(started):
    """The checkpoint is written by all of them, and its language model was not changed by the step."""
    folders = (started / "model", started / "run/checkpoints/step-000001/model")
    before, after = (load_model(folder)[0] for folder in folders)
    for name, weight in before.language_model.named_parameters():
        moved = (weight - after.language_model.get_parameter(name)).abs().max()
        assert moved < 1e-20, name  # a weight of exactly zero moves by the learning rate


def test_a_damaged_model_is_reported_once(started):
    """The rank that reads the weights says so, and the launcher ends the other one, which waits for it."""
    copied = started / "damaged"
    shutil.copytree(started / "model", copied)
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damaged!")
    done = finished(command(2, "init_from=damaged", "run=refused", "global_batch=2"), started, TIMEOUT_SECONDS)
    assert done.returncode != 0
    assert done.stdout.count("is damaged (its checksum differs from checksums.json)") == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert not (started / "refused").exists()


def test_the_log_and_the_metrics_say_where_the_seconds_went(started):
    (line,) = [json.loads(text) for text in (started / "run/metrics.jsonl").read_text().splitlines()]
    seconds = line["start_seconds"]
    assert sorted(seconds) == sorted([*PHASES, "total"])
    assert seconds["total"] == pytest.approx(sum(seconds[phase] for phase in PHASES), abs=0.1)
    assert seconds["launch"] > 0.5 < seconds["first step"] + seconds["engine"], "Python and the launcher start first"
    assert (
        f"the first step was done {seconds['total']:.1f} s after the command began: launch"
        in (started / "said").read_text()
    )

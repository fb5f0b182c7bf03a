"""`ma2mba replay` finds the sample and the module whose values are not finite."""

import json

import pytest
import torch
from typer.testing import CliRunner

from ma2mba.cli.app import app
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.faults import replay as replays
from ma2mba.training.faults.replay import MicroBatchRecord, StepRecord, first_not_finite, read, write
from ma2mba.training.recipe.loading import parse_recipe
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

MICRO_BATCHES = [
    [MicroBatchRecord(samples=[0, 1], sample_ids=["s0", "s1"], loss=1.0)],
    [MicroBatchRecord(samples=[2], sample_ids=["s2"], loss=float("nan"))],
]


@pytest.fixture
def model() -> VideoMa2mba:
    torch.manual_seed(0)
    return VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))


@pytest.fixture
def saved_step(tmp_path, model):
    """Return a function that saves a step, with the present weights of `model` as its checkpoint."""
    write_shards(tmp_path / "shards", [(3, 4), (0, 5), (7, 2)])

    def save(dtype="torch.float32", micro_batches=MICRO_BATCHES, sequence=1, **plan):
        save_model(model, tmp_path / "shards" / "tokenizer.json", tmp_path / "model")
        recipe = {
            "stage": "stage2",
            "data": str(tmp_path / "shards"),
            "run": str(tmp_path / "run"),
            "init_from": str(tmp_path / "model"),
            "trainable": {"projector": 1e-3, "language_model": 1e-3},
            "global_batch": 4,
            "steps": 9,
            "parallel": {"sequence": sequence},
        }
        step = StepRecord(
            step=4,
            loss=float("nan"),
            gradient_norm=float("inf"),
            checkpoint=None,
            dtype=dtype,
            plan=vars(Plan(chunk_tokens=16, **plan)),
            recipe=parse_recipe(recipe).model_dump(mode="json"),
            micro_batches=micro_batches,
        )
        write(tmp_path / "step-000004.json", step)
        return tmp_path / "step-000004.json"

    return save


def run(path, *options):
    done = CliRunner().invoke(app, ["replay", str(path), "--device", "cpu", *options])
    return done.exit_code, done.output


def rows(path):
    code, said = run(path, "--json")
    facts = json.loads(said)
    assert facts["reproduced"] == (code == 1)
    return code, {row["sample_id"]: row for row in facts["samples"]}


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_good_weights_are_finite(saved_step, dtype):
    code, samples = rows(saved_step(dtype))
    assert code == 0
    assert [samples[name]["rank"] for name in ("s0", "s1", "s2")] == [0, 0, 1]
    assert [samples[name]["frames"] for name in ("s0", "s1", "s2")] == [3, 0, 7]
    assert all(0 < float(row["gradient_norm"]) < 100 and 1 < float(row["loss"]) < 10 for row in samples.values())


@pytest.mark.parametrize("plan", [{"nesting": "sequence"}, {"nesting": "layer"}, {"group_layers": 2, "memo_chunks": 3}])
def test_the_layer_that_breaks_is_named(saved_step, model, plan):
    with torch.no_grad():
        model.layers[1].mixer.out_proj.weight[0, 0] = float("nan")
    path = saved_step(**plan)
    code, samples = rows(path)
    assert code == 1
    assert {row["first_not_finite"] for row in samples.values()} == {"language_model.backbone.layers.1"}
    code, said = run(path)
    assert code == 1
    assert "Not finite again: s0, s1, s2" in said


def test_chunks_are_those_of_one_rank_where_several_shared_a_sequence(saved_step, monkeypatch):
    plans, loss = [], replays.streaming_loss

    def note(model, batch, plan, scale):
        plans.append(plan)
        return loss(model, batch, plan, scale)

    monkeypatch.setattr(replays, "streaming_loss", note)
    assert rows(saved_step(sequence=4))[0] == 0
    assert {plan.chunk_tokens for plan in plans} == {4}


def test_the_samples_that_break_are_named(saved_step, model):
    with torch.no_grad():
        model.projector[0].weight[0, 0] = float("inf")
    code, samples = rows(saved_step())
    assert code == 1
    assert [samples[name]["first_not_finite"] for name in ("s0", "s1", "s2")] == ["projector", None, "projector"]
    assert float(samples["s1"]["loss"]) < 10


def test_hooks_do_not_stay(model):
    with first_not_finite(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_other_data_and_other_files_are_refused(saved_step, tmp_path):
    path = saved_step(micro_batches=[[MicroBatchRecord(samples=[1], sample_ids=["gone"], loss=1.0)]])
    refused = CliRunner().invoke(app, ["replay", str(path), "--device", "cpu"]).exception
    assert isinstance(refused, UserError)
    assert "sample 1 is not gone, which the failed step used" in str(refused)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other.json: not a step saved by training"):
        read(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"gone.json: No such file"):
        read(tmp_path / "gone.json")

"""A job's data: weights of folders, micro-batches by tokens, and features only for a frozen encoder."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.vision import fingerprint
from ma2mba.shards.manifest import FeatureInfo
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.code_version import code_version
from ma2mba.training.job import build, open_data
from ma2mba.training.model_source import ModelSource
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

SIZES = [(frames, 1 + frames % 3) for frames in (1, 30, 2, 3, 28, 5, 4, 1, 2, 6, 25, 3)]


def world(ranks: int) -> World:
    return World(0, ranks, torch.device("cpu"))


def recipe(tmp_path, **changes):
    values = {"stage": "stage1", "data": str(tmp_path / "shards"), "run": str(tmp_path / "run"), "model": TINY_MODEL}
    values |= {
        "trainable": {"projector": 1.0, "language_model": 1.0},
        "global_batch": 8,
        "epochs": 2,
        "precision": "fp32",
    }
    return parse_recipe(values | changes)


def encoder_of_the_recipe() -> str:
    """`ModelSource.build` draws new weights from the recipe's seed, the encoder first."""
    torch.manual_seed(0)
    return fingerprint(ClipEncoder(ClipConfig(**TINY_MODEL["vision"])))


def features(encoder: str) -> FeatureInfo:
    return FeatureInfo(tokens=4, width=32, encoder=encoder)


def test_features_of_the_models_own_encoder_are_taken(tmp_path):
    write_shards(tmp_path / "shards", SIZES, features=features(encoder_of_the_recipe()))
    assert build(recipe(tmp_path), world(1)).dataset.features is not None


def test_features_are_refused_where_the_encoder_trains_or_is_another(tmp_path):
    write_shards(tmp_path / "shards", SIZES, features=features(encoder_of_the_recipe()))
    with pytest.raises(UserError, match=r"trainable\.vision: 0\.5 is incompatible with .*shards, which holds features"):
        build(recipe(tmp_path, trainable={"language_model": 1.0, "vision": 0.5}), world(1))
    write_shards(tmp_path / "other", SIZES, features=features("0" * 32))
    with pytest.raises(UserError, match="features of another vision encoder"):
        build(recipe(tmp_path, data=str(tmp_path / "other")), world(1))


def test_the_fingerprint_knows_weights_but_not_their_rounding():
    torch.manual_seed(0)
    encoder = ClipEncoder(ClipConfig(**TINY_MODEL["vision"]))
    before = fingerprint(encoder)
    assert fingerprint(encoder.to(torch.bfloat16)) == before
    encoder.clip.embeddings.patch_embedding.weight.data[0, 0, 0, 0] += 1
    assert fingerprint(encoder) != before


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_budget_of_tokens_fits_every_step_of_the_run(tmp_path, ranks):
    write_shards(tmp_path / "shards", SIZES)
    job = build(recipe(tmp_path, micro_batch_tokens=270), world(ranks))
    length_N, alone = job.dataset.length_N, 0
    assert job.steps == 4
    for plan, _ in zip(job.sampler.plans(job.position), range(job.steps), strict=False):
        assert len(plan.micro_batches) == ranks
        for micro in (micro for rank in plan.micro_batches for micro in rank):
            assert len(micro) * length_N[micro].max() <= 270
            alone += len(micro) == 1
    # what DeepSpeed is told agrees with the plan
    assert job.recipe.micro_batch * ranks * job.sampler.micro_steps == 8
    assert job.sampler.micro_steps < 8 // ranks
    assert alone < 4 * 8


def test_weights_of_folders_reach_the_sampler(tmp_path):
    write_shards(tmp_path / "a", [(1, 1)] * 10)
    write_shards(tmp_path / "b", [(1, 1)] * 10)
    data = [{"path": str(tmp_path / "a"), "weight": 3}, str(tmp_path / "b")]
    job = build(recipe(tmp_path, data=data), world(1))
    assert job.sampler.draws == 40
    assert job.steps == 10
    assert (job.sampler.epoch_order(0) < 10).sum() == 30


def test_ranks_that_share_sequences_see_the_same_samples(tmp_path):
    write_shards(tmp_path / "shards", SIZES)
    shared = build(recipe(tmp_path, parallel={"sequence": 2}), world(4))
    assert shared.sampler.plan(shared.position) == build(recipe(tmp_path), world(2)).sampler.plan(shared.position)


def test_a_frozen_language_model_of_random_weights_is_refused(tmp_path):
    write_shards(tmp_path / "shards", SIZES)
    with pytest.raises(UserError, match=r"trains only projector, for a language model of random weights"):
        build(recipe(tmp_path, trainable={"projector": 1.0}), world(1))


def resumed(recipe, dataset_of, step=1):
    """Open the data of a recipe as a run does that resumes a checkpoint of the recipe and dataset `dataset_of`."""
    before, dataset = dataset_of
    facts = {"ranks": 1, "zero_stage": 1, "dtype": "torch.float32", "data_fingerprint": dataset.fingerprint}
    facts |= {"data_contents": dataset.contents, "recipe": before.model_dump(mode="json"), "code": code_version()}
    state = checkpoint.TrainerState(step=step, epoch=0, cursor=8 * step, files=[], **facts)
    config = ModelConfig.model_validate(TINY_MODEL)
    return open_data(recipe, world(1), ModelSource(config), config, checkpoint.Start(Path("run/step"), state))


def dataset(*folders):
    config = ModelConfig.model_validate(TINY_MODEL)
    return Dataset(folders, config.image_size, config.tokens_per_frame)


def test_shards_that_were_rebuilt_with_other_content_are_refused(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    one, two = (write_shards(tmp_path / name, SIZES, seed=seed, prefix=name) for name, seed in (("a", 0), ("b", 1)))
    now = recipe(tmp_path, data=[str(one), str(two)])
    before = (now, dataset(one, two))
    resumed(now, before)
    moved = shutil.copytree(two, tmp_path / "moved")
    resumed(recipe(tmp_path, data=[str(one), str(moved)]), before)
    shutil.rmtree(two)
    write_shards(two, SIZES, seed=2, prefix="b")
    assert dataset(one, two).fingerprint == before[1].fingerprint
    with pytest.raises(UserError, match=r"^\S+/b: other answers, labels or pictures .*init_from=run/step/model$"):
        resumed(now, before)
    before[1].contents = None
    resumed(now, before)
    assert "does not record what the shards hold" in caplog.text


@pytest.mark.parametrize("what", ["token_ids", "supervised", "frame_positions", "payload_xxh3"])
def test_every_part_of_a_sample_counts_as_content(tmp_path, what):
    found = dataset(write_shards(tmp_path / "a", SIZES))
    before, row = found.contents, found.rows[0][1]
    values = getattr(row, what)
    object.__setattr__(
        row, what, values + "1" if what == "payload_xxh3" else ~values if values.dtype == bool else values + 1
    )
    del found.contents
    assert found.contents != before
    object.__setattr__(row, what, values)
    object.__setattr__(row, "source", "/elsewhere")
    del found.contents
    assert found.contents == before


def test_order_length_is_not_resumed_with_other_passes(tmp_path):
    write_shards(tmp_path / "shards", SIZES)
    found = dataset(tmp_path / "shards")
    before = recipe(tmp_path, order="length", epochs=None, steps=2), found  # 2 * 8 samples: 2 passes over 12
    resumed(recipe(tmp_path, order="length", epochs=None, steps=3), before)
    with pytest.raises(UserError, match=r"^steps: 4 makes 3 passes .* began with 2 \(steps=2\).*Restore steps=2, or"):
        resumed(recipe(tmp_path, order="length", epochs=None, steps=4), before)
    with pytest.raises(UserError, match=r"^epochs: 3 makes 3 passes"):
        resumed(recipe(tmp_path, order="length", epochs=3), before)
    shuffled = recipe(tmp_path, epochs=None, steps=2), found
    resumed(recipe(tmp_path, epochs=3), shuffled)

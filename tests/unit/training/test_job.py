"""A job's data: weights of folders, micro-batches by tokens, and features only for a frozen encoder."""

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.vision import fingerprint
from ma2mba.shards.manifest import FeatureInfo
from ma2mba.training.job import build
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

SIZES = [(frames, 1 + frames % 3) for frames in (1, 30, 2, 3, 28, 5, 4, 1, 2, 6, 25, 3)]


def world(ranks: int) -> World:
    return World(0, ranks, torch.device("cpu"))


def recipe(tmp_path, **changes):
    values = {"stage": "stage1", "data": str(tmp_path / "shards"), "run": str(tmp_path / "run"), "model": TINY_MODEL}
    values |= {"trainable": {"projector": 1.0}, "global_batch": 8, "epochs": 2, "precision": "fp32"}
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
        build(recipe(tmp_path, trainable={"projector": 1.0, "vision": 0.5}), world(1))
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

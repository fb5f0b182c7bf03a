"""Wrong numbers of ranks, ZeRO policies and precisions are reported before any process group exists."""

import json
from pathlib import Path

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World, check_ranks, load_policy, share_sequences

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def recipe(**changes):
    values = {"stage": "stage1", "data": "d", "run": "r", "init_from": "m", "trainable": {"projector": 1.0}, "steps": 1}
    return parse_recipe(values | {"global_batch": 12, "micro_batch": 2} | changes)


def test_the_launchers_environment():
    world = World.from_environment({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"})
    assert (world.rank, world.size) == (3, 4)
    assert World.from_environment({}).size == 1


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    check_ranks(recipe(), World(0, 3, CPU))
    with pytest.raises(UserError, match=r"global_batch: 12 is not a multiple of micro_batch 2 \* 4 ranks. Use 8 or 16"):
        check_ranks(recipe(), World(0, 4, CPU))


def test_ranks_that_share_sequences():
    grid = recipe(parallel={"sequence": 2})
    places = [share_sequences(grid, World(rank, 6, CPU)) for rank in range(6)]
    assert [world.group for world in places] == [0, 0, 1, 1, 2, 2]
    assert [world.place for world in places] == [0, 1, 0, 1, 0, 1]
    assert {world.groups for world in places} == {3}
    check_ranks(grid, places[0])  # 12 samples for 3 groups in micro-batches of 2
    with pytest.raises(UserError, match=r"12 is not a multiple of micro_batch 2 \* 4 groups of 2 ranks. Use 8 or 16"):
        check_ranks(grid, share_sequences(grid, World(0, 8, CPU)))
    with pytest.raises(
        UserError, match=r"parallel\.sequence: 2 does not divide the number of ranks, 3. Use one of 1, 3"
    ):
        share_sequences(grid, World(0, 3, CPU))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero1_offload"])
def test_shipped_policies_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = load_policy(name)
    assert policy.stage == int(name[4])
    assert list(policy.values) == ["zero_optimization"]


def test_a_policy_of_ones_own(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    assert load_policy(str(tmp_path / "mine.json")).stage == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "p.json does not exist. Use one of: zero1, zero1_offload, zero2, zero3, or a path"),
        ("{", "not JSON"),
        ("{}", "Set zero_optimization.stage"),
        ('{"zero_optimization": {"stage": 0}}', "stage is 0. Set it to 1, 2 or 3"),
        (
            '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}',
            "offload_optimizer.device: nvme is unsupported",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "train_batch_size": 4}',
            "train_batch_size does not belong in a ZeRO policy",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "wall_clock_breakdown": []}',
            r"wall_clock_breakdown is \[\]. Set it to true or false",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "comms_logger": null}',
            "comms_logger is None. Set it to an object",
        ),
    ],
)
def test_policies_that_are_none(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        load_policy(str(tmp_path / "p.json"))


def test_precision():
    assert World(0, 1, torch.device("cuda")).dtype("auto") == torch.bfloat16
    assert World(0, 1, torch.device("cuda")).dtype("fp32") == torch.float32
    assert World(0, 1, CPU).dtype("bf16") == torch.bfloat16


def test_one_rank_of_each_host_reads_files():
    """The deepspeed launcher on two hosts with two ranks each."""
    given = [
        {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2), "LOCAL_SIZE": "2"} for rank in range(4)
    ]
    assert [World.from_environment(one).reads_files for one in given] == [True, False, True, False]
    assert World.from_environment({}).reads_files

"""Checkpoint folders: what becomes the latest, what is refused, what is removed."""

import json
import re

import pytest
import torch

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.training import checkpoint
from ma2mba.training.recipe import parse_recipe
from ma2mba.training.world import World, ZeroPolicy

VALUES = {
    "stage": "stage1",
    "data": "d",
    "init_from": "m",
    "trainable": {"projector": 1.0},
    "global_batch": 4,
    "steps": 9,
}


def recipe(run, **changes):
    return parse_recipe(VALUES | {"run": str(run)} | changes)


def save(run, step, keep_last=None):
    temporary = checkpoint.temporary_folder(run, step)
    (temporary / "model").mkdir(parents=True)
    (temporary / "model" / "weights").write_text(f"weights {step}")
    facts = {"ranks": 2, "zero_stage": 1, "dtype": "torch.float32", "data_fingerprint": "f"}
    facts["recipe"] = recipe(run).model_dump(mode="json")
    return checkpoint.publish(run, step, keep_last, Position(0, step * 4), facts)


def test_the_latest_is_found_and_read(tmp_path):
    save(tmp_path, 3)
    folder = save(tmp_path, 6)
    start = checkpoint.find_start(recipe(tmp_path))
    assert (start.folder, start.state.step, start.state.cursor) == (folder, 6, 24)
    assert checkpoint.model_folder(tmp_path) == folder / "model"
    assert checkpoint.model_folder(folder) == folder / "model"
    assert checkpoint.model_folder(folder / "model") == folder / "model"


def test_a_new_run_has_no_start(tmp_path):
    assert checkpoint.find_start(recipe(tmp_path / "new")) is None
    assert checkpoint.find_start(recipe(tmp_path / "new", resume="none")) is None


def test_killed_saves_change_nothing_and_are_removed(tmp_path):
    save(tmp_path, 3)
    (checkpoint.temporary_folder(tmp_path, 6) / "model").mkdir(parents=True)
    unnamed = tmp_path / "checkpoints" / "step-000006"
    unnamed.mkdir()
    assert checkpoint.find_start(recipe(tmp_path)).state.step == 3
    checkpoint.clear_temporary(tmp_path)
    assert not checkpoint.temporary_folder(tmp_path, 6).exists()
    assert save(tmp_path, 6) == unnamed
    assert checkpoint.find_start(recipe(tmp_path)).state.step == 6


def test_checkpoints_without_a_latest_never_start_over_silently(tmp_path):
    folder = save(tmp_path, 3)
    (folder.parent / "latest").unlink()
    with pytest.raises(UserError, match="has checkpoints but no file latest; choose one with resume="):
        checkpoint.find_start(recipe(tmp_path))
    assert checkpoint.find_start(recipe(tmp_path, resume=str(folder))).state.step == 3


def test_only_the_newest_are_kept(tmp_path):
    for step in (3, 6, 9, 1000000):
        save(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-000009", "step-1000000"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda folder: (folder / "model" / "weights").write_text("cut"),
            "1 files are missing or cut off (first model/weights)",
        ),
        (lambda folder: (folder / "model" / "weights").unlink(), "missing or cut off"),
        (lambda folder: (folder / "trainer.json").unlink(), "not a whole checkpoint"),
        (lambda folder: (folder / "trainer.json").write_text("{"), "trainer.json: damaged"),
        (lambda folder: folder.rename(folder.with_name("gone")), "not a whole checkpoint"),
        (lambda folder: (folder.parent / "latest").write_text("step"), "holds 'step', not the name of a checkpoint"),
    ],
)
def test_a_latest_that_names_nothing_whole_is_refused(tmp_path, damage, expected):
    save(tmp_path, 3)
    damage(save(tmp_path, 6))
    with pytest.raises(UserError, match=re.escape(expected)):
        checkpoint.find_start(recipe(tmp_path))


def test_resume_none_and_paths(tmp_path):
    old, new = save(tmp_path, 3), save(tmp_path, 6)
    with pytest.raises(UserError, match="has checkpoints already"):
        checkpoint.find_start(recipe(tmp_path, resume="none"))
    with pytest.raises(UserError, match="has gone on to step-000006"):
        checkpoint.find_start(recipe(tmp_path, resume=str(old)))
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find_start(recipe(tmp_path, resume=str(tmp_path / "step-000009")))
    assert checkpoint.find_start(recipe(tmp_path, resume=str(new))).state.step == 6
    assert checkpoint.find_start(recipe(tmp_path / "branch", resume=str(old))).state.step == 3
    assert checkpoint.find_start(recipe(tmp_path / "branch", resume=str(tmp_path))).state.step == 6


def test_going_on_otherwise_is_refused_naming_every_difference(tmp_path):
    save(tmp_path, 3)
    start = checkpoint.find_start(recipe(tmp_path))
    world, policy = World(0, 2, torch.device("cpu")), ZeroPolicy({}, 1)
    start.check(recipe(tmp_path, precision="fp32", steps=20), world, policy, "f")
    start.check(recipe(tmp_path, precision="fp32", parallel={"sequence": 2}), world, policy, "f")
    changed = recipe(tmp_path, precision="bf16", seed=5, global_batch=8, trainable={"vision": 1.0})
    with pytest.raises(UserError) as caught:
        start.check(changed, World(0, 4, world.device), ZeroPolicy({}, 3), "g")
    named = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert named == [
        "seed",
        "global_batch",
        "trainable",
        "precision",
        "number of ranks",
        "stage of zero_config",
        "data (fingerprint)",
    ]


def test_trainer_json_is_plain(tmp_path):
    content = json.loads((save(tmp_path, 3) / "trainer.json").read_text())
    assert content["step"] == 3
    assert content["files"] == {"model/weights": 9}
    assert content["recipe"]["global_batch"] == 4

"""Checkpoint folders: which one is the latest, which are refused, which are removed."""

import json
import re

import pytest
import torch

from ma2mba.data.sampler import Position
from ma2mba.errors import UserError
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.code_version import code_version
from ma2mba.training.checkpoint.optimizer_files import write_fragments
from ma2mba.training.checkpoint.resume import find_start
from ma2mba.training.checkpoint.rng import RandomState
from ma2mba.training.checkpoint.zero_state import Fragment
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World

CPU = torch.device("cpu")

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


def save(run, step, keep_last=None, keep_every=None):
    temporary = checkpoint.temporary_folder(run, step)
    (temporary / "model").mkdir(parents=True)
    (temporary / "model" / "weights").write_text(f"weights {step}")
    write_ranks(temporary, step)
    facts = {"ranks": 2, "zero_stage": 1, "dtype": "torch.float32", "data_fingerprint": "f"}
    facts |= {"recipe": recipe(run).model_dump(mode="json"), "code": code_version()}
    folder = checkpoint.publish(run, step, Position(0, step * 4), facts)
    checkpoint.prune(folder, keep_last, keep_every)
    return folder


def write_ranks(temporary, step):
    for rank in range(2):
        share = Fragment("a", 2 * rank, {"weight": torch.full((2,), float(step))})
        files = write_fragments([share], step, rank, temporary / "optimizer")
        checkpoint.write_rank(temporary, rank, checkpoint.RankState(random=RandomState.capture(CPU), files=files))


def test_the_latest_is_found_and_read(tmp_path):
    save(tmp_path, 3)
    folder = save(tmp_path, 6)
    start = find_start(recipe(tmp_path))
    assert (start.folder, start.state.step, start.state.cursor) == (folder, 6, 24)
    assert checkpoint.model_folder(tmp_path) == folder / "model"
    assert checkpoint.model_folder(folder) == folder / "model"
    assert checkpoint.model_folder(folder / "model") == folder / "model"


def test_a_new_run_has_no_start(tmp_path):
    assert find_start(recipe(tmp_path / "new")) is None
    assert find_start(recipe(tmp_path / "new", resume="none")) is None


def test_killed_saves_change_nothing_and_are_removed(tmp_path):
    save(tmp_path, 3)
    (checkpoint.temporary_folder(tmp_path, 6) / "model").mkdir(parents=True)
    unnamed = tmp_path / "checkpoints" / "step-000006"
    unnamed.mkdir()
    assert find_start(recipe(tmp_path)).state.step == 3
    checkpoint.clear_temporary(tmp_path)
    assert not checkpoint.temporary_folder(tmp_path, 6).exists()
    assert save(tmp_path, 6) == unnamed
    assert find_start(recipe(tmp_path)).state.step == 6


def test_checkpoints_without_a_latest_never_start_over_silently(tmp_path):
    first, second = save(tmp_path, 3), save(tmp_path, 6)
    (first.parent / "latest").unlink()
    assert find_start(recipe(tmp_path)).state.step == 6
    (second / "model" / "weights").write_text("weights 7")
    assert find_start(recipe(tmp_path)).state.step == 3
    (first / "trainer.json").unlink()
    with pytest.raises(UserError, match="has no file latest, and none of its checkpoints is complete"):
        find_start(recipe(tmp_path))


def test_only_the_newest_are_kept(tmp_path):
    for step in (3, 6, 9, 1000000):
        save(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000009", "step-1000000"]


def test_multiples_of_keep_every_are_kept_forever(tmp_path):
    for step in (2, 4, 6, 8, 10, 12):
        save(tmp_path, step, keep_last=1, keep_every=4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == [
        "step-000004",
        "step-000008",
        "step-000012",
    ]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda folder: (folder / "model" / "weights").write_text("cut"),
            "model/weights: has 3 bytes instead of 9",
        ),
        (lambda folder: (folder / "model" / "weights").unlink(), "model/weights: is missing"),
        (lambda folder: (folder / "optimizer" / "rank-00001-000.safetensors").unlink(), "-000.safetensors: is missing"),
        (lambda folder: (folder / "trainer.json.xxh3").unlink(), "not a complete checkpoint"),
        (lambda folder: (folder / "trainer.json").unlink(), "not a complete checkpoint"),
        (lambda folder: (folder / "trainer.json").write_text("{"), "trainer.json: damaged"),
        (lambda folder: folder.rename(folder.with_name("gone")), "not a complete checkpoint"),
        (lambda folder: (folder.parent / "latest").write_text("step"), "holds 'step', not the name of a checkpoint"),
    ],
)
def test_a_latest_that_names_no_complete_checkpoint_is_refused(tmp_path, damage, expected):
    save(tmp_path, 3)
    damage(save(tmp_path, 6))
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        find_start(recipe(tmp_path))
    assert "complete: step-000003)" in str(caught.value) or "latest: holds" in str(caught.value)


def test_a_flipped_byte_in_any_file_is_refused_and_an_older_checkpoint_taken_when_asked(tmp_path):
    old, new = save(tmp_path, 3), save(tmp_path, 6)
    files = sorted(p for p in new.rglob("*") if p.is_file())
    assert len(files) == 7
    for path in files:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(UserError, match="complete: step-000003") as caught:
                find_start(recipe(tmp_path))
            assert path.name.removesuffix(".xxh3") in str(caught.value)
            assert find_start(recipe(tmp_path, resume=str(old))).state.step == 3
        path.write_bytes(whole)
    assert find_start(recipe(tmp_path)).state.step == 6


def test_files_that_a_rank_wrote_and_others_do_not_see_stop_a_save(tmp_path):
    temporary = checkpoint.temporary_folder(tmp_path, 3)
    write_ranks(temporary, 3)
    (temporary / "optimizer" / "rank-00001-000.safetensors").unlink()
    with pytest.raises(OSError, match="written by another rank but not visible") as caught:
        checkpoint.publish(tmp_path, 3, Position(), {})
    assert caught.value.filename.endswith("optimizer/rank-00001-000.safetensors")


def test_a_run_whose_checkpoints_are_gone_does_not_restart_automatically(tmp_path):
    run = recipe(tmp_path, checkpoint={"every": 3})
    (tmp_path / "recipe.yaml").write_text("checkpoint: {every: 3}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3}\n{"step": 4, "lr": {}')
    assert find_start(run) is None  # killed before its first checkpoint was there
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    with pytest.raises(UserError, match="has taken 4 steps and saves every 3 steps, but its checkpoints are missing"):
        find_start(run)
    assert find_start(recipe(tmp_path, resume="none")) is None


def test_a_run_that_was_killed_while_its_first_checkpoint_was_written_begins_again(tmp_path):
    run = recipe(tmp_path, checkpoint={"every": 3})
    (tmp_path / "recipe.yaml").write_text("checkpoint: {every: 3}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 6}\n')
    checkpoint.temporary_folder(tmp_path, 3).mkdir(parents=True)
    assert find_start(run) is None
    checkpoint.temporary_folder(tmp_path, 3).rename(checkpoint.temporary_folder(tmp_path, 6))
    with pytest.raises(UserError, match="its checkpoints are missing"):  # the first one was complete
        find_start(run)
    checkpoint.temporary_folder(tmp_path, 6).rename(checkpoint.temporary_folder(tmp_path, 3))
    (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n')
    with pytest.raises(UserError, match="its checkpoints are missing"):
        find_start(run)


def test_resume_none_and_paths(tmp_path):
    old, new = save(tmp_path, 3), save(tmp_path, 6)
    with pytest.raises(UserError, match="already has checkpoints"):
        find_start(recipe(tmp_path, resume="none"))
    with pytest.raises(UserError, match="already continues to step-000006"):
        find_start(recipe(tmp_path, resume=str(old)))
    with pytest.raises(UserError, match="does not exist"):
        find_start(recipe(tmp_path, resume=str(tmp_path / "step-000009")))
    assert find_start(recipe(tmp_path, resume=str(new))).state.step == 6
    assert find_start(recipe(tmp_path / "branch", resume=str(old))).state.step == 3
    assert find_start(recipe(tmp_path / "branch", resume=str(tmp_path))).state.step == 6


def test_resuming_with_other_settings_is_refused_naming_every_difference(tmp_path):
    save(tmp_path, 3)
    start = find_start(recipe(tmp_path))
    start.check(recipe(tmp_path, precision="fp32", steps=20), World(0, 4, CPU), "f")
    start.check(recipe(tmp_path, precision="fp32", parallel={"sequence": 2}), World(0, 2, CPU), "f")
    changed = recipe(tmp_path, precision="bf16", seed=5, global_batch=8, trainable={"vision": 1.0})
    with pytest.raises(UserError) as caught:
        start.check(changed, World(0, 2, CPU), "g")
    named = [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert named == [
        "seed",
        "global_batch",
        "trainable",
        "precision",
        "data (fingerprint)",
    ]


def test_trainer_json_is_plain(tmp_path):
    content = json.loads((save(tmp_path, 3) / "trainer.json").read_text())
    assert content["step"] == 3
    assert content["code"]["version"]
    assert content["files"][0]["name"] == "model/weights"
    assert content["files"][0]["bytes"] == 9
    assert content["recipe"]["global_batch"] == 4

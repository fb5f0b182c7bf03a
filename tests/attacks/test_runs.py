"""Runs, checkpoints and replay files from strangers: names stay inside, damage is one line, and no victim changes."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ma2mba.magc import Plan
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.checkpoint.optimizer_files import read_fragments
from ma2mba.training.checkpoint.resume import find_start
from ma2mba.training.checkpoint.save import resume
from ma2mba.training.checkpoint.zero_state import Fragment
from ma2mba.training.faults import failures, heartbeat, replay
from ma2mba.training.faults.replay import MicroBatchRecord, StepRecord
from ma2mba.training.metrics import keep_until
from ma2mba.training.model_source import find_source
from ma2mba.training.world import World
from tests.attacks.model_folders import (
    CPU,
    attempt,
    change_tensors,
    make_model,
    make_recipe,
    make_run,
    require_refused,
    sign_checkpoint,
    sign_model,
    sign_state,
)
from tests.forked import run
from tests.unit.data.toy_shards import write_shards

DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "run", (3, 6))
    return folder / "run"


@pytest.fixture
def foreign(made, tmp_path):
    """A run with checkpoints of the steps 3 and 6; a victim beside it."""
    (tmp_path / "victim").write_text("as it was")
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def step(foreign):
    return foreign / "checkpoints" / "step-000006"


def export(foreign):
    return run("export", foreign, "--out", foreign.parent / "out")


def resumed(foreign):
    """Find the checkpoint that training would resume from, and build its model."""
    recipe = make_recipe(foreign)
    return attempt(lambda: find_source(recipe, find_start(recipe)).build(0))


def started(foreign):
    """Start a new run from the latest model of this run."""
    return attempt(lambda: find_source(make_recipe(foreign.parent / "new", init_from=str(foreign))).build(0))


def require_all_refuse(foreign, *named):
    for outcome in (run("inspect", foreign), export(foreign), resumed(foreign), started(foreign)):
        require_refused(outcome, *named)
    assert (foreign.parent / "victim").read_text() == "as it was"
    assert not (foreign.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"step": 7}, "is of step 7, not of step-000006"),
        (lambda state: state | {"files": state["files"] * 2}, "lists a file twice"),
    ],
)
def test_a_checkpoint_of_another_step_or_with_a_file_twice_is_refused(foreign, step, change, said):
    sign_checkpoint(step, change)
    require_all_refuse(foreign, said)


@pytest.mark.parametrize("name", ["step-000009", "step-000006/model/out"])
def test_export_writes_nothing_among_the_checkpoints(foreign, name):
    outcome = run("export", foreign, "--out", foreign / "checkpoints" / name)
    require_refused(outcome, name, "lies within the checkpoints")
    assert not (foreign / "checkpoints" / name).exists()


def test_a_sound_run_is_used(foreign):
    assert json.loads(run("inspect", foreign, "--json").out)["latest"] == "step-000006"
    for outcome in (export(foreign), resumed(foreign), started(foreign)):
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"../../victim",
        b"/etc",
        b"step-000006/../../..",
        "step-٠٠٠٠٠٦".encode(),
        b"step-000006\0",
        b"step-" + b"9" * 200,
        b"step-000009",
        b"step-000006\n" * 1000,
    ],
)
def test_latest_names_a_checkpoint(foreign, content):
    (foreign / "checkpoints" / "latest").write_bytes(content)
    require_all_refuse(foreign, str(foreign))


def test_latest_is_a_small_regular_file(foreign):
    path = foreign / "checkpoints" / "latest"
    makers = (os.mkfifo, lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir())
    for make in (*makers, lambda p: p.symlink_to(foreign.parent / "victim")):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)
        require_all_refuse(foreign, "latest")


@pytest.mark.parametrize("name", ["../../../victim", "/etc/hostname", "a\0b", "a\nb", "", "\ud83d", "ranks/../../x"])
def test_names_in_trainer_json_stay_inside(foreign, step, name):
    entry = {"name": name, "bytes": 9, "xxh3": "0" * 32}
    sign_checkpoint(step, lambda state: state["files"].insert(0, entry))
    require_all_refuse(foreign, "trainer.json")


@pytest.mark.parametrize("name", ["trainer.json", "trainer.json.xxh3", "model", "ranks", "optimizer"])
def test_fixed_names_in_a_checkpoint_stay_inside(foreign, step, name):
    shutil.move(step / name, foreign.parent / "moved")
    (step / name).symlink_to(foreign.parent / "moved")
    require_all_refuse(foreign, str(step), "symbolic link that leads out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", 10**30),
        ("step", "six"),
        ("cursor", 1e300),
        ("files", None),
        ("files", {"a": 1}),
        ("files", [[]]),
        ("files", [{"name": 3, "bytes": "x", "xxh3": None}]),
        ("recipe", []),
        ("code", {"version": 3}),
        ("extra", 1),
    ],
)
def test_a_trainer_json_of_other_values_is_refused(foreign, step, key, value):
    sign_checkpoint(step, lambda state: state | {key: value})
    require_all_refuse(foreign, "trainer.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        DEEP,
        b"\xff",
        b'{"step": 1, "step": 2}',
        b'{"step": ' + b"9" * 5000 + b"}",
        b"[" + b"{}," * (5 << 19) + b"{}]",
        b'{"files": [' + b'{"name":"","bytes":0,"xxh3":""},' * 200_000 + b"{}]}",
        bytes(9 << 20),
    ],
)
def test_a_trainer_json_that_is_none_is_refused(foreign, step, content):
    sign_state(step, content)
    require_refused(run("inspect", foreign), "trainer.json")
    require_refused(resumed(foreign), "trainer.json")


@pytest.mark.parametrize(
    "recipe", [{}, {"trainable": None}, {"trainable": [1]}, {"stage": ["x"] * 1000, "trainable": {"projector": 1.0}}]
)
def test_a_checkpoint_of_another_recipe_is_refused(foreign, step, recipe):
    sign_checkpoint(step, lambda state: state | {"recipe": recipe})
    now = make_recipe(foreign)
    require_refused(attempt(lambda: find_start(now).check(now, World(0, 1, CPU), "f")), "different settings")


def test_a_model_in_a_checkpoint_is_checked_like_any_other(foreign, step):
    change_tensors(step / "model", lambda tensors: tensors["projector.0.weight"].fill_(float("inf")))
    sign_checkpoint(step)
    for outcome in (export(foreign), resumed(foreign), started(foreign)):
        require_refused(outcome, "projector.0.weight", "NaN or infinite")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"config.json": []}', DEEP])
def test_checksums_of_another_shape_are_refused(foreign, step, content):
    (step / "model" / "checksums.json").write_bytes(content)
    sign_checkpoint(step)
    for outcome in (export(foreign), resumed(foreign), started(foreign)):
        require_refused(outcome, "checksums.json")


# What inspect reads beside the checkpoints


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\n",
        b"3\n4\n",
        b"[]\n",
        b'{"loss": "abc", "step": 3}\n',
        b'{"loss": 1, "step": "x"}\n',
        b'{"loss": 1, "step": NaN}\n',
        b'{"loss": 1, "step": -1}\n',
        b'{"loss": 1' + b"0" * 4000 + b', "step": 1}\n',
        b'{"loss": null}\n',
        b'{"loss": {}, "step": 1}\n',
        b"not json\n" + b'{"loss": 1, "step": 1}\n',
        DEEP + b"\n{}\n",
        b"x" * (2 << 20),
    ],
)
def test_metrics_of_another_shape_are_refused(foreign, content):
    path = foreign / "metrics.jsonl"
    path.write_bytes(content)
    require_refused(run("inspect", foreign), "metrics.jsonl")
    if b"loss" not in content:
        require_refused(attempt(lambda: keep_until(path, 3)), "metrics.jsonl")
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.yaml"])
def test_metrics_and_recipe_are_regular_files_of_the_run(foreign, name):
    path = foreign / name
    for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(foreign.parent / "victim")):
        path.unlink()
        make(path)
        require_refused(run("inspect", foreign), name)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    require_refused(run("inspect", foreign), name)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\xff", b"[]", b"stage: [1]", b"stage: 2001-13-45", b"a: &a [*a]", b"- " * 9999, b"stage: a\nstage: b"],
)
def test_a_recipe_of_another_shape_is_refused(foreign, content):
    (foreign / "recipe.yaml").write_bytes(content)
    require_refused(run("inspect", foreign), "recipe.yaml")


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"stage: a", b"checkpoint: {every: many}", b"checkpoint: 3"])
def test_a_run_without_checkpoints_is_read_as_carefully(foreign, content):
    shutil.rmtree(foreign / "checkpoints")
    (foreign / "recipe.yaml").write_bytes(content)
    require_refused(resumed(foreign), str(foreign))


@pytest.mark.parametrize("name", checkpoint.RUN_ENTRIES)
def test_training_writes_through_no_link_that_leads_out(foreign, name):
    path = foreign / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(foreign.parent / "victim")
    require_refused(resumed(foreign), name, "symbolic link that leads out")
    path.unlink()
    path.symlink_to(foreign.parent / "not-there")
    require_refused(resumed(foreign), name)
    assert not (foreign.parent / "not-there").exists()
    assert (foreign.parent / "victim").read_text() == "as it was"


def test_the_entries_of_a_run_are_those_that_training_writes():
    written = {failures.FAILURES, failures.STUCK, heartbeat.ALIVE, replay.REPLAY, checkpoint.CHECKPOINTS}
    assert written < set(checkpoint.RUN_ENTRIES)


# The optimizer and the random number generators


def piece(length=4, start=0):
    return Fragment("a", start, {key: torch.zeros(length) for key in ("weight", "exp_avg", "exp_avg_sq")})


def write_optimizer(path, about, **tensors):
    whole = {f"{key}/a": torch.ones(4) for key in ("weight", "exp_avg", "exp_avg_sq")}
    whole |= {f"{key}/a": t for key, t in tensors.items()}
    save_file(whole, path, metadata={"ma2mba": about if isinstance(about, str) else json.dumps(about)})


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ("null", {}),
        ("[" * 100_000, {}),
        ({"steps": 1}, {}),
        ({"steps": "x", "starts": {"a": 0}}, {}),
        ({"steps": 1, "starts": [1]}, {}),
        ({"steps": 1, "starts": {"a": None}}, {}),
        ({"steps": 1, "starts": {"a": -2}}, {}),
        ({"steps": 1, "starts": {"a": 10**30}}, {}),
        ({"steps": 1, "starts": {"b": 0}}, {}),
        ({"steps": 1, "starts": {"a": 0}}, {"exp_avg": torch.ones(1)}),
        ({"steps": 1, "starts": {"a": 0}}, {"exp_avg": torch.ones(2, 2)}),
        ({"steps": 1, "starts": {"a": 0}}, {"exp_avg": torch.ones(4, dtype=torch.int64)}),
        ({"steps": 1, "starts": {"a": 0}}, {"weight": torch.tensor([1, float("nan"), 1, 1])}),
        ({"steps": 1, "starts": {"a": 0}}, {"exp_avg_sq": torch.tensor([1, float("inf"), 1, 1])}),
    ],
)
def test_an_optimizer_file_of_other_values_is_refused(tmp_path, about, tensors):
    write_optimizer(tmp_path / "rank-00000-000.safetensors", about, **tensors)
    require_refused(attempt(lambda: read_fragments([piece()], tmp_path)), str(tmp_path))


def test_overlapping_fragments_hide_no_hole(tmp_path):
    for number in range(2):
        write_optimizer(tmp_path / f"rank-00000-00{number}.safetensors", {"steps": 1, "starts": {"a": 0}})
    require_refused(attempt(lambda: read_fragments([piece(8)], tmp_path)), "holds 4 of the 8 elements")


def test_optimizer_files_are_regular_files_of_the_folder(tmp_path):
    path = tmp_path / "o" / "rank-00000-000.safetensors"
    path.parent.mkdir()
    write_optimizer(tmp_path / "elsewhere", {"steps": 1, "starts": {"a": 0}})
    for make in (lambda p: p.symlink_to(tmp_path / "elsewhere"), os.mkfifo, lambda p: p.write_bytes(b"\x80\x04cos")):
        path.unlink(missing_ok=True)
        make(path)
        require_refused(attempt(lambda: read_fragments([piece()], path.parent)), str(path.parent), path.name)


class _Engine:
    """What `resume` needs of an engine, without an optimizer."""

    class world:
        rank, device = 0, CPU

    def load(self, folder):
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda random: random.update(torch_cpu="00"),
        lambda random: random.update(torch_cpu="zz"),
        lambda random: random["numpy"].update(bit_generator="PCG64"),
        lambda random: random["numpy"]["state"].update(pos=10**6),
        lambda random: random["numpy"]["state"].update(pos=-1),
        lambda random: random["numpy"]["state"].update(key=[1]),
        lambda random: random["numpy"]["state"].update(key=[2**40] * 624),
        lambda random: random["numpy"].update(state=None),
        lambda random: random["numpy"].update(gauss="x"),
        lambda random: random.update(python=[3, [1], None]),
        lambda random: random.update(python=[3, [10**20] * 625, None]),
        lambda random: random.update(python=[99, random["python"][1], None]),
        lambda random: random.update(python=[3, [*random["python"][1][:-1], 2**31], None]),
    ],
)
def test_random_states_that_are_none_are_refused(step, change):
    path = step / "ranks" / "rank-00000.json"
    state = json.loads(path.read_text())
    change(state["random"])
    path.write_text(json.dumps(state))
    sign_checkpoint(step)
    require_refused(attempt(lambda: resume(_Engine(), checkpoint.read(step), 0)), "ranks")


# Replay


@pytest.fixture
def saved(tmp_path):
    """A step that can be replayed, as a dictionary; and how to replay another one."""
    write_shards(tmp_path / "shards", [(3, 4), (0, 5)])
    model = make_model(tmp_path / "model")
    shutil.copy(tmp_path / "shards" / "tokenizer.json", model / "tokenizer.json")
    sign_model(model)
    recipe = make_recipe(
        tmp_path / "run", data=str(tmp_path / "shards"), init_from=str(model), trainable={"language_model": 1e-3}
    )
    record = StepRecord(
        step=4,
        loss=float("nan"),
        gradient_norm=float("inf"),
        checkpoint=None,
        dtype="torch.float32",
        plan=vars(Plan(chunk_tokens=16)),
        recipe=recipe.model_dump(mode="json"),
        micro_batches=[[MicroBatchRecord(samples=[0, 1], sample_ids=["s0", "s1"], loss=1.0)]],
    )
    return json.loads(record.model_dump_json())


HARMLESS = [("plan", {}), ("plan", {"group_layers": 10**9}), ("recipe.parallel", {"sequence": 10**9})]
"""The defaults, all layers in one group, and chunks of one token."""


def replayed(tmp_path, content):
    path = tmp_path / "step-000004.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return run("replay", path, "--device", "cpu")


def test_a_sound_step_is_replayed(saved, tmp_path):
    assert replayed(tmp_path, saved).code == 0
    assert replayed(tmp_path, saved | {"plan": saved["plan"] | {"stash": "host"}}).code == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("step", 10**30),
        ("step", "4"[:0]),
        ("dtype", "torch.load"),
        ("dtype", "torch.int8"),
        ("dtype", "os"),
        ("checkpoint", "/another/machine/run/checkpoints/step-000003"),
        ("checkpoint", "a\0b"),
        ("checkpoint", ""),
        ("checkpoint", 3),
        ("plan", {}),
        ("plan", {"chunk_tokens": -1}),
        ("plan", {"chunk_tokens": "many"}),
        ("plan", {"another_version": 1}),
        ("plan", {"group_layers": 10**9}),
        ("plan", {"stash": "disk"}),
        ("plan", [1]),
        ("recipe", {}),
        ("recipe", None),
        ("recipe.trainable", {}),
        ("recipe.data", "/another/machine/shards"),
        ("recipe.data", []),
        ("recipe.init_from", "/another/machine/model"),
        ("recipe.another_version", 1),
        ("recipe.parallel", {"sequence": 10**9}),
        ("recipe.parallel", {"sequence": -8}),
        ("micro_batches", None),
        ("micro_batches", [[{"samples": [0, 1], "sample_ids": ["s0"], "loss": 1}]]),
        ("micro_batches", [[{"samples": [-1], "sample_ids": ["s1"], "loss": 1}]]),
        ("micro_batches", [[{"samples": [10**30], "sample_ids": ["s1"], "loss": 1}]]),
        ("micro_batches", [[{"samples": [7], "sample_ids": ["s7"], "loss": 1}]]),
        ("micro_batches", {}),
    ],
)
def test_a_step_of_another_machine_or_version_is_refused(saved, tmp_path, key, value):
    section, _, last = key.rpartition(".")
    (saved[section] if section else saved)[last] = value
    outcome = replayed(tmp_path, saved)
    if (key, value) in HARMLESS:
        assert outcome.code == 0, outcome.err
    else:
        require_refused(outcome)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff", DEEP, b'{"step": 1, "step": 2}', bytes(65 << 20)])
def test_a_replay_file_that_is_none_is_refused(tmp_path, content):
    require_refused(replayed(tmp_path, content), "step-000004.json")


def test_a_replay_file_is_a_regular_file(tmp_path):
    path = tmp_path / "step.json"
    for make in (os.mkfifo, lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir()):
        path.unlink(missing_ok=True)
        make(path)
        require_refused(run("replay", path, "--device", "cpu"), "step.json")

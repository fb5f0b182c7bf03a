"""Models on the Hugging Face hub, from its cache: names, revisions, and which files are read."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.hub import HubName, fetch, hub_name
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.pretrained import load_model
from ma2mba.model.published import load_vision, published_config
from ma2mba.training.job import build
from ma2mba.training.model_source import find_source, pin
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.world import World
from tests import published
from tests.attacks.model_folders import attempt, make_model, make_recipe, make_run, require_refused
from tests.forked import run
from tests.published import COMMIT
from tests.tiny import TINY_MODEL
from tests.unit.annotations.local_hub import serve
from tests.unit.data.toy_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]

OTHER = "f" * 40


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache, offline: the client reads its variables when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", HubName("a/b")),
        ("state-spaces/mamba2-2.7b", HubName("state-spaces/mamba2-2.7b")),
        ("a/b@main", HubName("a/b", "main")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        (f"a/b@{COMMIT}", HubName("a/b", COMMIT)),
        *[
            (text, None)
            for text in ("a", "/a/b", "./a/b", "../a", "a/b/c", "a/..", "a/b@", "a/b@../x", "here/there", "a b/c")
        ],
    ],
)
def test_a_hub_name_is_told_from_a_path(text, name, tmp_path):
    (tmp_path / "here" / "there").mkdir(parents=True)
    assert hub_name(text) == name


def test_a_revision_becomes_a_commit(hub, tmp_path):
    published.state_spaces(tmp_path / "source")
    published.publish(tmp_path / "source", hub, "a/b")
    published.publish(tmp_path / "source", hub, "a/b", OTHER, "v2")
    for text, commit in (("a/b", COMMIT), ("a/b@main", COMMIT), ("a/b@v2", OTHER), (f"a/b@{OTHER}", OTHER)):
        assert fetch(text).name == commit
        assert hub_name(text).pinned() == HubName("a/b", commit)
    for text in ("a/b@v3", "a/c", f"a/b@{'0' * 40}"):
        with pytest.raises(UserError, match=f"{text}: no such folder, and config.json of the hub"):
            fetch(text)


def test_published_weights_are_imported_by_name_and_revision(hub, tmp_path):
    model = published.state_spaces(tmp_path / "source")
    published.publish(tmp_path / "source", hub, "state-spaces/mamba2-tiny", COMMIT, "v1")
    for source in (["state-spaces/mamba2-tiny@v1"], ["state-spaces/mamba2-tiny", "--revision", "v1"]):
        out = tmp_path / f"out-{len(source)}"
        outcome = run("import", "state-spaces", *source, "--out", out)
        assert outcome.code == 0, outcome.err
        assert COMMIT in (out / "origin.json").read_text()
    outcome = run("import", "state-spaces", "state-spaces/mamba2-tiny", "--out", tmp_path / "main")
    assert outcome.refused
    assert "hub" in outcome.err
    for wrong in ("", "..", "-x"):
        assert run("import", "state-spaces", "a/b", "--out", tmp_path / "x", f"--revision={wrong}").refused
    assert run("import", "state-spaces", tmp_path / "source", "--out", tmp_path / "x", "--revision", "v1").refused
    assert model is not None


def whole(tmp_path, hub) -> dict[str, str]:
    """Publish a language model and an encoder; return what init_from names."""
    published.state_spaces(tmp_path / "language")
    published.publish(tmp_path / "language", hub, "a/language")
    published.clip(tmp_path / "clip", whole=True, pickled=True)
    published.publish(tmp_path / "clip", hub, "a/clip")
    return {"language_model": "a/language", "vision": "a/clip"}


def same(model, other) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == n and torch.equal(t, o) for (name, t), (n, o) in pairs)


def test_a_run_starts_from_hub_names_as_from_folders(hub, tmp_path, caplog):
    names = whole(tmp_path, hub)
    by_name = make_recipe(tmp_path / "run", init_from=names)
    folders = {"language_model": str(tmp_path / "language"), "vision": str(tmp_path / "clip")}
    by_folder = make_recipe(tmp_path / "run", init_from=folders)
    with caplog.at_level(logging.INFO):
        pinned = pin(by_name)
    assert pinned.model_dump()["init_from"] == {key: f"{name}@{COMMIT}" for key, name in names.items()}
    assert caplog.text.count(f"is commit {COMMIT}") == 2
    assert pin(by_folder) == by_folder
    one, other = (find_source(recipe).build(0) for recipe in (pinned, by_folder))
    assert same(one, other)
    assert one.config == published_config(*folders.values())


def test_a_resumed_run_keeps_its_commit(hub, tmp_path):
    names = whole(tmp_path, hub)
    before = {key: f"{name}@{OTHER}" for key, name in names.items()}
    start = SimpleNamespace(state=SimpleNamespace(recipe={"init_from": before}))
    resumed = pin(make_recipe(tmp_path / "run", init_from=names), start)
    assert resumed.model_dump()["init_from"] == before
    other = make_recipe(tmp_path / "run", init_from={"language_model": "x/y", "vision": "x/z@v1"})
    assert pin(other, start) == other  # nothing is read from the hub


def test_a_component_is_taken_from_a_model_or_a_run(hub, tmp_path):
    folder = make_model(tmp_path / "model")
    make_run(tmp_path / "run")
    published.publish(folder, hub, "a/model")
    model, _ = load_model(folder, dtype="fp32")
    for source in (folder, tmp_path / "run", "a/model", "a/model@main"):
        recipe = make_recipe(tmp_path / "new", init_from={"language_model": str(source), "vision": str(source)})
        built = find_source(recipe).build(3)
        assert built.config == model.config
        assert same(built.language_model, model.language_model)
        assert same(built.vision, model.vision)
        assert not same(built.projector, model.projector)
        assert same(load_vision(str(source)), model.vision)
    assert same(find_source(make_recipe(tmp_path / "new", init_from="a/model")).build(0), model)


def test_one_part_alone_needs_the_description_of_the_other(hub, tmp_path):
    names = whole(tmp_path, hub)
    published.transformers(tmp_path / "hf")
    for source in (names["language_model"], str(tmp_path / "hf"), names["vision"]):
        require_refused(attempt(lambda s=source: find_source(make_recipe(tmp_path / "run", init_from=s))), "alone")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    recipe = make_recipe(tmp_path / "run", init_from=str(tmp_path / "clip"), model=TINY_MODEL)
    assert same(find_source(recipe).build(0).vision, load_vision(names["vision"]))


def test_another_language_model_than_the_recipe_s_is_refused(hub, tmp_path):
    folder = make_model(tmp_path / "model")
    language = TINY_MODEL["language_model"] | {"ssd_block": 8}
    recipe = make_recipe(
        tmp_path / "run", init_from={"language_model": str(folder)}, model=TINY_MODEL | {"language_model": language}
    )
    require_refused(attempt(lambda: find_source(recipe).build(0)), "model.language_model")


def test_hub_names_in_a_recipe_stay_names(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "{stage: s, data: d, run: r, global_batch: 1, steps: 1, trainable: {projector: 1},"
        " init_from: {language_model: a/b@v1, vision: a/c}}"
    )
    assert load_recipe(tmp_path / "r.yaml").model_dump()["init_from"] == {"language_model": "a/b@v1", "vision": "a/c"}
    assert load_recipe(tmp_path / "r.yaml", ["init_from=a/model@v1"]).init_from == "a/model@v1"
    (tmp_path / "a" / "model@v1").mkdir(parents=True)
    assert load_recipe(tmp_path / "r.yaml", ["init_from=a/model@v1"]).init_from == str(tmp_path / "a" / "model@v1")


def test_links_that_leave_the_cache_are_not_followed(hub, tmp_path):
    published.state_spaces(tmp_path / "source")
    published.publish(tmp_path / "source", hub, "a/b")
    weights = hub / "hub" / "models--a--b" / "snapshots" / COMMIT / "pytorch_model.bin"
    weights.unlink()
    weights.symlink_to(tmp_path / "source" / "pytorch_model.bin")
    outcome = run("import", "state-spaces", "a/b", "--out", tmp_path / "out")
    assert outcome.refused
    assert "leads out" in outcome.err
    assert not (tmp_path / "out").exists()


def test_what_a_job_writes_names_the_commits(hub, tmp_path):
    names = whole(tmp_path, hub)
    write_shards(tmp_path / "shards", [(frames, 1 + frames % 3) for frames in (1, 30, 2, 3, 28, 5, 4, 1)])
    recipe = make_recipe(tmp_path / "run", data=str(tmp_path / "shards"), init_from=names, precision="fp32")
    job = build(recipe, World(0, 1, torch.device("cpu")))
    pinned = {key: f"{name}@{COMMIT}" for key, name in names.items()}
    assert job.recipe.model_dump()["init_from"] == job.facts["recipe"]["init_from"] == pinned


def test_a_plan_needs_no_hub_for_an_encoder_that_no_run_has_read(hub, tmp_path):
    names = whole(tmp_path, hub)
    assert published_config(**names).vision.hidden_size == 32
    assert published_config(names["language_model"], "a/unknown").vision == ClipConfig()
    with pytest.raises(UserError, match="a/unknown"):
        published_config(names["language_model"], "a/unknown", download=True)


def test_a_model_is_downloaded_with_the_files_that_are_read_and_no_others(hub, tmp_path):
    published.state_spaces(tmp_path / "source")
    for name in ("modeling_evil.py", "README.md", "training_args.bin", "model.onnx"):
        (tmp_path / "source" / name).write_text("x")
    with serve(tmp_path / "source", "a/b", kind="") as address:
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(hub), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ma2mba", "import", "state-spaces", "a/b@main", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        other = [*command[:-1], str(tmp_path / "other")]
        other[5] = "a/b@nothing"
        missing = subprocess.run(other, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "origin.json").read_text())["commit"] == COMMIT
    (snapshot,) = (hub / "hub" / "models--a--b" / "snapshots").iterdir()
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "pytorch_model.bin"]
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1, missing.stderr

"""Model folders that transformers reads: what they hold, shards, formats 1 and 2, and folders without checksums."""

import hashlib
import json
import logging
import os
import shutil
import signal
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from ma2mba.cli.app import app
from ma2mba.errors import UserError
from ma2mba.inference.fingerprint import fingerprint
from ma2mba.model import tensor_writer
from ma2mba.model.config import ModelConfig
from ma2mba.model.hf.config import OF_TRANSFORMERS, hf_config, parse_hf
from ma2mba.model.placeholder import same_tokens
from ma2mba.model.pretrained import load_model, open_model, read_config
from ma2mba.model.published import load_vision
from ma2mba.model.tensor_writer import TensorSpec, plan_shards, write_shards
from ma2mba.training.model_source import ModelSource
from tests.attacks.model_folders import (
    change_config,
    make_model,
    make_old_model,
    make_run,
    sign_checkpoint,
    sign_model,
    sign_state,
)
from tests.forked import call, run
from tests.tiny import TINY_MODEL, UNTIED_MODEL

CONFIG = ModelConfig.model_validate(TINY_MODEL)
LIMIT = 20_000
"""Bytes of a shard in these tests. The embedding is smaller."""


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_writer, "SHARD_BYTES", LIMIT)
        return make_model(tmp_path / "sharded")


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def tensors_of(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def require_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(t, other[name]) and t.dtype == other[name].dtype for name, t in one.items())


# config.json


def test_config_json_has_what_transformers_needs(folder):
    values = json.loads((folder / "config.json").read_text())
    assert values["architectures"] == ["VideoMa2mbaForConditionalGeneration"]
    assert values["model_type"] == "video_ma2mba"
    assert values["auto_map"] == {
        "AutoConfig": "configuration_video_ma2mba.VideoMa2mbaConfig",
        "AutoModelForImageTextToText": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration",
    }
    assert (values["dtype"], values["tie_word_embeddings"], values["format_version"]) == ("float32", True, 2)
    assert values["video_token_id"] == 2  # the tokenizer has the ids 0 and 1
    assert {values[f"{name}_token_id"] for name in ("bos", "eos", "pad")} == {0}
    sections = CONFIG.model_dump(mode="json")
    assert values["text_config"] == {"model_type": "video_ma2mba_text", **sections["language_model"]}
    assert values["vision_config"] == {"model_type": "video_ma2mba_vision", **sections["vision"]}
    assert read_config(folder) == CONFIG


def test_keys_that_transformers_adds_are_accepted_and_have_no_effect():
    values = hf_config(CONFIG, 0, 2, "float32")
    added = dict.fromkeys(OF_TRANSFORMERS - values.keys(), "anything")
    values |= added
    for section in ("text_config", "vision_config"):
        values[section] |= added
    assert parse_hf(values).model == CONFIG


def test_every_key_that_transformers_writes_by_itself_is_known():
    from transformers import PreTrainedConfig

    assert set(PreTrainedConfig().to_dict()) - {"model_type"} <= OF_TRANSFORMERS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("surprise", 1),
        ("text_config.surprise", 1),
        ("vision_config.surprise", 1),
        ("text_config.d_model", "wide"),
        ("vision_config.patch_size", 7.5),
        ("text_config.model_type", "llama"),
        ("text_config.layer", "unknown"),
        ("model_type", "llava"),
        ("format_version", 3),
    ],
)
def test_a_wrong_or_unknown_key_is_named(folder, key, value):
    change_config(folder, key, value)
    with pytest.raises(UserError, match=rf"config\.json: .*\({key.removesuffix('.model_type')}: "):
        load_model(folder)


def test_a_head_of_its_own_is_stored(tmp_path):
    config = ModelConfig.model_validate(UNTIED_MODEL)
    folder = make_model(tmp_path / "model", UNTIED_MODEL)
    values = json.loads((folder / "config.json").read_text())
    assert (values["tie_word_embeddings"], values["text_config"]["tie_embeddings"]) == (False, False)
    assert read_config(folder) == config
    model, _ = load_model(folder)
    head = model.language_model.lm_head.weight
    assert torch.equal(head, tensors_of(folder)["language_model.lm_head.weight"])
    assert not torch.equal(head, model.language_model.backbone.embedding.weight)
    before = fingerprint(model)
    with torch.no_grad():
        head[0, 0] += 1
    assert fingerprint(model) != before
    assert export(folder, "--out", tmp_path / "copy").exit_code == 0
    require_equal(tensors_of(tmp_path / "copy"), tensors_of(folder))
    assert fingerprint(load_model(tmp_path / "copy")[0]) == before


@pytest.mark.parametrize("pair", [(TINY_MODEL, UNTIED_MODEL), (UNTIED_MODEL, TINY_MODEL)], ids=["tied", "untied"])
def test_a_recipe_that_ties_another_head_is_refused(tmp_path, pair):
    folder, other = make_model(tmp_path / "model", pair[0]), ModelConfig.model_validate(pair[1])
    with pytest.raises(UserError, match=r"config\.json: tie_embeddings .* the recipe says otherwise"):
        load_model(folder, config=other)


def test_a_configuration_that_contradicts_itself_about_the_head_is_refused(folder):
    change_config(folder, "text_config.tie_embeddings", False)
    with pytest.raises(UserError, match=r"config\.json: .*tie_word_embeddings is not false"):
        load_model(folder)
    change_config(folder, "tie_word_embeddings", False)
    with pytest.raises(UserError, match=r"lm_head\.weight is absent"):
        load_model(folder)


# Shards


def test_the_bytes_are_those_of_the_library(tmp_path):
    kinds = {dtype: torch.arange(5).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)}
    kinds |= {dtype: torch.arange(3).to(dtype) for dtype in (torch.bfloat16, torch.int64, torch.int32, torch.int16)}
    kinds |= {dtype: torch.tensor([1, 0]).to(dtype) for dtype in (torch.int8, torch.uint8, torch.bool)}
    tensors = {f"{i}.{dtype}": t for i, (dtype, t) in enumerate(reversed(kinds.items()))}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "letter é": torch.ones(2, 2)}
    (shard,) = plan_shards({name: TensorSpec.of(name, t) for name, t in tensors.items()})
    sums = write_shards([shard], tensors.__getitem__, tmp_path)
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    content = (tmp_path / "model.safetensors").read_bytes()
    assert content == (tmp_path / "library").read_bytes()
    assert shard.bytes == len(content)
    assert sums == {"model.safetensors": hashlib.sha256(content).hexdigest()}


def test_a_large_model_is_split_and_answers_alike(folder, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(sharded.glob("model-*.safetensors"))
    count = len(files)
    assert count > 3
    assert [path.name for path in files] == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert not (sharded / "model.safetensors").exists()
    whole = tensors_of(folder)
    require_equal(tensors_of(sharded), whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}
    for path in files:
        held = load_file(path)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= LIMIT
    require_equal(load_model(sharded)[0].state_dict(), load_model(folder)[0].state_dict())
    require_equal(load_vision(str(sharded)).state_dict(), load_vision(str(folder)).state_dict())
    assert ModelSource(None, sharded).read_config() == CONFIG
    assert len(open_model(sharded).weights.files) == len(files)


def test_the_limit_of_a_shard_is_5_gb():
    specs = {f"t{i}": TensorSpec("BF16", (500_000_000,)) for i in range(6)}
    assert [list(shard.tensors) for shard in plan_shards(specs)] == [
        ["t0", "t1", "t2", "t3", "t4"],
        ["t5"],
    ]
    assert len(plan_shards({"t": TensorSpec("BF16", (2_500_000_000,))})) == 1


def test_writing_takes_the_memory_of_one_tensor(tmp_path):
    one = torch.full((4_000_000,), 0.5)
    specs = {f"t{i}": TensorSpec.of("", one) for i in range(20)}  # 320 MB

    def write():
        write_shards(plan_shards(specs, 100_000_000), lambda name: one, tmp_path)

    outcome, before = call(write), call(lambda: None)
    assert outcome.code == 0, outcome.err
    assert outcome.peak_mb - before.peak_mb < 40
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("flip", ["first", "last"])
def test_a_flipped_byte_in_any_file_is_refused_by_name(sharded, flip):
    names = sorted(path.name for path in sharded.iterdir())
    assert len(names) > 8
    for name in names:
        path = sharded / name
        whole = path.read_bytes()
        place = {"first": 12, "last": len(whole) - 3}[flip]
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=name):
            open_model(sharded)
        if name != "README.md":
            with pytest.raises(UserError, match=name):
                load_model(sharded)
        path.write_bytes(whole)
    open_model(sharded)


# What an index may say


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(change(index) or json.dumps(index))
    sign_model(folder)


def a_name(index):
    return next(iter(index["weight_map"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i["weight_map"].update({a_name(i): "../outside.safetensors"}), "leads out of its folder"),
        (lambda i: i["weight_map"].update({a_name(i): "/etc/passwd"}), "passwd"),
        (lambda i: i["weight_map"].update({a_name(i): "none.safetensors"}), "safetensors"),
        (lambda i: i["weight_map"].update({a_name(i): f"./{i['weight_map'][a_name(i)]}"}), "safetensors"),
        (lambda i: i["weight_map"].pop(a_name(i)) and None, "has a tensor that the index does not list there"),
        (lambda i: i["weight_map"].update({"more": i["weight_map"][a_name(i)]}), "lacks a tensor: more"),
        (lambda i: i.pop("weight_map") and None, "has no weight_map"),
        (lambda i: json.dumps(i).replace('"weight_map": {', '"weight_map": {"a": "b", "a": "c", ', 1), "given twice"),
        (lambda i: json.dumps({"weight_map": {f"t{n}": f"f{n}" for n in range(1001)}}), "lists 1,001 files"),
        (lambda i: json.dumps(i) + " " * (9 << 20), "larger than"),
    ],
)
def test_an_index_that_lies_is_refused(sharded, change, said):
    (sharded.parent / "outside.safetensors").write_bytes(next(sharded.glob("model-*")).read_bytes())
    change_index(sharded, change)
    for checked in (True, False):
        if not checked:
            (sharded / "checksums.json").unlink()
        with pytest.raises(UserError) as refused:
            load_model(sharded)
        assert said in str(refused.value) or (checked and "checksums.json does not" in str(refused.value))


def test_a_second_file_of_weights_beside_the_signed_ones_is_not_read(sharded, tmp_path):
    other = {name: torch.zeros_like(t) for name, t in tensors_of(sharded).items()}
    before = load_model(sharded)[0].state_dict()
    save_file(other, sharded / "model.safetensors")
    require_equal(load_model(sharded)[0].state_dict(), before)
    sign_model(sharded)
    with pytest.raises(UserError, match=r"checksums\.json: lists 'model\.safetensors'"):
        load_model(sharded)


# Format 1


def test_an_old_folder_is_read_and_converted(tmp_path, folder):
    old = make_old_model(tmp_path / "old")
    assert json.loads((old / "config.json").read_text())["architecture"] == "video_ma2mba"
    new = tmp_path / "converted"
    done = export(old, "--out", new)
    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in new.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    one, other = load_model(old)[0], load_model(new)[0]
    require_equal(one.state_dict(), other.state_dict())
    assert fingerprint(one) == fingerprint(other)
    require_equal(load_vision(str(old)).state_dict(), load_vision(str(new)).state_dict())
    assert ModelSource(None, old).read_config() == ModelSource(None, new).read_config() == CONFIG


def test_answers_and_state_files_outlive_a_conversion(tmp_path):
    old, new, state = make_old_model(tmp_path / "old"), tmp_path / "new", tmp_path / "picture.state"
    Image.effect_noise((64, 64), 90).save(tmp_path / "picture.png")
    assert export(old, "--out", new).exit_code == 0
    exact = ("--device", "cpu", "--dtype", "fp32")
    assert run("ingest", tmp_path / "picture.png", "--model", old, "--out", state, *exact).code == 0
    options = (*exact, "--logprobs", "--temperature", 9, "--seed", 2)
    said = [run("ask", tmp_path / "picture.png", "a a", "--model", model, *options, "--json") for model in (old, new)]
    said.append(run("ask", "--state", state, "a a", "--model", new, *options, "--json"))
    assert [done.code for done in said] == [0, 0, 0], [done.err for done in said]
    answers = [json.loads(done.out)["answers"][0] for done in said]
    assert answers[0]["logprobs"]
    for key in ("answer", "logprobs"):
        assert answers[0][key] == answers[1][key] == answers[2][key]


def test_a_run_of_old_checkpoints_is_exported(tmp_path):
    step = make_run(tmp_path / "run")
    shutil.rmtree(step / "model")
    make_old_model(step / "model")
    state = json.loads((step / "trainer.json").read_text())
    state["files"] = [entry for entry in state["files"] if (step / entry["name"]).exists()]
    sign_state(step, json.dumps(state).encode())
    sign_checkpoint(step)
    assert export(tmp_path / "run", "--out", tmp_path / "new").exit_code == 0
    require_equal(tensors_of(tmp_path / "new"), tensors_of(step / "model"))


def test_an_export_is_split_or_joined_as_its_size_asks(tmp_path, sharded, folder, monkeypatch):
    assert export(sharded, "--out", tmp_path / "joined").exit_code == 0
    assert (tmp_path / "joined/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(tensor_writer, "SHARD_BYTES", LIMIT)
    assert export(folder, "--out", tmp_path / "split").exit_code == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "split").iterdir()} == {
        p.name: p.read_bytes() for p in sharded.iterdir()
    }


# Folders that transformers saved


def test_a_folder_without_checksums_is_read_and_that_is_said(folder, caplog):
    (folder / "checksums.json").unlink()
    with caplog.at_level(logging.WARNING):
        load_model(folder)
    assert "has no checksums.json" in caplog.text
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["projector.0.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"model\.safetensors: .*projector\.0\.bias is \(3,\)"):
        load_model(folder)


@pytest.fixture(scope="module", params=[TINY_MODEL, UNTIED_MODEL], ids=["tied", "untied"])
def saved(request, modules_cache, tmp_path_factory):
    """A model folder, and what transformers saved after it had loaded that folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = make_model(tmp_path_factory.mktemp("saved") / "model", request.param)
    saved = tmp_path_factory.mktemp("saved") / "saved"
    for kind in (AutoModelForImageTextToText, AutoProcessor):
        kind.from_pretrained(folder, trust_remote_code=True).save_pretrained(saved)
    return folder, saved


def test_what_transformers_saves_is_read_and_answers_alike(saved, tmp_path):
    folder, place = saved
    assert not (place / "checksums.json").exists()
    (one, tokens), (other, again) = load_model(folder), load_model(place)
    assert other.config == one.config
    require_equal(other.state_dict(), one.state_dict())
    assert fingerprint(other) == fingerprint(one)
    assert again.get_vocab() == tokens.get_vocab()  # without <|video|>
    assert same_tokens(again, tokens)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "picture.png")
    answers = []
    for model in (folder, place):
        done = run("ask", tmp_path / "picture.png", "a a", "--model", model, "--max-tokens", 5, "--device", "cpu")
        assert done.code == 0, done.err
        answers.append(done.out)
    assert answers[0] == answers[1]
    shown = run("inspect", place, "--json")
    assert json.loads(shown.out)["checksums"] == "none: transformers saved this folder"
    assert export(place, "--out", tmp_path / "signed").exit_code == 0
    assert json.loads(run("inspect", tmp_path / "signed", "--json").out)["checksums"] == "right"
    require_equal(tensors_of(tmp_path / "signed"), tensors_of(folder))
    assert ModelSource(None, place).has_tokens_of(folder / "tokenizer.json")
    assert read_config(tmp_path / "signed") == one.config


def test_a_saved_folder_without_its_processor_is_refused(saved, tmp_path):
    place = shutil.copytree(saved[1], tmp_path / "place")
    (place / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: is missing"):
        load_model(place)


def test_pickled_weights_are_not_looked_at(saved, tmp_path):
    place = shutil.copytree(saved[1], tmp_path / "place")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"place: has no model\.safetensors"):
        load_model(place)


def test_other_tokens_are_told_apart(saved, tmp_path):
    words = {"<|endoftext|>": 0, "b": 1}
    Tokenizer(models.WordLevel(words, unk_token="b")).save(str(tmp_path / "other.json"))
    for folder in saved:
        assert not ModelSource(None, folder).has_tokens_of(tmp_path / "other.json")


def test_code_in_a_folder_is_never_run(folder):
    marker = folder / "ran"
    for name in ("modeling_video_ma2mba.py", "configuration_video_ma2mba.py", "processing_video_ma2mba.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    change_config(folder, "auto_map", {"AutoConfig": "modeling_video_ma2mba.Evil"})
    load_model(folder)
    open_model(folder)
    assert export(folder, "--out", folder.parent / "out").exit_code == 0
    assert not marker.exists()
    for path in (folder.parent / "out").iterdir():
        assert str(marker).encode() not in path.read_bytes(), path


# Killed


@pytest.mark.parametrize("tensors", [0, 1, 20])
def test_a_kill_in_the_middle_leaves_no_folder(tmp_path, monkeypatch, tensors):
    monkeypatch.setattr(tensor_writer, "SHARD_BYTES", LIMIT)

    def killed():
        count, writing = iter(range(10_000)), tensor_writer._bytes

        def dying(*arguments):
            if next(count) == tensors:
                os.kill(os.getpid(), signal.SIGKILL)
            return writing(*arguments)

        tensor_writer._bytes = dying
        make_model(tmp_path / "model")

    assert call(killed).code != 0
    assert not (tmp_path / "model").exists()
    make_model(tmp_path / "model")
    load_model(tmp_path / "model")


def test_a_header_is_bounded_in_a_shard_too(sharded):
    path = next(sharded.glob("model-00002-*"))
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    sign_model(sharded)
    with pytest.raises(UserError, match=r"model-00002-of-.*not safetensors, or damaged"):
        load_model(sharded)

"""Model folders from strangers: nothing outside is copied, no memory is taken for a lie, no code runs, no NaN."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ma2mba.model.clip import ClipEncoder
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.hf.bundle import code_files
from ma2mba.model.hf.config import parse_hf
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import load_model
from ma2mba.model.published import load_vision
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.model_source import find_source
from tests.attacks.model_folders import (
    attempt,
    change_config,
    change_tensors,
    make_model,
    make_recipe,
    make_run,
    require_refused,
    sign_checkpoint,
    sign_model,
)
from tests.forked import run
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "checksums.json")
PROCESSOR = ("tokenizer_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.jinja")
WRITTEN = {*FILES, *code_files(), *PROCESSOR, "generation_config.json", "README.md"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("models") / "model")
    Image.new("RGB", (64, 64), "red").save(folder.parent / "picture.png")
    return folder


@pytest.fixture
def model(made, tmp_path):
    shutil.copy(made.parent / "picture.png", tmp_path)
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def secret(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "id_ed25519").write_text(SECRET)
    return folder / "id_ed25519"


def ask(model):
    return run("ask", model.parent / "picture.png", "What?", "--model", model, "--max-tokens", 3, "--device", "cpu")


def new_run(model, tmp_path):
    """Return how `train` builds the model of a new run that starts from `model`."""
    return lambda: find_source(make_recipe(tmp_path / "run", init_from=str(model))).build(0)


def plan(model, tmp_path):
    recipe = make_recipe(tmp_path / "run", init_from=str(model)).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return run("plan", "--model", tmp_path / "recipe.yaml", "--tokens", 100, "--device-memory", 80)


def require_all_refuse(model, tmp_path, *named):
    """`inspect`, `ask` and a new run refuse a model folder in one line that names these words."""
    for outcome in (run("inspect", model), ask(model), attempt(new_run(model, tmp_path))):
        require_refused(outcome, *named)


def test_a_sound_folder_is_used(model, tmp_path):
    assert run("inspect", model, "--json").code == 0
    assert ask(model).code == 0
    assert attempt(new_run(model, tmp_path)).code == 0
    assert plan(model, tmp_path).code == 0


@pytest.mark.parametrize("name", [*FILES, "README.md", "modeling_video_ma2mba.py"])
def test_a_file_that_leads_out_is_refused(model, tmp_path, name):
    shutil.move(model / name, tmp_path / name)
    (model / name).symlink_to(tmp_path / name)
    require_all_refuse(model, tmp_path, str(model), name, "symbolic link that leads out")


@pytest.mark.parametrize("name", FILES)
def test_pipes_loops_devices_and_folders_are_refused(model, name):
    makers = (os.mkfifo, lambda p: p.symlink_to(p.name), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir())
    for make in makers:
        path = model / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        make(path)
        require_refused(ask(model), str(model))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "checksums.json"])
def test_a_huge_file_where_a_small_one_belongs_is_refused(model, name):
    os.truncate(model / name, 1 << 40)
    require_refused(ask(model), name)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b"{}",
        b"\xff\xfe\x00",
        DEEP,
        b'{"config.json": ' + DEEP,
        b'{"config.json": null, "model.safetensors": null, "tokenizer.json": null}',
        b'{"config.json": ["a"], "model.safetensors": {}, "tokenizer.json": 1e999}',
        b'{"config.json": ' + b"9" * 5000 + b"}",
        b'{"config.json": "0", "config.json": "1"}',
    ],
)
def test_checksums_of_another_shape_are_refused(model, content):
    (model / "checksums.json").write_bytes(content)
    for outcome in (run("inspect", model), ask(model)):
        require_refused(outcome, "checksums.json")


@pytest.mark.parametrize("name", ["../home/id_ed25519", "/etc/passwd", "a\0b", "a\x1b[2Jb", "notes.txt", "\\ud83d"])
def test_checksums_name_the_files_of_a_model_and_no_other(model, secret, name):
    sums = json.loads((model / "checksums.json").read_text()) | {name: "0" * 64}
    (model / "checksums.json").write_text(json.dumps(sums).replace("\\\\ud83d", "\\ud83d"))
    outcome = ask(model)
    require_refused(outcome, "checksums.json")
    assert SECRET not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config.n_layer", 10**9),
        ("text_config.n_layer", 900),
        ("text_config.n_layer", 10**30),
        ("text_config.n_layer", -1),
        ("text_config.n_layer", True),
        ("text_config.n_layer", 1),
        ("text_config.d_model", 2**40),
        ("text_config.d_model", 2**20),
        ("text_config.vocab_size", 2**20),
        ("text_config.vocab_size", 2**40),
        ("text_config.d_state", 2**16),
        ("text_config.expand", 64),
        ("text_config.d_conv", 2**30),
        ("text_config.ssd_block", 10**9),
        ("text_config.pad_vocab_size_multiple", 10**9),
        ("text_config.norm_eps", float("nan")),
        ("text_config.norm_eps", float("inf")),
        ("text_config.norm_eps", -1.0),
        ("text_config.layer", "os.system"),
        ("text_config", [1]),
        ("text_config", None),
        ("vision_config.num_hidden_layers", 10**9),
        ("vision_config.num_hidden_layers", 900),
        ("vision_config.hidden_size", 2**20),
        ("vision_config.image_size", 7 * 10**8),
        ("vision_config.image_size", 8190),
        ("vision_config.patch_size", 28),
        ("vision_config.image_std", [0, 0, 0]),
        ("vision_config.image_mean", [float("nan")] * 3),
        ("vision_config.hidden_act", "__import__"),
        ("vision_config.hidden_act", {}),
        ("model_type", "other"),
        ("text_config.model_type", "other"),
        ("format_version", 3),
        ("tie_word_embeddings", False),
        ("video_token_id", "7"),
        ("video_token_id", True),
        ("quantization_config", {"quant_method": "evil"}),
    ],
)
def test_a_configuration_that_the_weights_do_not_have_is_refused(model, tmp_path, key, value):
    change_config(model, key, value)
    require_all_refuse(model, tmp_path, str(model))
    require_refused(plan(model, tmp_path), str(model))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", DEEP, b'{"vision": {}, "vision": {}}'])
def test_a_configuration_that_is_none_is_refused(model, tmp_path, content):
    (model / "config.json").write_bytes(content)
    sign_model(model)
    require_all_refuse(model, tmp_path, "config.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:7],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole + b"more",
        lambda whole: struct.pack("<Q", 2**63) + whole[8:],
        lambda whole: struct.pack("<Q", 50 << 20) + b"[" * (50 << 20),
        lambda whole: struct.pack("<Q", 2) + b"{}" + whole[8:],
        lambda whole: struct.pack("<Q", 8 << 20) + b"[" * (8 << 20),
        lambda whole: struct.pack("<Q", 8 << 20) + b'{"a":'.ljust(8 << 20, b"{"),
        lambda whole: whole.replace(b'"F32"', b'"I32"'),
        lambda whole: whole.replace(b'"F32"', b'"F99"'),
        lambda whole: whole.replace(b"language_model.backbone.layers.0", b"language_model.backbone.layers.7"),
        lambda whole: whole.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
        lambda whole: b"\x80\x04" + whole,
    ],
)
def test_damaged_weights_are_refused(model, tmp_path, damage):
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    sign_model(model)
    require_all_refuse(model, tmp_path, "model.safetensors")


def test_weights_of_a_terabyte_are_refused_without_reading_them(model):
    os.truncate(model / "model.safetensors", 1 << 40)
    outcome = ask(model)
    require_refused(outcome, "model.safetensors")
    assert outcome.seconds < 20


def write_holes(model, config, tensors):
    """Write a configuration, and a file of weights with a sound header and nothing but holes."""
    path = model / "model.safetensors"
    header, end = {}, 0
    for key, tensor in tensors.items():
        if key != "text_config.lm_head.weight":
            size = 4 * tensor.numel()
            header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
            end += size
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    os.truncate(path, 8 + len(content) + end)
    assert end > 500e9
    (model / "config.json").write_text(json.dumps(config))
    names = ("config.json", "tokenizer.json")
    sums = {key: hashlib.sha256((model / key).read_bytes()).hexdigest() for key in names}
    (model / "checksums.json").write_text(json.dumps(sums | {"model.safetensors": "0" * 64}))


def test_a_consistent_model_of_a_terabyte_of_holes_is_refused_at_once(model, tmp_path):
    change_config(model, "text_config.vocab_size", 2**20)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["d_model"] = 2**17
    with torch.device("meta"):
        meta = VideoMa2mba(parse_hf(config).model).state_dict()
    write_holes(model, config, meta)
    for outcome in (ask(model), attempt(new_run(model, tmp_path))):
        require_refused(outcome, "model.safetensors", "memory")
        assert outcome.seconds < 20


def test_weights_beyond_the_memory_of_the_machine_are_refused(model, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    require_refused(attempt(lambda: load_model(model, dtype="fp32")), "model.safetensors", "GB of memory in fp32")


def test_a_header_of_empty_tensors_costs_little(model):
    names = [f"t{number}" for number in range(130_000)]
    entry = '"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    content = ("{" + ",".join(entry % name for name in names) + "}").encode()
    assert 7e6 < len(content) < 8 << 20
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    sign_model(model)
    require_refused(ask(model), "another architecture")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path, value, dtype):
    name = "language_model.backbone.layers.1.mixer.out_proj.weight"

    def break_one(tensors):
        tensors |= {key: t.to(dtype) for key, t in tensors.items()}
        tensors[name][3, 5] = value

    change_tensors(model, break_one)
    require_refused(ask(model), name, "NaN or infinite")
    require_refused(attempt(new_run(model, tmp_path)), name, "NaN or infinite")
    task = tmp_path / "task.jsonl"
    line = {"id": "1", "video": "picture.png", "question": "What?", "answer": "a", "options": [], "task": "t"}
    task.write_text(json.dumps(line) + "\n")
    require_refused(run("eval", "--model", model, "--task", task, "--device", "cpu"), name)


def test_weights_in_other_floating_types_load(model):
    before = load_model(model, dtype="fp32")[0].state_dict()
    change_tensors(model, lambda tensors: tensors.update({key: t.bfloat16() for key, t in tensors.items()}))
    after = load_model(model, dtype="fp32")[0].state_dict()
    assert all(torch.equal(after[name], t.bfloat16().float()) for name, t in before.items())


def test_a_tokenizer_beyond_the_embedding_is_refused(model, tmp_path):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["b"] = 32  # the embedding has the rows 0 to 31
    path.write_text(json.dumps(content))
    sign_model(model)
    require_all_refuse(model, tmp_path, "tokenizer.json", "32")
    content["model"]["vocab"]["b"] = 2**32 - 1
    path.write_text(json.dumps(content))
    sign_model(model)
    require_refused(ask(model), "tokenizer.json")
    content["model"]["vocab"]["b"] = 31
    path.write_text(json.dumps(content))
    sign_model(model)
    assert ask(model).code == 0


# Export


@pytest.mark.parametrize("name", [*FILES, "README.md", "modeling_video_ma2mba.py"])
def test_export_copies_nothing_that_a_link_points_to(tmp_path, secret, name):
    step = make_run(tmp_path / "run")
    victim = tmp_path / "home" / name
    shutil.move(step / "model" / name, victim)
    if name != "checksums.json":
        victim.write_text(SECRET)
        (step / "model" / name).symlink_to(victim)
        sign_model(step / "model")
    else:
        (step / "model" / name).symlink_to(victim)
    sign_checkpoint(step)
    require_refused(run("export", tmp_path / "run", "--out", tmp_path / "out"), name, "run")
    assert not (tmp_path / "out").exists()


def test_export_copies_the_files_of_a_model_and_nothing_else(tmp_path, secret):
    step = make_run(tmp_path / "run")
    (step / "model" / "home").symlink_to(secret.parent)
    (step / "model" / "key").symlink_to(secret)
    (step / "model" / "extra").write_text("extra")
    os.mkfifo(step / "model" / "fifo")
    assert run("export", tmp_path / "run", "--out", tmp_path / "out").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(WRITTEN)


@pytest.mark.parametrize("entry", ["checkpoints", "checkpoints/step-000003", "checkpoints/step-000003/model"])
def test_export_does_not_follow_a_folder_out_of_the_run(tmp_path, entry):
    make_run(tmp_path / "run")
    shutil.move(tmp_path / "run" / entry, tmp_path / "elsewhere")
    (tmp_path / "run" / entry).symlink_to(tmp_path / "elsewhere")
    for command in (("export", tmp_path / "run", "--out", tmp_path / "out"), ("inspect", tmp_path / "run")):
        require_refused(run(*command), str(tmp_path / "run"), "symbolic link that leads out")
    assert not (tmp_path / "out").exists()


def test_export_refuses_weights_that_are_not_finite(tmp_path):
    step = make_run(tmp_path / "run")
    change_tensors(step / "model", lambda tensors: tensors["projector.0.weight"].fill_(float("nan")))
    sign_checkpoint(step)
    require_refused(run("export", tmp_path / "run", "--out", tmp_path / "out"), "projector.0.weight")
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_link_is_refused(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
        require_refused(run("export", tmp_path / "run", "--out", tmp_path / name), name, "symbolic link")
        assert (tmp_path / name).is_symlink()
    assert not list((tmp_path / "real").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_links_in_the_out_folder_of_eval_are_not_followed(model, tmp_path):
    (tmp_path / "victim").write_text("as it was")
    line = {"id": "1", "video": "picture.png", "question": "What?", "answer": "red"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(line) + "\n")
    for name in ("answers.jsonl", "report.json"):
        folder = tmp_path / f"out-{name}"
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "victim")
        outcome = run("eval", "--model", model, "--task", tmp_path / "tasks.jsonl", "--out", folder)
        if name == "answers.jsonl":
            require_refused(outcome, name)
        assert (tmp_path / "victim").read_text() == "as it was"


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_what_is_written_has_the_permissions_of_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        step = make_run(tmp_path / "run")
        write_shards(tmp_path / "shards", [(3, 4), (0, 5)])
        (step / "model" / "tokenizer.json").chmod(0o600)
        assert run("export", tmp_path / "run", "--out", tmp_path / "out").code == 0
        (step / "model" / "tokenizer.json").chmod(0o666 & ~umask)
    finally:
        os.umask(old)
    written = [path for name in ("run", "out", "shards") for path in (tmp_path / name, *(tmp_path / name).rglob("*"))]
    assert len(written) > 20
    modes = {str(path): path.stat().st_mode & 0o777 for path in written}
    wanted = {str(path): (0o777 if path.is_dir() else 0o666) & ~umask for path in written}
    assert modes == wanted


# Published weights


class Touch:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def clip(tmp_path):
    """A vision encoder as transformers saves one, and its folder."""
    folder = tmp_path / "clip"
    folder.mkdir()
    encoder = ClipEncoder(ModelConfig.model_validate(TINY_MODEL).vision)
    tensors = {name.removeprefix("clip."): t for name, t in encoder.state_dict().items()}
    tensors |= {"post_layernorm.weight": torch.ones(32), "encoder.layers.1.mlp.fc1.bias": torch.ones(64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**TINY_MODEL["vision"], "model_type": "clip_vision_model"}))
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_hugging_face_folder_is_never_run(clip, tmp_path):
    marker = tmp_path / "ran"
    (clip / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    change_json(
        clip / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "CLIPVisionModel": "evil.Model"},
        attn_implementation="evil/kernel",
        _attn_implementation="evil/kernel",
        quantization_config={"quant_method": "evil"},
    )
    (clip / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/evil", "peft_type": "LORA"}))
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (clip / name).write_bytes(pickle.dumps(Touch(marker)))
    encoder = ClipEncoder.load(str(clip))
    saved = load_file(clip / "model.safetensors")
    assert all(torch.equal(t, saved[name.removeprefix("clip.")]) for name, t in encoder.state_dict().items())
    assert not marker.exists()


def test_pickles_run_no_code(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    marker = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.safetensors"):
        (clip / "model.safetensors").unlink(missing_ok=True)
        (clip / name).write_bytes(pickle.dumps(Touch(marker)))
        require_refused(attempt(lambda: ClipEncoder.load(str(clip))), name)
    assert not marker.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 900},
        {"hidden_size": 2**20},
        {"image_size": 10**9},
        {"hidden_act": "evil"},
        {"layer_norm_eps": float("nan")},
        {"vision_config": [1]},
        {"vision_config": None},
    ],
)
def test_a_vision_encoder_that_lies_is_refused(clip, changes):
    change_json(clip / "config.json", **changes)
    require_refused(attempt(lambda: ClipEncoder.load(str(clip))), str(clip))


def test_an_encoder_of_a_terabyte_of_holes_is_refused_at_once(model):
    """`data encode` takes memory for the encoder alone."""
    config = json.loads((model / "config.json").read_text())
    config["vision_config"] |= {"hidden_size": 2**18, "intermediate_size": 2**17}
    with torch.device("meta"):
        meta = VideoMa2mba(parse_hf(config).model).state_dict()
    write_holes(model, config, meta)
    outcome = attempt(lambda: load_vision(str(model)))
    require_refused(outcome, "model.safetensors", "memory")
    assert outcome.seconds < 20


def test_a_vision_encoder_with_nan_or_without_a_tensor_is_refused(clip):
    path = clip / "model.safetensors"
    whole = load_file(path)
    broken = dict(whole)
    broken["pre_layrnorm.weight"] = whole["pre_layrnorm.weight"] * float("nan")
    save_file(broken, path)
    require_refused(attempt(lambda: ClipEncoder.load(str(clip))), "pre_layrnorm.weight")
    del broken["pre_layrnorm.weight"]
    save_file(broken, path)
    require_refused(attempt(lambda: ClipEncoder.load(str(clip))), "pre_layrnorm.weight")


def test_an_index_lists_files_of_its_folder(clip, tmp_path):
    tensors = load_file(clip / "model.safetensors")
    (clip / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = sorted(tensors)
    halves = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, clip / file)
    index = clip / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in halves.items() for name in part}}))
    assert len(ClipEncoder.load(str(clip)).state_dict()) == len(names) - 2
    for file in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "a\0", "", 3, None, ["x"]):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
        require_refused(
            attempt(lambda: ClipEncoder.load(str(clip))), "index.json" if isinstance(file, list) else "clip"
        )


def test_a_snapshot_of_the_hub_s_cache_is_read_and_no_other_link(clip, tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = shutil.move(clip, repository / "snapshots" / "0123")
    for name in ("config.json", "model.safetensors"):
        shutil.move(snapshot / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    ClipEncoder.load(str(snapshot))
    shutil.move(repository / "blobs" / "config.json", tmp_path / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    require_refused(attempt(lambda: ClipEncoder.load(str(snapshot))), "config.json", "leads out")


@pytest.mark.parametrize("n_layer", [10**9, 900, 3, -1, float("nan"), "two", None, [2]])
def test_a_published_language_model_that_lies_is_refused(clip, tmp_path, n_layer):
    language = tmp_path / "mamba2"
    language.mkdir()
    config = TINY_MODEL["language_model"]
    tensors = VideoMa2mba(ModelConfig.model_validate(TINY_MODEL)).language_model.state_dict()
    save_file({name: t.clone() for name, t in tensors.items()}, language / "model.safetensors")
    values = {"d_model": 32, "n_layer": 2, "vocab_size": 32, "pad_vocab_size_multiple": 16}
    values["ssm_cfg"] = {"layer": "Mamba2"} | {key: config[key] for key in ("d_state", "headdim")}
    (language / "config.json").write_text(json.dumps(values))
    recipe = make_recipe(tmp_path / "run", init_from={"language_model": str(language), "vision": str(clip)})
    assert attempt(lambda: find_source(recipe).build(0)).code == 0
    (language / "config.json").write_text(json.dumps(values | {"n_layer": n_layer}))
    require_refused(attempt(lambda: find_source(recipe).build(0)), "mamba2")


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"ssm_cfg": [1]}', '{"ssm_cfg": 3}', "{", "[" * 100_000, "\0"]
)
def test_a_published_configuration_of_another_shape_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    require_refused(attempt(lambda: Mamba2Config.of_published(str(tmp_path))), "config.json")
    if "ssm_cfg" not in content and content != "{}":  # every key of a vision encoder has a default
        require_refused(attempt(lambda: ClipConfig.of_published(str(tmp_path))), "config.json")


def test_no_code_of_ours_loads_pickles_or_remote_code():
    """DeepSpeed reads pickles in `load_checkpoint`, which is therefore never called.

    One child process loads published checkpoints: tensors alone, with bounded memory and time.
    """
    forbidden = re.compile(
        r"torch\.load|pickle\.loads?|load_checkpoint|trust_remote_code|allow_pickle|AutoModel\w*[.(]|zero_to_fp32"
    )
    sources = [path for package in ("ma2mba", "data_prep") for path in (ROOT / package).rglob("*.py")]
    sources = [path for path in sources if path.parent != ROOT / "ma2mba/model/hf/code"]  # never imported here
    found = {str(path): match[0] for path in sources if (match := forbidden.search(path.read_text(encoding="utf-8")))}
    assert len(sources) > 100
    assert not [path for path in sources if "hf.code" in path.read_text(encoding="utf-8")]
    (child,) = found
    assert (Path(child).name, found[child]) == ("unpickle.py", "torch.load")
    calls = re.findall(r"torch\.load\((.*)\)", Path(child).read_text(encoding="utf-8"))
    assert len(calls) == 1
    assert "weights_only=True" in calls[0]

"""Loading of weights: exact, in one pass, in little memory, never initialised before, and verified before use."""

import hashlib
import itertools
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ma2mba.errors import UserError
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.session import Session
from ma2mba.model import dtypes, tensor_file
from ma2mba.model.config import ModelConfig
from ma2mba.model.dtypes import choose_dtype
from ma2mba.model.empty import build_empty, require_memory
from ma2mba.model.hf.config import parse_hf
from ma2mba.model.pretrained import load_model, open_model, read_config, save_model
from ma2mba.model.published import load_vision
from ma2mba.model.tensor_file import TensorFile
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.weights import Weights
from ma2mba.training.checkpoint.folder import CHECKPOINTS
from ma2mba.training.model_source import ModelSource
from tests.attacks.model_folders import change_tensors, make_model, make_run
from tests.forked import Outcome, call
from tests.tiny import TINY_MODEL

CONFIG = ModelConfig.model_validate(TINY_MODEL)
KEPT = ("A_log", "dt_bias", "D")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "model")


def initialised_and_filled(folder: Path) -> VideoMa2mba:
    """Return the model as it was loaded before: drawn, then overwritten."""
    model = VideoMa2mba(read_config(folder))
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict(
        tensors | {"language_model.lm_head.weight": tensors["language_model.backbone.embedding.weight"]}
    )
    return model


def require_equal(model: nn.Module, other: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        found, wanted = (dict(getattr(m, kind)()) for m in (model, other))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(t, wanted[name]) and t.dtype == wanted[name].dtype for name, t in found.items())


class Drawn(TorchDispatchMode):
    """Counts the numbers that are drawn into memory, not on the meta device."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("normal_", "uniform_", "rand", "randn") and not result.is_meta:
            self.numbers += result.numel()
        return result


# The values


@pytest.mark.parametrize("device", DEVICES)
def test_weights_and_buffers_are_those_of_a_model_that_is_drawn_and_filled(folder, device):
    model, _ = load_model(folder, device, "fp32")
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {device}
    require_equal(model, initialised_and_filled(folder).to(device))
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert len(list(model.buffers())) == 2
    assert model.language_model.lm_head.weight is model.language_model.backbone.embedding.weight
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("device", DEVICES)
def test_in_bf16_a_layer_keeps_its_decays_in_fp32(folder, device):
    exact = dict(initialised_and_filled(folder).to(device).named_parameters())
    model, _ = load_model(folder, device, "bf16")
    for name, p in model.named_parameters():
        kept = name.rsplit(".", 1)[-1] in KEPT
        assert torch.equal(p, exact[name] if kept else exact[name].bfloat16()), name
    assert sum(p.dtype == torch.float32 for p in model.parameters()) == 3 * len(model.layers)
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())


def test_a_session_reads_frames_and_text_with_parameters_of_two_dtypes(folder):
    ids, visual = torch.ones(30, dtype=torch.int64), torch.tensor([-1, *range(8), *[-1] * 21])
    frames = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = {}
    for dtype in ("fp32", "bf16"):
        model, tokenizer = load_model(folder, dtype=dtype)
        session = Session(model, tokenizer, chunk_tokens=16)
        session.feed(ids, visual, frames)
        decoder = Decoder(model, [session.states] * 2)
        stepped = decoder.step(torch.tensor([1, 1]))[:, : tokenizer.get_vocab_size()]
        session.feed_text([1])
        logits[dtype] = session.logits()
        torch.testing.assert_close(stepped, logits[dtype].expand(2, -1), rtol=0.02, atol=0.01)
        conv, ssm = session.states[0]
        assert (conv.dtype, ssm.dtype) == (next(model.parameters()).dtype, torch.float32)
    torch.testing.assert_close(logits["bf16"], logits["fp32"], rtol=0.05, atol=0.02)


def test_gradients_reach_parameters_of_two_dtypes(folder):
    model, _ = load_model(folder, dtype="bf16")
    ids, visual = torch.ones(1, 20, dtype=torch.int64), torch.full((1, 20), -1)
    x, _ = model.run(x := model.embed(ids, visual, torch.zeros(0, 3, 28, 28)), model.initial_states(x))
    model.loss_sum(x, ids).backward()
    trained = dict(model.language_model.named_parameters())
    assert all(p.grad is not None and p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in trained.values())


def test_nothing_is_drawn_that_a_file_overwrites(folder, tmp_path):
    with Drawn() as drawn:
        VideoMa2mba(CONFIG)
    assert drawn.numbers > 10_000
    with Drawn() as drawn:
        load_model(folder)
        ModelSource(None, folder, resumed=True).build(0)
        ModelSource(CONFIG, folder).build(0)
        load_vision(str(folder))
    heads = 2 * 32 // 16
    assert drawn.numbers <= 4 * 3 * 2 * 2 * heads  # what __init__ computes with, twice a load: on meta and here


def test_a_model_folder_s_encoder_alone_is_loaded_and_the_whole_file_verified(folder):
    require_equal(load_vision(str(folder)), initialised_and_filled(folder).vision)
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    with pytest.raises(UserError, match="is damaged"):
        load_vision(str(folder))


@pytest.mark.parametrize("block", [16, 48, 1 << 20])
def test_tensors_are_converted_in_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", block)
    generator = torch.Generator().manual_seed(0)
    stored = {
        f"{dtype}": torch.randn(3, 37, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    stored |= {"int": torch.arange(9), "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5)}
    stored |= {"empty": torch.empty(0, 3), "unwanted": torch.ones(100), "column": torch.randn(5, 6)}
    save_file(stored, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for dtype, device in itertools.product((torch.float32, torch.bfloat16), DEVICES):
        targets = {
            name: torch.full_like(t, 1, dtype=dtype if t.is_floating_point() else t.dtype) for name, t in stored.items()
        }
        targets = {name: t.to(device) for name, t in targets.items()}
        targets["column"] = torch.ones(6, 5, dtype=dtype, device=device).t()
        del targets["unwanted"]
        TensorFile.open(tmp_path / "a.safetensors", hashlib.sha256(content).hexdigest()).copy_tensors(targets)
        assert all(torch.equal(t.cpu(), stored[name].to(t.dtype)) for name, t in targets.items())


# Memory


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model folder of 230 MB in fp32, most of it in one matrix."""
    folder = tmp_path_factory.mktemp("large")
    language = TINY_MODEL["language_model"] | {"d_model": 1280, "vocab_size": 30_000, "headdim": 64}
    with torch.no_grad():
        model = build_empty(lambda: VideoMa2mba(CONFIG.model_validate(TINY_MODEL | {"language_model": language})))
        for p in model.parameters():
            p.fill_(0.5)
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    save_model(model, folder / "tokenizer.json", folder / "model")
    return folder / "model"


@pytest.mark.parametrize(("dtype", "share"), [("fp32", 1.0), ("bf16", 0.5)])
def test_loading_takes_the_memory_of_the_weights(large, dtype, share):
    def peak(work) -> float:
        outcome: Outcome = call(work)
        assert outcome.code == 0, outcome.err
        return outcome.peak_mb

    megabytes = (large / "model.safetensors").stat().st_size / 2**20
    assert megabytes > 200
    taken = peak(lambda: load_model(large, dtype=dtype)) - peak(lambda: None)
    assert taken < share * megabytes + 40


def test_memory_is_compared_in_the_dtype_of_the_weights(folder, monkeypatch):
    size = sum(p.numel() for p in load_model(folder)[0].parameters())
    monkeypatch.setattr("ma2mba.model.empty.machine_bytes", lambda: 3 * size)
    with pytest.raises(UserError, match=r"model\.safetensors: needs .* GB of memory in fp32, but this machine has"):
        load_model(folder, dtype="fp32")
    load_model(folder, dtype="bf16")
    monkeypatch.setattr("ma2mba.model.empty.machine_bytes", lambda: size)
    with pytest.raises(UserError, match="GB of memory in bf16"):
        load_model(folder, dtype="bf16")


# Damage, and files that change


def flip(path: Path, place: int) -> None:
    """Flip a bit of a file, and leave its size and times as they are."""
    about = path.stat()
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_is_refused(folder, dtype, where):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    first = 8 + struct.unpack("<Q", content[:8])[0]
    flip(path, {"first": first, "middle": (first + len(content)) // 2, "last": len(content) - 1}[where])
    for use in (lambda: load_model(folder, dtype=dtype), lambda: open_model(folder)):
        with pytest.raises(UserError, match=r"model\.safetensors: is damaged \(its checksum differs from checksums"):
            use()


def test_a_damaged_value_that_is_not_finite_is_called_damaged(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)


def test_a_value_beyond_bf16_is_refused_in_bf16(folder):
    name = "projector.0.weight"
    change_tensors(folder, lambda tensors: tensors[name].view(-1)[3].fill_(3.4e38))
    load_model(folder, dtype="fp32")
    with pytest.raises(UserError, match=f"{name} has NaN or infinite values"):
        load_model(folder, dtype="bf16")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: flip(path, path.stat().st_size - 1), "is damaged"),
        (lambda path: os.utime(path, ns=(0, 0)), "has changed while it was read"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "has changed while it was read"),
        (lambda path: os.replace(shutil.copy(path, path.with_name("copy")), path), "has changed while it was read"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["flipped", "touched", "cut", "replaced", "removed"],
)
def test_a_file_that_changes_between_check_and_use_is_refused(folder, monkeypatch, change, said):
    copy_into = Weights.copy_into

    def meanwhile(weights, *arguments, **options):
        change(folder / "model.safetensors")
        copy_into(weights, *arguments, **options)

    monkeypatch.setattr(Weights, "copy_into", meanwhile)
    with pytest.raises(UserError, match=said):
        load_model(folder)


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(folder, monkeypatch):
    path, opened = folder / "model.safetensors", tensor_file.safe_open

    def meanwhile(*arguments, **options):
        shutil.copy(path, folder / "copy")
        os.replace(folder / "copy", path)
        return opened(*arguments, **options)

    monkeypatch.setattr(tensor_file, "safe_open", meanwhile)
    with pytest.raises(UserError, match="was replaced while it was opened"):
        load_model(folder)


def test_a_file_that_is_cut_while_it_is_read_is_refused(folder, monkeypatch):
    skip_to = tensor_file._Reader.skip_to

    def meanwhile(reader, place):
        os.truncate(folder / "model.safetensors", 5000)
        skip_to(reader, place)

    monkeypatch.setattr(tensor_file._Reader, "skip_to", meanwhile)
    with pytest.raises(UserError, match="has become shorter while it was read"):
        load_model(folder)


# Where the model is


def test_the_model_of_a_run_and_of_a_checkpoint(tmp_path):
    last = make_run(tmp_path / "run", steps=(3, 6))
    change_tensors(last / "model", lambda tensors: tensors["projector.0.bias"].fill_(7.0))
    for place in (tmp_path / "run", last, last / "model"):
        model, _ = load_model(place)
        assert (model.projector[0].bias == 7).all()
    assert (load_model(tmp_path / "run" / CHECKPOINTS / "step-000003")[0].projector[0].bias != 7).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere: does not exist. Give a model folder, or the folder of a run"),
        ("file", "file: is not a folder"),
        ("empty", "empty: not a model folder"),
        ("new", "new: this run has no finished checkpoint"),
        ("odd", "not the name of a checkpoint"),
        ("out", "symbolic link that leads out"),
    ],
)
def test_a_place_without_a_model_is_refused(tmp_path, folder, name, said):
    (tmp_path / "file").write_text("")
    for run in ("empty", "new/checkpoints", "odd/checkpoints", "out/checkpoints"):
        (tmp_path / run).mkdir(parents=True)
    (tmp_path / "odd/checkpoints/latest").write_text("../../model\n")
    (tmp_path / "out/checkpoints/latest").write_text("step-000003\n")
    (tmp_path / "out/checkpoints/step-000003").symlink_to(tmp_path)
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        load_model(tmp_path / name)


# Which dtype


def test_the_dtype_follows_the_device(monkeypatch):
    for amx, on_cpu in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(dtypes, "_has_amx", lambda amx=amx: amx)
        assert choose_dtype("auto", "cpu") == on_cpu
        assert choose_dtype("auto", "cuda:1") == torch.bfloat16
        assert choose_dtype("fp32", "cuda") == torch.float32
        assert choose_dtype("bf16", "cpu") == torch.bfloat16


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(ValueError, match="dtype: 'float32' is unknown"):
        choose_dtype("float32", "cpu")


def test_a_model_is_loaded_in_the_dtype_of_the_machine(folder, monkeypatch):
    monkeypatch.setattr(dtypes, "_has_amx", lambda: True)
    assert load_model(folder)[0].projector_dtype == torch.bfloat16
    monkeypatch.setattr(dtypes, "_has_amx", lambda: False)
    assert load_model(folder)[0].projector_dtype == torch.float32


# Training's start


def test_training_starts_from_the_same_weights_in_its_dtype(folder):
    exact = initialised_and_filled(folder)
    for source in (ModelSource(None, folder), ModelSource(CONFIG, folder), ModelSource(None, folder, resumed=True)):
        model = source.build(0)
        assert model.training
        require_equal(model, exact)
        low = source.build(0, "cpu", torch.bfloat16).to(torch.bfloat16)
        require_equal(low, initialised_and_filled(folder).to(torch.bfloat16))


def test_another_rank_builds_the_same_model_and_reads_no_weights(folder, monkeypatch):
    """DeepSpeed gives each parameter of rank 0 to the other ranks: names, shapes and order must be the same."""
    sources = (ModelSource(None, folder), ModelSource(CONFIG, folder), ModelSource(None, folder, resumed=True))
    for source in (*sources, ModelSource(CONFIG)):
        with monkeypatch.context() as patched:
            patched.setattr(TensorFile, "copy_tensors", lambda *_: pytest.fail("weights were read"))
            empty = source.build_empty("cpu", torch.bfloat16)
        built = source.build(0, "cpu", torch.bfloat16)
        assert empty.training
        for (name, weight), (other, right) in zip(empty.named_parameters(), built.named_parameters(), strict=True):
            assert (name, weight.shape, weight.requires_grad) == (other, right.shape, right.requires_grad)
            if source.folder:
                assert weight.dtype == right.dtype
        for (name, buffer), (other, right) in zip(empty.named_buffers(), built.named_buffers(), strict=True):
            assert name == other
            assert torch.equal(buffer, right)
    other = ModelConfig.model_validate(TINY_MODEL | {"language_model": TINY_MODEL["language_model"] | {"n_layer": 3}})
    with pytest.raises(UserError, match="another architecture"):
        ModelSource(other, folder, resumed=True).build_empty()


def test_published_weights_are_loaded_and_the_rest_is_drawn(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    prefix = "language_model."
    (tmp_path / "language").mkdir()
    language = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    save_file(language, tmp_path / "language/model.safetensors")
    source = ModelSource(CONFIG, language_model=str(tmp_path / "language"))
    first, again, other = (source.build(seed) for seed in (0, 0, 1))
    require_equal(first, again)
    require_equal(first.language_model, initialised_and_filled(folder).language_model)
    require_equal(other.language_model, first.language_model)
    for part in ("projector", "vision"):
        assert any(
            not torch.equal(a, b)
            for a, b in zip(*(m.get_submodule(part).parameters() for m in (first, other)), strict=True)
        )
        assert all(p.isfinite().all() and not p.is_meta for p in first.get_submodule(part).parameters())
    low = source.build(0, "cpu", torch.bfloat16)
    require_equal(low, first.to(torch.bfloat16))


# Modules of others


class Odd(nn.Module):
    """A module with tied parameters, buffers of every kind, and a plain tensor."""

    kept_in_fp32 = ("decay",)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.decay = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]), persistent=False)
        self.register_buffer("count", torch.tensor(5))
        self.plain = torch.arange(3)


def test_any_module_is_built_empty():
    module = build_empty(Odd, dtype=torch.bfloat16)
    assert module.second.weight is module.first.weight
    assert isinstance(module.first.weight, nn.Parameter)
    assert {name: p.dtype for name, p in module.named_parameters()} == {
        "decay": torch.float32,
        "first.weight": torch.bfloat16,
        "first.bias": torch.bfloat16,
        "second.bias": torch.bfloat16,
    }
    assert not module.decay.requires_grad
    assert module.scale.tolist() == [1, 2]
    assert int(module.count) == 5
    assert module.plain.tolist() == [0, 1, 2]
    assert list(module.state_dict()) == list(Odd().state_dict())


def test_tied_parameters_are_counted_once(monkeypatch):
    with torch.device("meta"):
        module = Odd()
    monkeypatch.setattr("ma2mba.model.empty.machine_bytes", lambda: 4 * (9 + 3 + 3 + 3))
    require_memory(module, "cpu", "a file", torch.float32)
    monkeypatch.setattr("ma2mba.model.empty.machine_bytes", lambda: 4 * (9 + 3 + 3 + 3) - 1)
    with pytest.raises(UserError, match="a file: needs"):
        require_memory(module, "cpu", "a file", torch.float32)


def test_the_configuration_may_be_another_one_of_the_same_shapes(folder):
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["ssd_block"] = 4
    other = parse_hf(values).model
    assert load_model(folder, config=other)[0].layers[0].shape.block == 4
    values["text_config"]["n_layer"] = 3
    with pytest.raises(UserError, match="has another architecture than the model"):
        load_model(folder, config=parse_hf(values).model)

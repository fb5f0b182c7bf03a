"""`ma2mba import` and `ma2mba export --format`: weights of other libraries, there and back, bit for bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.empty import build_empty
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import load_model
from ma2mba.model.published import open_language_model
from tests import published
from tests.attacks.model_folders import make_model, make_run
from tests.forked import Outcome, run
from tests.parity.other_models import Mamba2ForCausalLM, ids, ssm_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def succeed(*arguments: object) -> Outcome:
    outcome = run(*map(str, arguments))
    assert outcome.code == 0, outcome.err
    return outcome


def require_equal(found: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert found.keys() == right.keys()
    assert all(torch.equal(t, right[name]) and t.dtype == right[name].dtype for name, t in found.items())


def logits_of(folder) -> Tensor:
    """The logits of this project's language model with the weights in `folder`."""
    config = Mamba2Config.of_published(str(folder))
    model = build_empty(lambda: LanguageModel(config))
    open_language_model(str(folder), config).copy_into(model)
    return run_layers(model)


@torch.no_grad()
def run_layers(model: LanguageModel) -> Tensor:
    x = model.backbone.embedding(ids(2))
    for layer in model.backbone.layers:
        x, _ = layer(x, layer.initial_state(x))
    return model.logits(x)


@torch.no_grad()
def require_logits(found: Tensor, model) -> None:
    right = model(ids(2)).logits
    assert (found - right).abs().max() <= 1e-5 * right.abs().max().clamp(min=1)


@pytest.mark.parametrize(("ngroups", "tied"), [(1, True), (2, True), (1, False)])
def test_state_spaces_there_and_back(tmp_path, ngroups, tied):
    model = published.state_spaces(tmp_path / "theirs", ngroups=ngroups, tie_embeddings=tied)
    succeed("import", "state-spaces", tmp_path / "theirs", "--out", tmp_path / "ours")
    require_logits(logits_of(tmp_path / "ours"), model)
    succeed("export", tmp_path / "ours", "--out", tmp_path / "back", "--format", "state-spaces")
    original = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    for found in (
        torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True),
        load_file(tmp_path / "back" / "model.safetensors"),
    ):
        require_equal(found, original)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (tmp_path / "theirs" / "config.json").read_text()
    )
    again = ssm_model(ngroups, tied=tied).eval()
    again.load_state_dict(found)
    assert torch.equal(again(ids(2)).logits, model(ids(2)).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_there_and_back(tmp_path, dtype, tied):
    changes = {"bos_token_id": 3, "eos_token_id": 4, "time_step_max": 0.2, "tie_word_embeddings": tied}
    model = published.transformers(tmp_path / "theirs", dtype, **changes)
    succeed("import", "transformers", tmp_path / "theirs", "--out", tmp_path / "ours")
    succeed("export", tmp_path / "ours", "--out", tmp_path / "back", "--format", "transformers-mamba2")
    require_equal(*(load_file(tmp_path / place / "model.safetensors") for place in ("back", "theirs")))
    again, about = Mamba2ForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.dtype == dtype
    config, before = again.config.to_dict(), model.config.to_dict()
    assert {key: config[key] for key in before if not key.startswith(("_", "transformers_"))} == {
        key: value for key, value in before.items() if not key.startswith(("_", "transformers_"))
    }
    assert torch.equal(again.eval()(ids(2)).logits, model(ids(2)).logits)
    if dtype == torch.float32:
        require_logits(logits_of(tmp_path / "ours"), model)
        require_logits(logits_of(tmp_path / "theirs"), model)


@pytest.mark.parametrize("tied", [True, False])
def test_one_published_format_becomes_the_other(tmp_path, tied):
    model = published.state_spaces(tmp_path / "theirs", tie_embeddings=tied)
    succeed("import", "state-spaces", tmp_path / "theirs", "--out", tmp_path / "ours")
    succeed("export", tmp_path / "ours", "--out", tmp_path / "hf", "--format", "transformers-mamba2")
    other = Mamba2ForCausalLM.from_pretrained(tmp_path / "hf").eval()
    require_logits(other(ids(2)).logits, model)
    result = other.generate(ids(1)[:, :5], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert result.shape == (1, 8)
    succeed("import", "transformers", tmp_path / "hf", "--out", tmp_path / "again")
    require_equal(*(load_file(tmp_path / place / "model.safetensors") for place in ("again", "ours")))


@pytest.mark.parametrize("source", ["model", "run"])
def test_the_language_model_of_a_whole_model_is_exported(tmp_path, source):
    (make_model if source == "model" else make_run)(tmp_path / source)
    for name in ("state-spaces", "transformers-mamba2"):
        succeed("export", tmp_path / source, "--out", tmp_path / name, "--format", name)
    folder = tmp_path / source if source == "model" else tmp_path / "run" / "checkpoints" / "step-000003" / "model"
    language = load_model(folder, dtype="fp32")[0].language_model
    weights = load_file(tmp_path / "state-spaces" / "model.safetensors")
    require_equal(weights, dict(language.state_dict()))
    other = Mamba2ForCausalLM.from_pretrained(tmp_path / "transformers-mamba2").eval()
    given = torch.arange(20)[None]
    with torch.no_grad():
        x = language.backbone.embedding(given)
        for layer in language.backbone.layers:
            x, _ = layer(x, layer.initial_state(x))
        assert (other(given).logits - language.logits(x)).abs().max() < 1e-5
    assert other.config.eos_token_id == 0  # <|endoftext|> of its tokenizer
    assert (tmp_path / "transformers-mamba2" / "tokenizer.json").is_file()


@pytest.mark.parametrize(("whole", "pickled"), [(False, False), (True, False), (True, True)])
def test_the_vision_tower_of_clip_is_imported(tmp_path, whole, pickled):
    tower = published.clip(tmp_path / "theirs", whole=whole, pickled=pickled)
    succeed("import", "clip", tmp_path / "theirs", "--out", tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        *("config.json", "model.safetensors", "origin.json", "preprocessor_config.json")
    ]
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    require_equal({name.removeprefix("vision_model."): t for name, t in saved.items()}, tower)
    one, other = (ClipEncoder.load(str(tmp_path / place)) for place in ("ours", "theirs"))
    assert one.config == other.config
    assert one.config.image_mean == (0.5, 0.4, 0.3)
    require_equal(dict(one.state_dict()), dict(other.state_dict()))
    from transformers import CLIPVisionModel

    loaded, about = CLIPVisionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not about["missing_keys"]
    require_equal({name.removeprefix("vision_model."): t for name, t in loaded.state_dict().items()}, tower)


def test_a_real_encoder_is_imported(tmp_path, shared):
    source = shared / "vision" / "dinov2-small-as-clip-vision-336"
    succeed("import", "clip", source, "--out", tmp_path / "ours")
    require_equal(*(load_file(folder / "model.safetensors") for folder in (tmp_path / "ours", source)))
    assert ClipEncoder.load(str(tmp_path / "ours")).config == ClipEncoder.load(str(source)).config


def test_several_pickled_files_are_one_model(tmp_path):
    model = published.state_spaces(tmp_path / "theirs")
    tensors = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    (tmp_path / "theirs" / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    places = {name: f"pytorch_model-{1 + (i > 9)}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: t for name, t in tensors.items() if places[name] == file}, tmp_path / "theirs" / file)
    index = tmp_path / "theirs" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    require_logits(logits_of(tmp_path / "theirs"), model)
    succeed("import", "state-spaces", tmp_path / "theirs", "--out", tmp_path / "ours")
    require_logits(logits_of(tmp_path / "ours"), model)


def test_a_pickle_is_converted_once(tmp_path):
    model = published.state_spaces(tmp_path / "theirs")
    require_logits(logits_of(tmp_path / "theirs"), model)
    (kept,) = (tmp_path / "cache" / "ma2mba" / "weights").glob("*.safetensors")
    before = kept.stat()
    require_logits(logits_of(tmp_path / "theirs"), model)
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    shutil.copyfile(tmp_path / "theirs" / "pytorch_model.bin", tmp_path / "copy")
    shutil.move(tmp_path / "copy", tmp_path / "theirs" / "pytorch_model.bin")
    require_logits(logits_of(tmp_path / "theirs"), model)
    assert len(list(kept.parent.glob("*.safetensors"))) == 2


REFUSED_BY_STATE_SPACES = [
    ({"head": "other"}, "tie_embeddings"),
    ({"tie_embeddings": False, "head": "absent"}, "tie_embeddings"),
    ({"tie_embeddings": 1}, "tie_embeddings"),
    ({"d_intermediate": 64}, "d_intermediate"),
    ({"attn_layer_idx": [1]}, "attn_layer_idx"),
    ({"rms_norm": False}, "rms_norm"),
    ({"residual_in_fp32": False}, "residual_in_fp32"),
    ({"new_key": 1}, "new_key"),
    *[
        ({"ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 8} | {key: value}}, f"ssm_cfg.{key}")
        for key, value in {
            "layer": "Mamba1",
            "rmsnorm": False,
            "norm_before_gate": True,
            "D_has_hdim": True,
            "bias": True,
            "conv_bias": False,
            "d_ssm": 32,
            "dt_limit": [0.1, 0.2],
            "new_key": 1,
        }.items()
    ],
]


@pytest.mark.parametrize(
    ("changes", "named"), REFUSED_BY_STATE_SPACES, ids=[name for _, name in REFUSED_BY_STATE_SPACES]
)
def test_what_a_layer_cannot_represent_is_refused_by_its_key(tmp_path, changes, named):
    head = changes.pop("head", None)
    published.state_spaces(tmp_path / "theirs", **changes)
    if head:
        path = tmp_path / "theirs" / "pytorch_model.bin"
        tensors = torch.load(path, weights_only=True)
        own = tensors.pop("lm_head.weight")
        torch.save(tensors | ({"lm_head.weight": own + 1} if head == "other" else {}), path)
    refuse("state-spaces", tmp_path, named)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tie_word_embeddings", False),
        ("use_bias", True),
        ("use_conv_bias", False),
        ("hidden_act", "gelu"),
        ("residual_in_fp32", False),
        ("time_step_limit", (0.01, 0.1)),
        ("quantization_config", {"quant_method": "evil"}),
        ("num_heads", 9),
        ("n_groups", 3),
        ("chunk_size", 4096),
        ("hidden_size", "many"),
        ("model_type", "mamba"),
    ],
)
def test_what_transformers_can_do_and_a_layer_cannot_is_refused(tmp_path, key, value):
    published.transformers(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    ours = {"n_groups": "ngroups", "chunk_size": "ssd_block", "hidden_size": "num_heads"}
    refuse("transformers", tmp_path, ours.get(key, key))


def test_a_head_that_transformers_would_not_tie_is_refused(tmp_path):
    published.transformers(tmp_path / "theirs", tie_word_embeddings=False)
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    refuse("transformers", tmp_path, "lm_head.weight", "tie_word_embeddings is true")


def test_a_head_equal_to_the_embedding_stays_a_matrix_of_its_own(tmp_path):
    model = published.transformers(tmp_path / "theirs", tie_word_embeddings=True)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.backbone.embeddings.weight.detach().clone())
    shutil.rmtree(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "theirs")
    succeed("import", "transformers", tmp_path / "theirs", "--out", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["tie_embeddings"] is False
    succeed("export", tmp_path / "ours", "--out", tmp_path / "back", "--format", "transformers-mamba2")
    require_equal(*(load_file(tmp_path / place / "model.safetensors") for place in ("back", "theirs")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_recipe_and_weights_that_tie_differently_are_refused(tmp_path, tied):
    published.state_spaces(tmp_path / "theirs", tie_embeddings=tied)
    config = Mamba2Config.of_published(str(tmp_path / "theirs"))
    with pytest.raises(UserError, match=f"tie_embeddings is {str(tied).lower()}.* recipe"):
        open_language_model(str(tmp_path / "theirs"), config.model_copy(update={"tie_embeddings": not tied}))


def refuse(format_name: str, tmp_path, *named: str) -> None:
    """Fail unless an import is refused in one line that names these words, and nothing is left."""
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = run("import", format_name, tmp_path / "theirs", "--out", tmp_path / "ours")
    assert outcome.refused, (outcome.code, outcome.err)
    line = " ".join(outcome.err.split())
    assert all(word in line for word in named), line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("fault", ["name", "shape", "missing", "nan", "integers"])
def test_other_tensors_are_refused_by_name(tmp_path, fault):
    published.state_spaces(tmp_path / "theirs")
    path = tmp_path / "theirs" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    name = "backbone.layers.1.mixer.D"
    if fault in ("name", "missing"):
        moved = tensors.pop(name)
        tensors |= {"backbone.layers.1.mixer.E": moved} if fault == "name" else {}
    elif fault == "shape":
        tensors[name] = torch.zeros(9)
    else:
        tensors[name] = torch.full((8,), float("nan")) if fault == "nan" else torch.zeros(8, dtype=torch.int64)
    torch.save(tensors, path)
    refuse("state-spaces", tmp_path, name)


def test_an_out_that_exists_and_a_wrong_format_are_refused(tmp_path):
    published.transformers(tmp_path / "theirs")
    refuse("state-spaces", tmp_path, "another format")
    refuse("clip", tmp_path, "model_type")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").touch()
    refuse("transformers", tmp_path, "not empty")
    (tmp_path / "empty").mkdir()
    outcome = run("import", "state-spaces", tmp_path / "empty", "--out", tmp_path / "new")
    assert outcome.refused
    assert "config.json" in outcome.err

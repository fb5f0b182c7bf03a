"""The model card: valid for the hub, and it says what is known and what is not."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from ma2mba.cli.app import app
from ma2mba.errors import UserError
from ma2mba.model.config import ModelConfig
from ma2mba.model.hf.card import MOST_LISTED, CardFacts, base_models, hub_names, model_card, relicensed
from ma2mba.model.pretrained import load_model, open_model
from ma2mba.model.tensor_writer import TensorSpec
from tests.attacks.model_folders import make_model, make_old_model, make_run, sign_model
from tests.tiny import TINY_MODEL

CONFIG = ModelConfig.model_validate(TINY_MODEL)
SPECS = {
    "vision.a": TensorSpec("F32", (300, 1_000_000)),
    "projector.b": TensorSpec("F32", (2, 1_000_000)),
    "language_model.c": TensorSpec("F32", (2_700, 1_000_000)),
}
RECIPE = {"stage": "stage2", "data": ["/home/alice/secret/shards", {"path": "/data/more", "weight": 2.0}], "steps": 9}


def front(card):
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])


def export(*arguments):
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)


def test_the_front_matter_is_valid_for_the_hub():
    bases = ["state-spaces/mamba2-2.7b", "openai/clip-vit-large-patch14-336"]
    card = model_card(CONFIG, SPECS, CardFacts(license="apache-2.0", base_models=tuple(bases)))
    assert front(card) == {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["ma2mba", "mamba2", "video"],
        "license": "apache-2.0",
        "base_model": bases,
    }
    assert ModelCard(card).data.license == "apache-2.0"
    assert "language model 2.7B, projector 2.0M, vision 300.0M" in card
    assert "[state-spaces/mamba2-2.7b](https://huggingface.co/state-spaces/mamba2-2.7b)" in card


def test_what_is_not_known_is_said():
    card = model_card(CONFIG, SPECS, CardFacts())
    assert "license" not in front(card)
    assert "base_model" not in front(card)
    for heading in ("Training", "Metrics", "Base models", "Licence"):
        section = card.split(f"## {heading}\n\n")[1].split("\n\n")[0]
        assert section.startswith("Unknown"), heading


def test_a_card_tells_no_path_of_a_machine():
    start = {"language_model": "/home/alice/weights/mamba2-2.7b", "vision": "openai/clip-vit-large-patch14-336"}
    recipe = RECIPE | {"init_from": start, "run": "/home/alice/runs/two", "exclude": [f"id{i}" for i in range(5000)]}
    card = model_card(CONFIG, SPECS, CardFacts(recipe, 1200, {"loss": 1.25, "step": 1200}))
    assert "/home" not in card
    assert "alice" not in card
    assert "1,200 training steps of the stage `stage2`, on shards named `shards`, `more`" in card
    assert "Training loss: 1.2500 at step 1200" in card
    assert "the language model from a folder named `mamba2-2.7b`" in card
    assert f"and {5000 - MOST_LISTED:,} more" in card
    assert len(card) < 10_000


def test_hub_names_are_base_models_and_paths_are_not():
    assert hub_names({"language_model": "state-spaces/mamba2-2.7b@abc", "vision": "/a/b"}) == (
        "state-spaces/mamba2-2.7b",
    )
    assert hub_names("me/model@main") == ("me/model",)
    assert hub_names(None) == hub_names("/runs/one") == hub_names("../one") == ()


def test_a_layer_of_one_s_own_has_another_usage():
    card = model_card(CONFIG, SPECS, CardFacts())
    assert "AutoModelForImageTextToText" in card
    own = CONFIG.model_copy(update={"language_model": CONFIG.language_model.model_copy(update={"layer": "gated"})})
    card = model_card(own, SPECS, CardFacts())
    assert "AutoModelForImageTextToText" not in card
    assert "`layer: gated`" in card
    assert front(card)["library_name"] == "ma2mba"


def test_an_exported_run_names_its_recipe_and_loss(tmp_path):
    make_run(tmp_path / "run", steps=(3, 6))
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": s / 2}) + "\n" for s in (3, 6)))
    export(tmp_path / "run", "--out", tmp_path / "out", "--step", 3, "--license", "mit")
    card = (tmp_path / "out/README.md").read_text()
    assert "3 training steps of the stage `stage1`" in card
    assert "Training loss: 1.5000 at step 3" in card
    assert front(card)["license"] == "mit"


def test_an_edited_card_is_kept(tmp_path):
    model = make_model(tmp_path / "model")
    path = model / "README.md"
    text = path.read_text().replace("## Metrics", "## Words of mine\n\nHello é\n\n## Metrics")
    path.write_text(text)
    load_model(model)
    with pytest.raises(UserError, match=r"README\.md: is damaged or was edited .*remove its line from checksums\.json"):
        open_model(model)
    sums = json.loads((model / "checksums.json").read_text())
    del sums["README.md"]
    (model / "checksums.json").write_text(json.dumps(sums))
    export(model, "--out", tmp_path / "kept")
    assert (tmp_path / "kept/README.md").read_text() == text
    export(model, "--out", tmp_path / "licensed", "--license", "cc-by-4.0")
    card = (tmp_path / "licensed/README.md").read_text()
    assert front(card) == front(text) | {"license": "cc-by-4.0"}
    assert "Words of mine\n\nHello é" in card


def test_an_old_folder_gets_a_card(tmp_path):
    export(make_old_model(tmp_path / "old"), "--out", tmp_path / "new", "--license", "mit")
    assert front((tmp_path / "new/README.md").read_text())["license"] == "mit"


@pytest.mark.parametrize("card", ["", "no front matter", "---\n[1]\n---\nbody", "---\n{}\n---\nbody"])
def test_a_licence_is_added_to_any_card(card):
    assert front(relicensed(card, "mit"))["license"] == "mit"
    assert relicensed(card, None) == card


def test_a_card_that_lies_names_no_base_model(tmp_path):
    model = make_model(tmp_path / "model")
    for value, found in (
        ("a/b", ("a/b",)),
        (["a/b", "c", 3, "../x", "d/e f"], ("a/b",)),
        ({"a": "b"}, ()),
        (None, ()),
    ):
        (model / "README.md").write_text(f"---\nbase_model: {json.dumps(value)}\n---\n")
        assert base_models(model) == found
    for text in ("---\n!!python/object:os.system {}\n---\n", "---\n[" * 9, "\xff", "---\na: &a [*a]\n---\n"):
        (model / "README.md").write_bytes(text.encode("latin-1"))
        assert base_models(model) == ()
    (model / "README.md").unlink()
    assert base_models(model) == ()
    sign_model(model)
    open_model(model)

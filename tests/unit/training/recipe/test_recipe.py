"""Recipes: which are rejected, with which message, and that the shipped recipes are valid."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.training.recipe.loading import load_recipe, parse_recipe
from ma2mba.training.recipe.schema import Magc

ROOT = Path(__file__).resolve().parents[4]
MODEL = {
    "language_model": {"d_model": 32, "n_layer": 2, "headdim": 16, "vocab_size": 32},
    "vision": {"hidden_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
}
GOOD = {
    "stage": "stage1",
    "data": "shards",
    "run": "runs/a",
    "model": MODEL,
    "trainable": {"projector": "1e-3"},  # YAML reads 1e-3 as text
    "global_batch": 8,
    "epochs": 1,
}


def refusal(**changes) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe({key: value for key, value in (GOOD | changes).items() if value != "(absent)"})
    return str(caught.value)


def test_a_good_recipe():
    recipe = parse_recipe(GOOD)
    assert recipe.trainable.projector == 1e-3
    assert recipe.trainable.vision is None
    assert (recipe.optimizer.betas, recipe.clip, recipe.schedule.warmup_ratio) == ((0.9, 0.95), 1.0, 0.1)


def test_all_problems_at_once_each_with_its_path():
    text = refusal(
        bach=3,
        data="(absent)",
        stage="stage 3",
        optimizer={"lr": 1e-3, "eps": "small"},
        magc={"chunk_token": 5},
        micro_batch=3,
        steps=4,
        model=MODEL | {"vision": MODEL["vision"] | {"patch_size": 5}},
    )
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "recipe: 9 problems"
    for beginning in (
        "bach: unknown key",
        "data: missing",
        "stage: 'stage 3' is wrong",
        "optimizer.lr: unknown key. Set learning rates under trainable",
        "optimizer.eps: 'small' is wrong",
        "magc.chunk_token: unknown key. Did you mean chunk_tokens?",
        "model.vision: ",
        "global_batch: 8 is not a multiple of micro_batch 3",
        "epochs: 1 is incompatible with steps: 4",
    ):
        assert [line for line in lines if line.startswith(beginning)], f"{beginning!r} is not in\n{text}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": "(absent)"}, "epochs: missing, and so is steps"),
        ({"model": "(absent)"}, "init_from: missing, and so is model"),
        ({"model": "(absent)", "init_from": {"vision": "clip"}}, "model: missing, and init_from does not name both"),
        ({"init_from": {}}, "init_from: names neither"),
        ({"init_from": {"visoin": "clip"}}, "init_from.visoin: unknown key. Did you mean vision?"),
        ({"trainable": {}}, "trainable: nothing is trained"),
        ({"trainable": {"projector": -1}}, "trainable.projector: -1 is wrong: input should be greater than 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas: [0.9, 1.0] must each be at least 0 and below 1"),
        ({"data": []}, "data: an empty list"),
        ({"data": ["a", 3]}, "data.1: 3 is wrong: input should be a valid string"),
        ({"data": [{"path": "a", "weigth": 2}]}, "data.0.weigth: unknown key. Did you mean weight?"),
        ({"data": ["a", {"path": "b", "weight": 0}]}, "data.1.weight: 0 is wrong: input should be greater than 0"),
        ({"data": [{"weight": 2}]}, "data.0.path: missing"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens: 0 is wrong"),
        ({"global_batch": 0}, "global_batch: 0 is wrong"),
        ({"clip": float("nan")}, "clip: nan is wrong"),
        (
            {"parallel": {"sequence": 2}, "magc": {"graphs": True}},
            "magc.graphs: true is incompatible with parallel.sequence: 2: CUDA graphs cannot capture the exchange "
            "between ranks. Use magc.graphs: false or parallel.sequence: 1",
        ),
        ({"magc": {"memo_chunks": -1}}, "magc.memo_chunks: -1 is wrong: input should be greater than or equal to 0"),
        (
            {"magc": {"memo_chunks": 3, "graphs": True}},
            "magc.memo_chunks: 3 is incompatible with magc.graphs: true: captured chunks keep no memos. "
            "Use magc.memo_chunks: 0 or magc.graphs: false",
        ),
        (
            {"magc": {"memo_chunks": 3, "nesting": "layer"}},
            "magc.memo_chunks: 3 is incompatible with magc.nesting: layer: only sequence nesting keeps memos. "
            "Use magc.memo_chunks: 0 or magc.nesting: sequence",
        ),
        (
            {"magc": {"graphs": True, "nesting": "layer"}},
            "magc.graphs: true is incompatible with magc.nesting: layer: CUDA graphs capture sequence nesting only. "
            "Use magc.graphs: false or magc.nesting: sequence",
        ),
        ({"precision": "fp16"}, "precision: 'fp16' is wrong: input should be 'auto', 'bf16' or 'fp32'"),
    ],
)
def test_one_problem(changes, expected):
    text = refusal(**changes)
    assert expected in text
    assert "\n" not in text


def test_every_field_of_a_plan_is_a_key():
    assert list(Magc.model_fields) == [field.name for field in fields(Plan)]
    assert Plan(**Magc().model_dump()) == Plan()


def test_folders_may_have_weights():
    recipe = parse_recipe(GOOD | {"data": ["a", {"path": "b", "weight": 0.5}]})
    assert [(source.path, source.weight) for source in recipe.sources] == [("a", 1.0), ("b", 0.5)]
    assert recipe.folders == [Path("a"), Path("b")]


def test_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    recipe = load_recipe(path, ["trainable.vision=4e-6", "magc.nesting=layer", "epochs=null", "steps=5"])
    assert recipe.trainable.vision == 4e-6
    assert recipe.trainable.projector == 1e-3
    assert (recipe.magc.nesting, recipe.epochs, recipe.steps) == ("layer", None, 5)
    with pytest.raises(UserError, match=r"r\.yaml: optimizer.momentum: unknown key. Use one of: betas"):
        load_recipe(path, ["optimizer.momentum=0.9"])
    with pytest.raises(UserError, match=r"steps: not an override\. Write key=value"):
        load_recipe(path, ["steps"])


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "cannot be read"), ("a: [", "not YAML"), ("- a", "holds list")]
)
def test_files_that_are_no_recipe(tmp_path, content, expected):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=expected):
        load_recipe(path)


@pytest.mark.parametrize("name", ["stage1", "stage1_5", "stage2"])
def test_shipped_recipes_follow_the_paper(name):
    recipe = load_recipe(ROOT / "launch/recipes" / f"{name}.yaml")
    assert recipe.stage == name
    first = name == "stage1"
    rates = recipe.trainable
    assert (rates.projector, rates.language_model, rates.vision) == (
        (1e-3, None, None) if first else (4e-5, 4e-5, 4e-6)
    )
    assert recipe.global_batch == (512 if first else 32)
    assert (recipe.optimizer.betas, recipe.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert (recipe.schedule.warmup_ratio, recipe.clip, recipe.epochs) == (0.1, 1.0, 2)
    assert recipe.zero_config == "zero1"


@pytest.mark.parametrize("name", ["stage1", "stage1_5", "stage2"])
def test_demo_recipes_are_sound(name):
    assert load_recipe(ROOT / "examples/demo/recipes" / f"{name}.yaml").stage == name


def test_a_recipe_is_validated_without_torch():
    """The import of torch takes seconds, which a mistyped recipe must not cost."""
    code = "import sys, ma2mba.training.recipe.loading; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"

"""Training with a model folder's own code: loss and gradients of this project's model, and transformers' Trainer."""

import copy
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from ma2mba.model.encoded import IGNORE
from tests.unit.model.hf_folder import END, batch, load, own_loss, own_stream, prompt, worst

PROMPTS = [prompt(seed, *parts) for seed, parts in enumerate(((5, 4, 7), (3, 1, 4), (2, 3, 5, 2, 1)))]


def labels_of(asked):
    """Supervise all text but the first two tokens; ids of visual tokens stay in, as careless code leaves them."""
    labels = asked.ids_1T.clone()
    labels[:, :2] = IGNORE
    return labels


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(found, expected) -> float:
    """Return the largest difference of a gradient, relative to its parameter's largest or 1/1000 of the largest."""
    assert found.keys() == expected.keys()
    least = max(float(g.abs().max()) for g in expected.values()) / 1000
    return max(worst(found[name], g) / max(float(g.abs().max()), least) for name, g in expected.items())


def own_gradients(own, asked):
    own = copy.deepcopy(own)
    loss = own_loss(own, asked, labels_of(asked))
    loss.backward()
    return loss.detach(), gradients(own)


@pytest.fixture
def model(hf_model):
    return copy.deepcopy(hf_model).train()


@pytest.mark.parametrize("asked", PROMPTS)
def test_loss_and_gradients_are_those_of_this_project(own, model, asked):
    loss, expected = own_gradients(own, asked)
    output = model(**asked.given, labels=labels_of(asked))
    output.loss.backward()
    assert output.past_key_values is None
    assert worst(output.loss, loss) < 1e-5
    assert furthest(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_runs_layers_twice_and_changes_no_gradient(own, model, options):
    asked, runs = PROMPTS[0], []
    _, expected = own_gradients(own, asked)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.language_model.backbone.layers[1].mixer.register_forward_pre_hook(lambda *_: runs.append(1))
    model(**asked.given, labels=labels_of(asked)).loss.backward()
    assert len(runs) == 2
    assert furthest(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_batch_is_the_mean_over_its_supervised_tokens(own, model, side):
    given = batch(PROMPTS, side)
    longest = given["input_ids"].shape[1]
    labels = []
    for asked in PROMPTS:
        pad = longest - asked.ids_1T.shape[1]
        labels.append(F.pad(labels_of(asked), (pad, 0) if side == "left" else (0, pad), value=END))  # careless again
    counts = [int(((labels_of(p) != IGNORE) & (p.ids_1T != 35))[:, 1:].sum()) for p in PROMPTS]
    expected = sum(own_loss(own, p, labels_of(p)) * n for p, n in zip(PROMPTS, counts, strict=True)) / sum(counts)
    assert worst(model(**given, labels=torch.cat(labels)).loss, expected) < 1e-5
    tenth = model(**given, labels=torch.cat(labels), num_items_in_batch=10 * sum(counts)).loss
    assert worst(10 * tenth, expected) < 1e-5
    model.eval()
    with torch.no_grad():
        output = model(**given, labels=torch.cat(labels))
    assert worst(output.loss, expected) < 1e-5
    assert output.logits.shape == (3, longest, 48)


def test_the_loss_of_many_tokens_is_computed_in_blocks(own, model, monkeypatch):
    asked, rows = PROMPTS[0], []
    loss, expected = own_gradients(own, asked)
    monkeypatch.setattr(sys.modules[type(model).__module__], "LOSS_TOKENS", 4)
    model.language_model.lm_head.register_forward_hook(lambda _, x, y: rows.append(y.shape[:-1].numel()))
    output = model(**asked.given, labels=labels_of(asked), logits_to_keep=1)
    output.loss.backward()
    assert max(rows) == 4
    assert worst(output.loss, loss) < 1e-5
    assert furthest(gradients(model), expected) < 1e-5


def test_no_supervised_token_gives_no_loss_and_no_nan(model):
    asked = PROMPTS[0]
    loss = model(**asked.given, labels=torch.full_like(asked.ids_1T, IGNORE)).loss
    loss.backward()
    assert loss.item() == 0
    assert not any(bool(g.any()) for g in gradients(model).values())


def test_autocast_keeps_the_scan_in_fp32(model):
    asked = PROMPTS[0]
    expected = model(**asked.given).logits.detach()
    products = []
    mixer = model.language_model.backbone.layers[0].mixer
    scan = mixer._scan
    mixer._scan = lambda *given: products.append(torch.is_autocast_enabled("cpu")) or scan(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**asked.given).logits
    assert products == [False]
    assert 0 < worst(found.float(), expected) < 0.05 * float(expected.abs().max())


def test_a_cache_carries_gradients_to_the_tokens_before_it(own, model):
    asked = PROMPTS[1]
    own = copy.deepcopy(own)
    own.logits(own_stream(own, asked))[0, -1].sum().backward()
    first = model(asked.ids_1T[:, :-1], pixel_values_videos=asked.frames_N3HW, use_cache=True)
    model(asked.ids_1T[:, -1:], past_key_values=first.past_key_values).logits[0, -1].sum().backward()
    assert furthest(gradients(model), gradients(own)) < 1e-4


def test_trainer_trains_three_steps_saves_and_loads_again(own, model, tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    rows = [p.given | {"labels": labels_of(p)} for p in PROMPTS * 2]

    def collate(chosen):
        longest = max(row["input_ids"].shape[1] for row in chosen)
        padded = {}
        for name, value in (("input_ids", END), ("labels", IGNORE), ("attention_mask", 0)):
            each = [row[name] if name in row else torch.ones_like(row["input_ids"]) for row in chosen]
            padded[name] = torch.cat([F.pad(v, (longest - v.shape[1], 0), value=value) for v in each])
        return padded | {"pixel_values_videos": torch.cat([row["pixel_values_videos"] for row in chosen])}

    losses = []
    for batch_size, steps in ((2, 1), (1, 2)):  # two rows at once, or two rows one after the other
        arguments = TrainingArguments(
            str(tmp_path / f"run{steps}"),
            max_steps=3,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            learning_rate=1e-3,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trained = copy.deepcopy(model)
        trainer = Trainer(trained, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.evaluate()["eval_loss"] < losses[-1][0]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert again.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(t, trained.state_dict()[name]) for name, t in again.state_dict().items())
    assert not torch.equal(again.projector[0].weight, own.projector[0].weight)

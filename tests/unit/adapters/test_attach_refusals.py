"""What `magc.attach` cannot do it says, with the reason, and leaves the model alone."""

import pytest
import torch
from torch import nn

from ma2mba.magc import Plan, attach
from tests.parity.other_models import TOKENS, hf_model, ids, ssm_model


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: hf_model(use_bias=True), "a bias in their projections"),
        (lambda: hf_model(use_conv_bias=False), "a convolution without bias"),
        (lambda: hf_model(time_step_limit=(0.0, 0.1)), r"time_step_limit=\(0.0, 0.1\)"),
        (lambda: hf_model(hidden_act="gelu"), "hidden_act=gelu"),
        (lambda: ssm_model(norm_before_gate=True), "norm_before_gate=True"),
        (lambda: ssm_model(norm_epsilon=1e-3), "norms of different eps"),
        (lambda: nn.Linear(2, 2), "Linear is none of MambaLMHeadModel, Mamba2ForCausalLM"),
    ],
)
def test_models_that_cannot_be_attached_say_why(make, problem):
    model = make()
    with pytest.raises(ValueError, match=problem):
        attach(model)
    assert "_magc_attachment" not in vars(model)


def test_groups_that_an_older_gated_norm_does_not_know():
    model = hf_model(n_groups=2)
    for block in model.backbone.layers:
        vars(block.mixer.norm).pop("group_size", None)
    with pytest.raises(ValueError, match="n_groups=2 beside a gated norm that knows no groups"):
        attach(model)


def test_adapters_put_in_later_are_not_passed_over_in_silence():
    model = attach(hf_model(), Plan())

    class Wrapped(nn.Linear):
        pass

    model.backbone.layers[2].mixer.in_proj.__class__ = Wrapped
    with pytest.raises(ValueError, match=r"not plain nn\.Linear"):
        model(ids(1))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"attention_mask": torch.ones(2, TOKENS).tril(TOKENS - 2)}, "attention_mask has zeros"),
        ({"output_hidden_states": True}, "output_hidden_states keeps every layer's output"),
    ],
)
def test_calls_that_cannot_be_honoured_are_refused(call, problem):
    model = attach(hf_model(), Plan())
    with pytest.raises(ValueError, match=problem):
        model(ids(2), **call)
    with torch.no_grad():
        model(ids(2), **call)


def test_checkpointing_twice_is_refused():
    model = attach(hf_model(), Plan())
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient_checkpointing_disable\(\)"):
        model(ids(1))

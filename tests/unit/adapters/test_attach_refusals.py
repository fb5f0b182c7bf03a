"""`magc.attach` raises an error with the reason for unsupported models and calls, and does not change the model."""

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
        (lambda: ssm_model(norm_epsilon=1e-3), "norms with different eps"),
        (lambda: nn.Linear(2, 2), "Linear is not supported. Attach a MambaLMHeadModel or Mamba2ForCausalLM"),
    ],
)
def test_an_unsupported_model_is_an_error_and_stays_unchanged(make, problem):
    model = make()
    with pytest.raises(ValueError, match=problem):
        attach(model)
    assert "_magc_attachment" not in vars(model)


def test_groups_are_unsupported_if_the_gated_norm_has_none():
    model = hf_model(n_groups=2)
    for block in model.backbone.layers:
        vars(block.mixer.norm).pop("group_size", None)
    with pytest.raises(ValueError, match="n_groups=2 and a gated norm without groups"):
        attach(model)


def test_a_projection_replaced_after_attach_is_an_error():
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
        ({"output_hidden_states": True}, "output_hidden_states is not supported"),
    ],
)
def test_an_unsupported_call_is_an_error_only_with_gradients(call, problem):
    model = attach(hf_model(), Plan())
    with pytest.raises(ValueError, match=problem):
        model(ids(2), **call)
    with torch.no_grad():
        model(ids(2), **call)


def test_checkpointing_by_transformers_is_an_error():
    model = attach(hf_model(), Plan())
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient_checkpointing_disable\(\)"):
        model(ids(1))

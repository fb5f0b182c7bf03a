"""`magc.attach` raises an error with the reason for unsupported models and calls, and does not change the model."""

import pytest
import torch
from torch import nn

from ma2mba.magc import Plan, attach, detach
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
        (lambda: nn.Linear(2, 2), "Linear of torch is not supported. Attach a MambaLMHeadModel of mamba_ssm or Mamba2"),
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


PLACES = {
    "itself": lambda block: block,
    "`norm`": lambda block: block.norm,
    "`mixer`": lambda block: block.mixer,
    "`mixer.conv1d`": lambda block: block.mixer.conv1d,
    "`mixer.out_proj`": lambda block: block.mixer.out_proj,
}
CHANGES = {
    "a hook": [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    ],
    "a replaced forward": [lambda module: setattr(module, "forward", lambda *a, own=module.forward, **k: own(*a, **k))],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("what", "change"), [(what, one) for what, changes in CHANGES.items() for one in changes])
@pytest.mark.parametrize("make", [hf_model, ssm_model])
def test_hooks_and_replaced_forwards_are_errors_at_attach_and_later(make, what, change, place):
    """BEFORE: ignored. A hook that steers the output of a block left the logits 40% off."""
    before, later = make(), attach(make(), Plan())
    for model in (before, later):
        change(PLACES[place](model.backbone.layers[1]))
    with pytest.raises(ValueError, match=what):
        attach(before)
    assert "_magc_attachment" not in vars(before)
    with pytest.raises(ValueError, match=what):
        later(ids(1))
    with torch.no_grad():
        later(ids(1))


def test_detach_keeps_a_forward_that_was_replaced_after_attach():
    model = attach(hf_model(), Plan())
    block = model.backbone.layers[1]
    block.forward = theirs = lambda *a, **k: a[0]
    detach(model)
    assert block.forward is theirs


@pytest.mark.parametrize("wrap", [torch.compile, lambda model: nn.ModuleDict({"base_model": nn.Sequential(model)})])
def test_a_wrapper_is_an_error_that_names_the_model_inside(wrap):
    """BEFORE: "OptimizedModule is not supported", without the way round."""
    wrapper = wrap(hf_model())
    inner = next(name for name, module in wrapper.named_modules() if type(module).__name__ == "Mamba2ForCausalLM")
    with pytest.raises(ValueError, match=rf"wraps a Mamba2ForCausalLM. Attach that: attach\(model.{inner}\)"):
        attach(wrapper)


def test_a_class_of_another_package_is_an_error():
    """BEFORE: AttributeError, or another model's weights computed as Mamba-2."""
    other = type("Mamba2ForCausalLM", (nn.Module,), {"__module__": "elsewhere.modeling"})()
    with pytest.raises(ValueError, match=r"Mamba2ForCausalLM of elsewhere is not supported\. Attach a"):
        attach(other)


@pytest.mark.parametrize("place", ["itself", "`norm`", "`mixer`"])
def test_a_block_with_code_of_another_package_is_an_error(place):
    """BEFORE: the class's own forward was ignored."""
    model = hf_model()
    module = PLACES[place](model.backbone.layers[1])
    module.__class__ = type("Mine", (type(module),), {"__module__": "mine"})
    with pytest.raises(ValueError, match=rf"code of other packages \(Mine as {place}\)"):
        attach(model)


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

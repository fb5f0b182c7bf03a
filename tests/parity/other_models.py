"""Small models of transformers and of mamba-ssm's structure, and the outcome of a forward and backward."""

import importlib
import inspect
import sys
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import Mamba2Config

from ma2mba.model import mamba2_config
from tests.parity.mamba_ssm_like import MambaLMHeadModel


def import_without_kernels(name: str) -> ModuleType:
    """Import a module of transformers while mamba-ssm and causal-conv1d seem not to be installed.

    Where they are installed, transformers calls their kernels with tensors of a CPU too, and the kernels fail.
    """
    hidden = {package: sys.modules.get(package) for package in ("mamba_ssm", "causal_conv1d")}
    sys.modules.pop(name, None)  # another test may have imported it with the kernels
    sys.modules.update(dict.fromkeys(hidden))
    try:
        return importlib.import_module(name)
    finally:
        for package, module in hidden.items():
            del sys.modules[package]
            if module is not None:
                sys.modules[package] = module


modeling = import_without_kernels("transformers.models.mamba2.modeling_mamba2")
Mamba2ForCausalLM, MambaRMSNormGated = modeling.Mamba2ForCausalLM, modeling.MambaRMSNormGated

TOKENS, VOCABULARY, LAYERS = 37, 50, 3
GROUPS = 2 if "group_size" in inspect.signature(MambaRMSNormGated).parameters else 1
"""Older versions of transformers normalize all groups as one."""
CACHE = "cache" if "cache" in inspect.signature(Mamba2ForCausalLM.forward).parameters else "cache_params"
"""The model's argument and result that holds the states; transformers 5.24 renamed it."""


class InDouble(TorchFunctionMode):
    """Computes in fp64 where code converts to fp32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float:
            return args[0].double()
        if function is Tensor.to:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))


def hf_model(**changes) -> Mamba2ForCausalLM:
    torch.manual_seed(0)
    values = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": GROUPS, "chunk_size": 16}
    values |= {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    model = Mamba2ForCausalLM(Mamba2Config(**(values | changes)))
    with torch.no_grad():  # a new model returns its input and has equal decays
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def ssm_model(ngroups: int = 1, *, tied: bool = True, **switches) -> MambaLMHeadModel:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layer": LAYERS, "vocab_size": VOCABULARY, "d_state": 16, "headdim": 8, "ssd_block": 16}
    config = mamba2_config.Mamba2Config(**sizes, ngroups=ngroups, tie_embeddings=tied)
    return MambaLMHeadModel(config, **switches)


def ids(batch: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def outcome(model: nn.Module, batch: int) -> list[Tensor]:
    """Return loss, logits and every gradient. The loss is the model's own if it takes `labels`."""
    given = ids(batch).to(next(model.parameters()).device)
    model.zero_grad(set_to_none=True)
    if isinstance(model, Mamba2ForCausalLM):
        result = model(input_ids=given, labels=given)
        loss = result.loss
    else:
        result = model(given)
        loss = nn.functional.cross_entropy(result.logits[:, :-1].flatten(0, 1), given[:, 1:].flatten())
    loss.backward()
    return [loss.detach(), result.logits.detach(), *[p.grad for p in model.parameters()]]


def worst(found: list[Tensor], right: list[Tensor]) -> float:
    """Return the largest relative error: the norm of the difference over the norm."""
    pairs = ((a.cpu().double(), b.cpu().double()) for a, b in zip(found, right, strict=True))
    return max(((a - b).norm() / b.norm().clamp(min=1e-300)).item() for a, b in pairs)

"""The config.json of a Mamba-2 language model, as state-spaces/mamba and transformers publish it. Imports no torch.

The fields of `Mamba2Config` are translated as a mapping; whoever calls validates them.

A key that a layer of this project cannot represent is refused by its name. A key that changes only how new weights are
drawn, or how fast the library runs, is ignored.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ma2mba.errors import UserError
from ma2mba.text import brief, shorten

Values = Mapping[str, Any]

BACKBONE_TYPE = "video_ma2mba_text"
"""The model_type of a language model in this project's own format."""
NO_LIMIT = (0.0, math.inf)
_SSM_LAYER = {
    "d_state": "d_state",
    "headdim": "headdim",
    "expand": "expand",
    "d_conv": "d_conv",
    "ngroups": "ngroups",
    "ssd_block": "chunk_size",
}
"""Our field -> the key of `ssm_cfg`."""
_SSM_DEFAULTS = {"d_state": 128, "headdim": 64, "expand": 2, "d_conv": 4, "ngroups": 1, "ssd_block": 256}
_SSM_FIXED = {
    "rmsnorm": True,
    "norm_before_gate": False,
    "D_has_hdim": False,
    "bias": False,
    "conv_bias": True,
    "d_ssm": None,
    "dt_limit": NO_LIMIT,
}
_SSM_IGNORED = {"layer", "conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "use_mem_eff_path"}
_SSM_TOP = ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple")
_SSM_TOP_FIXED = {"d_intermediate": 0, "rms_norm": True, "residual_in_fp32": True, "attn_layer_idx": ()}
_SSM_TOP_IGNORED = {"ssm_cfg", "attn_cfg", "fused_add_norm", "tie_embeddings", "architectures", "model_type"}
_SSM_TOP_IGNORED |= {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
_HF = {
    "d_model": ("hidden_size", 4096),
    "n_layer": ("num_hidden_layers", 64),
    "vocab_size": ("vocab_size", 32768),
    "d_state": ("state_size", 128),
    "headdim": ("head_dim", 64),
    "expand": ("expand", 2),
    "d_conv": ("conv_kernel", 4),
    "ngroups": ("n_groups", 8),
    "ssd_block": ("chunk_size", 256),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
}
"""Our field -> the key of transformers and its default."""
_HF_FIXED = {"use_bias": False, "use_conv_bias": True, "residual_in_fp32": True, "time_step_limit": NO_LIMIT}
_HF_FIXED |= {"quantization_config": None}
EPS = 1e-5
"""The eps of every norm of state-spaces/mamba; its config.json has no key for it."""


@dataclass(frozen=True)
class Format:
    """A published format of Mamba-2 language models.

    tied_key   the key that says whether the head is the embedding, and `tied` its default
    embedding  the name of the embedding's tensor; all other names are ours
    fields     config.json -> our fields but tie_embeddings
    values     our fields -> config.json but the tied key
    """

    name: str
    tied_key: str
    tied: bool
    embedding: str
    fields: Callable[[Values], dict[str, Any]]
    values: Callable[[Values], dict[str, Any]]

    def read(self, values: Values) -> dict[str, Any]:
        """Return our fields of a config.json. Raise ValueError, or KeyError for a missing key, or TypeError."""
        tied = values.get(self.tied_key, self.tied)
        if not isinstance(tied, bool):
            raise ValueError(f"{self.tied_key} is {brief(tied)}, not true or false")
        return self.fields(values) | {"tie_embeddings": tied}

    def write(self, fields: Values) -> dict[str, Any]:
        """Return the config.json of our fields. Raise UserError if the format cannot represent them."""
        return self.values(fields) | {self.tied_key: fields["tie_embeddings"]}


def _read_state_spaces(values: Values) -> dict[str, Any]:
    ssm = values.get("ssm_cfg") or {}
    if ssm.get("layer") != "Mamba2":
        raise ValueError(f"ssm_cfg.layer is {brief(ssm.get('layer'))}, and only Mamba2 is supported")
    _require(values, _SSM_TOP_FIXED, {*_SSM_TOP, *_SSM_TOP_IGNORED})
    whole = {"d_ssm": ssm.get("expand", 2) * values["d_model"]} if ssm.get("d_ssm") is not None else {}
    _require(ssm, _SSM_FIXED | whole, {*_SSM_LAYER.values(), *_SSM_IGNORED}, "ssm_cfg.")
    layer = {ours: ssm[theirs] for ours, theirs in _SSM_LAYER.items() if theirs in ssm}
    return {name: values[name] for name in _SSM_TOP} | layer


def _write_state_spaces(fields: Values) -> dict[str, Any]:
    if fields["norm_eps"] != EPS:
        raise UserError(f"norm_eps: is {fields['norm_eps']}, but state-spaces/mamba has only {EPS}. Use another format")
    changed = {theirs: fields[ours] for ours, theirs in _SSM_LAYER.items() if fields[ours] != _SSM_DEFAULTS[ours]}
    return {
        "d_model": fields["d_model"],
        "d_intermediate": 0,
        "n_layer": fields["n_layer"],
        "vocab_size": fields["vocab_size"],
        "ssm_cfg": {"layer": "Mamba2"} | changed,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": fields["pad_vocab_size_multiple"],
    }


def _read_transformers(values: Values) -> dict[str, Any]:
    _require(values, _HF_FIXED)
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"hidden_act is {brief(values['hidden_act'])}, and only silu is supported")
    fields = {ours: values.get(theirs, default) for ours, (theirs, default) in _HF.items()}
    heads = values.get("num_heads", 128)
    if heads * fields["headdim"] != fields["expand"] * fields["d_model"]:
        raise ValueError(f"num_heads is {brief(heads)}, and num_heads * head_dim is not expand * hidden_size")
    return fields | {"pad_vocab_size_multiple": 1}


def _write_transformers(fields: Values) -> dict[str, Any]:
    multiple = fields["pad_vocab_size_multiple"]
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        **{theirs: fields[ours] for ours, (theirs, _) in _HF.items()},
        "vocab_size": -(-fields["vocab_size"] // multiple) * multiple,
        "num_heads": fields["expand"] * fields["d_model"] // fields["headdim"],
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
    }


def _require(values: Values, fixed: Values, others: set[str] | None = None, place: str = "") -> None:
    """Raise ValueError for a key with another value than `fixed`, or, if `others` are given, for an unknown key."""
    for key, only in fixed.items():
        value = _plain(values.get(key, only))
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            raise ValueError(f"{place}{key} is {brief(values[key])}, and only {brief(only)} is supported")
    if others is not None and (odd := sorted(values.keys() - fixed.keys() - others)):
        raise ValueError(f"{place}{shorten(odd[0])} is not a key of this format")


def _plain(value: Any) -> Any:
    """Return lists as tuples, and transformers' {"__float__": "Infinity"} as a number."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return float(value["__float__"])
    return value


STATE_SPACES = Format(
    name="state-spaces/mamba",
    tied_key="tie_embeddings",
    tied=True,
    embedding="backbone.embedding.weight",
    fields=_read_state_spaces,
    values=_write_state_spaces,
)
TRANSFORMERS = Format(
    name="transformers",
    tied_key="tie_word_embeddings",
    tied=False,
    embedding="backbone.embeddings.weight",
    fields=_read_transformers,
    values=_write_transformers,
)


def format_of(values: Any) -> Format | None:
    """Return the format of a config.json; None if it is another."""
    if not isinstance(values, Mapping):
        return None
    if values.get("model_type") == "mamba2":
        return TRANSFORMERS
    return STATE_SPACES if "ssm_cfg" in values else None

"""Folders as others publish them: Mamba-2 of state-spaces and of transformers, CLIP; and a cache of the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.mamba_ssm_like import MambaLMHeadModel
from tests.parity.other_models import VOCABULARY, hf_model, ssm_model
from tests.tiny import TINY_MODEL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def shaken(model: nn.Module) -> Any:
    """Return the model with other weights: many of a new model are equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def state_spaces_config(**changes: Any) -> dict[str, Any]:
    """Return the config.json of `ssm_model`, with the keys that state-spaces/mamba2-* publish."""
    values: dict[str, Any] = {"d_model": 32, "d_intermediate": 0, "n_layer": 3, "vocab_size": VOCABULARY - 1}
    values |= {"ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 8, "chunk_size": 16}, "attn_layer_idx": []}
    values |= {"attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}
    return values | {"pad_vocab_size_multiple": 10, "tie_embeddings": True} | changes


def state_spaces(folder: Path, *, ngroups: int = 1, **changes: Any) -> MambaLMHeadModel:
    """Write a folder as state-spaces publishes it (config.json, pytorch_model.bin), and return its model."""
    model = shaken(ssm_model(ngroups, tied=bool(changes.get("tie_embeddings", True))))
    folder.mkdir(parents=True)
    values = state_spaces_config(**changes)
    if ngroups > 1:
        values["ssm_cfg"] |= {"ngroups": ngroups}
    (folder / "config.json").write_text(json.dumps(values, indent=4))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


def transformers(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Write a folder as transformers' `save_pretrained` does, and return its model."""
    model = hf_model(**({"tie_word_embeddings": True} | changes)).to(dtype).eval()
    model.save_pretrained(folder)
    return model


def clip(folder: Path, *, whole: bool = False, pickled: bool = False) -> dict[str, Tensor]:
    """Write a folder of a CLIPVisionModel, or of a whole CLIPModel; return the tensors of its vision tower."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    vision = CLIPVisionConfig(**TINY_MODEL["vision"])
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**small, vocab_size=99, bos_token_id=0, eos_token_id=1)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)) if whole else CLIPVisionModel(vision)
    model.save_pretrained(folder)
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(means))
    state = dict(model.state_dict())
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(state | {"vision_model.embeddings.position_ids": torch.arange(17)}, folder / "pytorch_model.bin")
    return {n.removeprefix("vision_model."): t for n, t in state.items() if not whole or n.startswith("vision_model.")}


def publish(folder: Path, home: Path, name: str, commit: str = COMMIT, revision: str = "main") -> None:
    """Put the files of a folder into the hub's cache, HF_HOME = `home`, as `name` at `commit`, named `revision`."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        blob = repository / "blobs" / f"{commit[:8]}-{path.name}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")

"""A CLIP vision encoder: a vision tower up to its penultimate layer, its patches pooled to a quarter.

N frames, H and W pixels, P patches and one class token, K tokens of a frame, V vision width.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ma2mba.files import atomic_folder, inside
from ma2mba.hub import HubName, fetch
from ma2mba.model.clip_config import PREPROCESSOR, ClipConfig
from ma2mba.model.clip_layers import ClipTower
from ma2mba.model.downloads import ORIGIN, download_weights, write_json
from ma2mba.model.empty import build_empty, on_meta, require_memory
from ma2mba.model.pickled import Convert, convert_in, convert_to_cache, open_any
from ma2mba.model.vision import VisionEncoder, VisionFlops
from ma2mba.model.weights import WEIGHTS, Weights

CONFIG = "config.json"
TOWER, POSITIONS = "vision_model.", "embeddings.position_ids"
"""The prefix of the vision tower's tensors in a whole CLIPModel, and a constant that older files hold."""


class ClipEncoder(VisionEncoder):
    """Penultimate layer, class token dropped, 2x2 bilinear pooling (paper, section 4).

    The last layer and the norm after it are not built, because nothing reads them. All parameters get a gradient.
    """

    config: ClipConfig
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: ClipConfig):
        super().__init__(config)
        self.clip = ClipTower(config)
        self.register_buffer("mean_C11", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        weight = self.clip.embeddings.patch_embedding.weight
        pixels_N3HW = ((frames_N3HW.to(torch.float32) / 255 - self.mean_C11) / self.std_C11).to(weight.dtype)
        x_NPV = self.clip(pixels_N3HW)[:, 1:]
        side = self.config.patches_per_side
        x_NVHW = x_NPV.transpose(1, 2).unflatten(-1, (side, side))
        half = -(-side // 2)
        return F.interpolate(x_NVHW, size=(half, half), mode="bilinear").flatten(2).transpose(1, 2)

    def flops(self) -> VisionFlops:
        c = self.config
        tokens, width = c.patches_per_side**2 + 1, c.hidden_size
        layer = tokens * (4 * width * width + 2 * width * c.intermediate_size) + 2 * tokens * tokens * width
        patches = 2.0 * c.patches_per_side**2 * 3 * c.patch_size**2 * width
        return VisionFlops(pixels=patches, rest=2.0 * (c.num_hidden_layers - 1) * layer)

    @classmethod
    def load(cls, source: str) -> Self:
        """Read a folder, or download a repository of the hub. Runs no code of either.

        A pickled checkpoint is converted to safetensors first, in a cache.
        """
        opened = open_clip(fetch(source, download_clip), convert_to_cache)
        weights = opened.weights.renamed(lambda name: "clip." + name)
        outline = on_meta(lambda: cls(opened.config), weights, opened.folder / CONFIG)
        weights.require(outline, extra=True)
        require_memory(outline, "cpu", weights.path, torch.float32)
        encoder = build_empty(lambda: cls(opened.config))
        weights.copy_into(encoder)
        return encoder


@dataclass(frozen=True)
class ClipFiles:
    """A CLIP vision tower in a folder, before memory is taken for its weights.

    prefix   what the names of the tensors begin with in the files
    weights  without the prefix, and without the text tower of a whole CLIPModel
    """

    folder: Path
    config: ClipConfig
    prefix: str
    weights: Weights


def open_clip(folder: Path, convert: Convert) -> ClipFiles:
    """Open the vision tower in a folder of CLIPVisionModel or CLIPModel. `convert` converts a pickled checkpoint.

    Raise UserError if the folder holds another model.
    """

    def file_in(name: str) -> Path:
        return inside(folder, name, folder)

    weights = open_any(file_in, convert)
    config = ClipConfig.of_files(file_in(CONFIG), file_in(PREPROCESSOR))
    tensors = {name: t for name, t in weights.tensors.items() if not name.endswith(POSITIONS)}
    prefix = TOWER if any(name.startswith(TOWER) for name in tensors) else ""
    return ClipFiles(folder, config, prefix, Weights(weights.path, tensors).part(prefix))


def download_clip(name: HubName) -> None:
    """Download the weights of a repository, and how pixels are normalised."""
    name.find(PREPROCESSOR)
    download_weights(name)


def import_clip(source: Path, out: Path, origin: Mapping[str, Any]) -> ClipFiles:
    """Write the vision tower of a CLIP folder as a folder of transformers' CLIPVisionModel, and return it.

    Raise UserError if the weights are damaged, have other names or shapes than config.json says, or NaN or infinite
    values; nothing is written then.
    """
    with atomic_folder(out) as temporary:
        scratch = temporary / ".converted"
        scratch.mkdir()
        opened = open_clip(source, convert_in(scratch))
        weights, config = opened.weights, opened.config
        weights.require(on_meta(lambda: ClipTower(config, complete=True), weights, source / CONFIG))
        weights.require_finite()
        tensors = {opened.prefix + name: stored.read().contiguous() for name, stored in weights.tensors.items()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        about = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]}
        pixels = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
        write_json(temporary / CONFIG, about | config.model_dump(exclude={"encoder", *pixels}))
        write_json(temporary / PREPROCESSOR, pixels)
        write_json(temporary / ORIGIN, {**origin, "format": "clip"})
        shutil.rmtree(scratch)
    return opened

"""A hash of what decides a model's states: its configuration, and the names, types, shapes and values of tensors."""

import itertools
import json

import torch
import xxhash
from torch import Tensor

from ma2mba.model.video_ma2mba import VideoMa2mba


def fingerprint(model: VideoMa2mba) -> str:
    """Return the fingerprint of a model, 32 hexadecimal digits. Read all weights: about a second for 5 GB.

    It does not depend on files or on the device. The same model in another dtype is another model: its states differ.
    """
    digest = xxhash.xxh3_128(model.config.model_dump_json().encode())
    # Each tensor once, although some are tied.
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def dtype_name(model: VideoMa2mba) -> str:
    """Return the dtype of the model's matrices as text, such as "float32"."""
    return str(model.language_model.backbone.embedding.weight.dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data

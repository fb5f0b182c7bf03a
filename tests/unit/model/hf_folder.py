"""A model folder for transformers, written by hand: the model's weights under their own names, and the code files.

T tokens, N frames, K tokens of a frame.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

import ma2mba.model
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.encoded import IGNORE
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba

CODE = Path(ma2mba.model.__file__).parent / "hf" / "code"
CLASS = "modeling_video_ma2mba.VideoMa2mbaForConditionalGeneration"
VOCABULARY, END = 35, 0
SIZE, PER_FRAME = 84, 9
"""Frames of 6 x 6 patches; 9 visual tokens a frame."""


def build_model(**language: Any) -> VideoMa2mba:
    """Return a random model whose answers vary. Its vocabulary is padded from 35 to 48."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layer": 3, "d_state": 8, "headdim": 8, "ssd_block": 16, "vocab_size": VOCABULARY}
    vision = ClipConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE, patch_size=14
    )
    model = VideoMa2mba(ModelConfig(language_model=Mamba2Config(**(sizes | language)), vision=vision)).eval()
    with torch.no_grad():
        for layer in model.language_model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(30)
        model.language_model.backbone.embedding.weight.mul_(10)
    return model


def write_folder(model: VideoMa2mba, folder: Path, video_token_id: int = VOCABULARY) -> Path:
    folder.mkdir(parents=True)
    for path in CODE.glob("*_video_ma2mba.py"):
        shutil.copy(path, folder)
    config = {
        "architectures": ["VideoMa2mbaForConditionalGeneration"],
        "model_type": "video_ma2mba",
        "auto_map": {
            "AutoConfig": "configuration_video_ma2mba.VideoMa2mbaConfig",
            "AutoModelForImageTextToText": CLASS,
            "AutoModelForMultimodalLM": CLASS,
        },
        "dtype": "float32",
        "tie_word_embeddings": model.config.language_model.tie_embeddings,
        "video_token_id": video_token_id,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "text_config": {"model_type": "video_ma2mba_text", **model.config.language_model.model_dump(mode="json")},
        "vision_config": {"model_type": "video_ma2mba_vision", **model.config.vision.model_dump(mode="json")},
        "format_version": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    if model.config.language_model.tie_embeddings:
        del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **options)


@dataclass(frozen=True)
class Prompt:
    """Ids with VOCABULARY at the places of visual tokens (1, T), and frames."""

    ids_1T: Tensor
    frames_N3HW: Tensor

    @property
    def given(self) -> dict[str, Tensor]:
        frames = {"pixel_values_videos": self.frames_N3HW} if len(self.frames_N3HW) else {}
        return {"input_ids": self.ids_1T, **frames}

    @property
    def visual_1T(self) -> Tensor:
        seen_1T = self.ids_1T == VOCABULARY
        return torch.where(seen_1T, seen_1T.cumsum(1) - 1, -1)


def prompt(seed: int, *parts: int) -> Prompt:
    """Return a prompt of random text and frames by turns: the number of tokens, of frames, of tokens, ..."""
    random = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for number, count in enumerate(parts):
        text = torch.randint(1, VOCABULARY, (count,), generator=random).tolist()
        ids += [VOCABULARY] * count * PER_FRAME if number % 2 else text
    frames = torch.randint(0, 256, (sum(parts[1::2]), 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    return Prompt(torch.tensor(ids)[None], frames)


def own_stream(model: VideoMa2mba, asked: Prompt) -> Tensor:
    """Return the residual stream of this project's model after a prompt."""
    text_1T = asked.ids_1T.masked_fill(asked.ids_1T == VOCABULARY, 0)
    x_1TD = model.embed(text_1T, asked.visual_1T, asked.frames_N3HW)
    return model.run(x_1TD, model.initial_states(x_1TD))[0]


@torch.no_grad()
def own_logits(model: VideoMa2mba, asked: Prompt) -> Tensor:
    return model.logits(own_stream(model, asked))[0]


def own_answer(model: VideoMa2mba, asked: Prompt, tokens: int) -> list[int]:
    """Return the most likely tokens, up to END, reading everything again for each."""
    answer: list[int] = []
    while len(answer) < tokens and END not in answer:
        ids_1T = torch.cat([asked.ids_1T, torch.tensor([answer], dtype=torch.long)], dim=1)
        answer.append(int(own_logits(model, Prompt(ids_1T, asked.frames_N3HW))[-1, :VOCABULARY].argmax()))
    return answer


def own_loss(model: VideoMa2mba, asked: Prompt, labels_1T: Tensor) -> Tensor:
    """Return the mean loss of the supervised tokens."""
    labels_1T = labels_1T.masked_fill(asked.ids_1T == VOCABULARY, IGNORE)
    targets_1T = torch.cat([labels_1T[:, 1:], torch.full((1, 1), IGNORE)], dim=1)
    return model.loss_sum(own_stream(model, asked), targets_1T) / (targets_1T != IGNORE).sum()


def batch(prompts: list[Prompt], side: str) -> dict[str, Tensor]:
    """Return the inputs of a batch, padded with END on one side."""
    longest = max(p.ids_1T.shape[1] for p in prompts)
    ids, masks = [], []
    for p in prompts:
        pad = (longest - p.ids_1T.shape[1], 0) if side == "left" else (0, longest - p.ids_1T.shape[1])
        ids.append(F.pad(p.ids_1T, pad, value=END))
        masks.append(F.pad(torch.ones_like(p.ids_1T), pad))
    frames = torch.cat([p.frames_N3HW for p in prompts])
    return {"input_ids": torch.cat(ids), "attention_mask": torch.cat(masks), "pixel_values_videos": frames}


@torch.no_grad()
def worst(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference."""
    return float((found - expected).abs().max())

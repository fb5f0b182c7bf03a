"""Plot how long each head of a model remembers: its half-life on the frames of a quiet video.

A head of a Mamba-2 layer multiplies its state by exp(-exp(A_log) * dt) at each token, and chooses dt for each token.
Its half-life is the time after which half of the state is left, at the head's mean decay over the frames of a toy video
without a needle.

    python examples/needles/decays.py runs/demo/model runs/demo-long/model --out decays
"""

import argparse
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ma2mba.files import atomic_path, atomic_write
from ma2mba.inference.chat import VideoChat
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.ops.reference.norm import rms_norm
from ma2mba.plots import draw_half_lives
from ma2mba.terminal import Arguments, Terminal
from ma2mba.video.synthetic.movie import plan_movie, write_movie

SCENES = 5


def main() -> int:
    """Measure the models, and write OUT.json and OUT.png."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model folders, for example before and after a training")
    parser.add_argument("--seconds", type=int, default=300, help="length of the toy video (default: 300)")
    parser.add_argument("--out", type=Path, default=Path("decays"), help="name of both files (default: decays)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "quiet.mp4")
        write_movie(plan_movie("quiet", arguments.seconds, None, SCENES, random.Random(0)), video)
        seconds = {str(model): half_lives(VideoChat.open(model, dtype="fp32"), video) for model in arguments.models}
    with atomic_write(arguments.out.with_suffix(".json")) as file:
        json.dump({"half_life_seconds": {name: found.tolist() for name, found in seconds.items()}}, file, indent=1)
    with atomic_path(arguments.out.with_suffix(".png")) as temporary:
        draw_half_lives(seconds, temporary)
    for name, found in seconds.items():
        longest = ", ".join(f"{value:,.0f}" for value in found.max(axis=1))
        Terminal().print(f"{name}: half-life in seconds of the longest head of each layer: {longest}", soft_wrap=True)
    return 0


def half_lives(chat: VideoChat, video: Path) -> np.ndarray:
    """Return the half-life in seconds of each head, (layers, heads), over the frames of a video at 1 FPS."""
    model = chat.model
    found: list[list[Tensor]] = [[] for _ in model.layers]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, kept=kept: kept.append(decays(layer, inputs[0])))
        for layer, kept in zip(model.layers, found, strict=True)
    ]
    try:
        frames = chat.fork().watch(video, hashed=False).frames
    finally:
        for hook in hooks:
            hook.remove()
    per_frame = model.config.tokens_per_frame
    visual = [torch.cat(kept)[-frames * per_frame :] for kept in found]
    return np.stack([(math.log(2) / decay_TH.mean(0) / per_frame).cpu().numpy() for decay_TH in visual])


def decays(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    """Return exp(A_log) * dt, by which each head's state decays at each token: decay_TH in fp32."""
    assert isinstance(layer, Mamba2Layer)
    w = layer.weights
    heads = len(w.D_H)
    raw_TH = F.linear(rms_norm(x_BTD, w.norm_D, layer.shape.eps), w.in_proj_XD[-heads:])[0]
    return torch.exp(w.A_log_H.float()) * F.softplus(raw_TH.float() + w.dt_bias_H.float())


if __name__ == "__main__":
    sys.exit(main())

"""Gradients of every schedule against plain autograd on the same kernels, on one GPU: rows for benchmarks/magc.py.

A small Video-Ma2mba (the layer's own sizes: 128 states, heads of 64, blocks of 256) on ragged batches with frames.
fp32: the worst relative difference of a parameter's gradient. bf16: the worst ratio, over the parameters, of the
schedule's distance from the fp32 gradient to that of plain bf16 autograd.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import DEVICE
from ma2mba.data.batch import Batch, Sample, collate
from ma2mba.magc import Plan
from ma2mba.magc.plan import StashPlace
from ma2mba.model.config import BackboneConfig, ModelConfig, VisionConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.streaming import build_streamer, streaming_loss

LAYERS = 4
VISION = VisionConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
BACKBONE = BackboneConfig(d_model=256, n_layer=LAYERS, vocab_size=500)
Gradients = dict[str, Tensor]


def plans() -> list[Plan]:
    """Both nestings, every stash, boundaries kept and made again, memos, graphs on and off; chunks of one block and of
    an odd length."""
    every: list[tuple[StashPlace, int]] = [("device", 1), ("host", 1), ("host", 2)]
    graphs = [Plan("sequence", 256, LAYERS, stash, e, graphs=True) for stash, e in every]
    eager = [Plan("sequence", 256, LAYERS, stash, e) for stash, e in every]
    layer = [Plan("layer", 256, 1, "device"), Plan("layer", 256, 3, "host", 2)]
    groups = [Plan("sequence", 256, 1, "device", 3), Plan("sequence", 200, 2, "host")]
    return [*graphs, *eager, *layer, *groups, Plan("sequence", 256, LAYERS, "host", memo_chunks=3)]


def make_batch(rows: int) -> Batch:
    """Ragged rows of text and frames, the longest of 1,300 tokens and more: no multiple of any chunk."""
    rng = np.random.default_rng(rows)

    def sample(i: int) -> Sample:
        text, frames = 900 + 37 * i, 101 - 13 * i
        return Sample(
            f"sample {i}",
            rng.integers(1, BACKBONE.vocab_size, text),
            rng.random(text) < 0.5,
            np.sort(rng.integers(0, text, frames)),
            rng.integers(0, 256, (frames, 3, 56, 56), dtype=np.uint8),
        )

    return collate([sample(i) for i in range(rows)], VISION.tokens_per_frame)


def rows(plans: list[Plan]) -> Iterator[dict[str, Any]]:
    """One row for each dtype, number of rows, frozen or trained encoder, and plan."""
    torch.manual_seed(0)
    model = VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=VISION)).to(DEVICE)
    model.bfloat16().float()  # weights that both dtypes can hold
    for batch_rows, vision in ((1, "frozen"), (4, "trained")):
        batch = make_batch(batch_rows)
        model.float().vision.requires_grad_(vision == "trained")
        exact = plain(model, batch)
        case = {"rows": batch_rows, "tokens": batch.ids_BS.shape[1], "vision": vision}
        for plan in plans:
            yield {**case, "dtype": "fp32", "plan": vars(plan), "worst": worst(streamed(model, batch, plan), exact)}
        model.bfloat16()
        own = distances(plain(model, batch), exact)
        for plan in plans:
            theirs = distances(streamed(model, batch, plan), exact)
            ratios = {name: theirs[name] / own[name] for name in own}
            name = max(ratios, key=ratios.__getitem__)
            yield {**case, "dtype": "bf16", "plan": vars(plan), "worst": ratios[name], "parameter": name}


def plain(model: VideoMa2mba, batch: Batch) -> Gradients:
    model.zero_grad(set_to_none=True)
    x_BTD = model.embed(batch.ids_BS.to(DEVICE), batch.visual_BS.to(DEVICE), batch.frames_NCHW.to(DEVICE))
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    (model.loss_sum(x_BTD, batch.targets_BS.to(DEVICE)) / batch.supervised).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def streamed(model: VideoMa2mba, batch: Batch, plan: Plan) -> Gradients:
    """The second of two steps: graphs are recorded by then."""
    streamer = build_streamer(model, plan)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        streaming_loss(model, batch, plan, 1 / batch.supervised, streamer).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def distances(found: Gradients, exact: Gradients) -> dict[str, float]:
    """Relative, parameter by parameter, but for those whose gradient is zero but for rounding (biases of keys)."""
    smallest = 1e-5 * max(gradient.norm().item() for gradient in exact.values())
    return {
        name: ((found[name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in exact.items()
        if gradient.norm().item() > smallest
    }


def worst(found: Gradients, exact: Gradients) -> float:
    return max(distances(found, exact).values())

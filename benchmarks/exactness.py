"""Gradients of every schedule against plain autograd on the same kernels, on one GPU: rows for benchmarks/magc.py.

Four of the 2.7B model's layers and a small vision encoder, on ragged batches with frames. fp32 without tf32: a
gradient's relative difference, and beside it how far plain autograd in fp32 is from fp64 (on the CPU, plain torch).
bf16: a schedule's distance from the fp32 gradient over that of plain bf16 autograd, parameter by parameter, both root
mean squares over DRAWS batches. On a single batch rounding decides which of two equal computations is nearer; so beside
the worst ratio stands `surely`, the worst one that is left when every mean is taken CERTAIN standard errors nearer.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import DEVICE
from ma2mba.data.batch import Batch, Sample, collate
from ma2mba.magc import Plan
from ma2mba.magc.plan import StashPlace
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops.selftest import relative
from ma2mba.training.streaming import build_streamer, streaming_loss

LAYERS = 4
VISION = ClipConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
BACKBONE = Mamba2Config(d_model=2560, n_layer=LAYERS, vocab_size=500)
DRAWS, CERTAIN = 16, 4
Gradients = dict[str, Tensor]
Errors = dict[str, list[float]]
"""Relative, parameter by parameter, batch by batch."""


def plans() -> list[Plan]:
    """Both nestings, every stash, boundaries kept and made again, memos, graphs on and off; chunks of a block and less.

    All lengths are multiples of 16: Triton compiles fp32 products again, for a minute, for lengths that are not.
    """
    every: list[tuple[StashPlace, int]] = [("device", 1), ("host", 1), ("host", 2)]
    graphs = [Plan("sequence", 256, LAYERS, stash, e, graphs=True) for stash, e in every]
    eager = [Plan("sequence", 256, LAYERS, stash, e) for stash, e in every]
    layer = [Plan("layer", 256, 1, "device"), Plan("layer", 256, 3, "host", 2)]
    groups = [Plan("sequence", 256, 1, "device", 3), Plan("sequence", 208, 2, "host")]
    return [*graphs, *eager, *layer, *groups, Plan("sequence", 256, LAYERS, "host", memo_chunks=3)]


def make_batch(rows: int, draw: int) -> Batch:
    """Ragged rows of text and frames, the longest of 1,296 tokens: no multiple of any chunk."""
    rng = np.random.default_rng((rows, draw))

    def sample(i: int) -> Sample:
        text, frames = 892 + 37 * i, 101 - 13 * i
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
    model.bfloat16()  # weights that both dtypes can hold
    for batch_rows, vision in ((1, "frozen"), (4, "trained")):
        batches = [make_batch(batch_rows, draw) for draw in range(DRAWS)]
        case = {"rows": batch_rows, "tokens": batches[0].ids_BS.shape[1], "vision": vision}
        model.float().vision.requires_grad_(vision == "trained")
        with without_tf32():
            exact = [plain(model, batch) for batch in batches]
            truth = plain(model.cpu().double(), batches[0])
            model.float().to(DEVICE)
            floor = root_mean_squares(errors(exact[:1], [on_device(truth)]))
            for plan in plans:
                worst = worst_of(root_mean_squares(errors(streamed(model, batches[:1], plan), exact[:1])))
                yield {
                    **case,
                    "dtype": "fp32",
                    "plan": vars(plan),
                    **worst,
                    "plain_from_fp64": floor[worst["parameter"]],
                }
        model.bfloat16()
        own = errors([plain(model, batch) for batch in batches], exact)
        for plan in plans:
            theirs = errors(streamed(model, batches, plan), exact)
            surely = {name: surely_farther(theirs[name], own[name]) for name in own}
            ratios = over(root_mean_squares(theirs), root_mean_squares(own))
            yield {**case, "dtype": "bf16", "plan": vars(plan), **worst_of(ratios), "surely": max(surely.values())}


@contextmanager
def without_tf32() -> Iterator[None]:
    """cuDNN's convolutions use it unless told; matrix products do not."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


def plain(model: VideoMa2mba, batch: Batch) -> Gradients:
    device = model.language_model.lm_head.weight.device
    x_BTD = model.embed(batch.ids_BS.to(device), batch.visual_BS.to(device), batch.frames.all().to(device))
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    (model.loss_sum(x_BTD, batch.targets_BS.to(device)) / batch.supervised).backward()
    return gradients(model)


def streamed(model: VideoMa2mba, batches: Sequence[Batch], plan: Plan) -> list[Gradients]:
    """After a step that is not looked at: graphs are captured by then."""
    streamer, found = build_streamer(model, plan), []
    for batch in (batches[0], *batches):
        streaming_loss(model, batch, plan, 1 / batch.supervised, streamer).backward()
        found.append(gradients(model))
    return found[1:]


def gradients(model: VideoMa2mba) -> Gradients:
    """The model lets go of them: it would take them along to another dtype or device."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def on_device(found: Gradients) -> Gradients:
    return {name: gradient.to(DEVICE) for name, gradient in found.items()}


def errors(found: Sequence[Gradients], exact: Sequence[Gradients]) -> Errors:
    """Without parameters whose gradient is zero but for rounding (biases of keys)."""
    smallest = 1e-5 * max(gradient.norm().item() for gradient in exact[0].values())
    return {
        name: [relative(f[name], e[name]) for f, e in zip(found, exact, strict=True)]
        for name, gradient in exact[0].items()
        if gradient.norm().item() > smallest
    }


def root_mean_squares(found: Errors) -> dict[str, float]:
    return {name: statistics.fmean(e * e for e in each) ** 0.5 for name, each in found.items()}


def surely_farther(theirs: Sequence[float], own: Sequence[float]) -> float:
    """The ratio of root mean squares that chance does not explain."""
    differences = [a * a - b * b for a, b in zip(theirs, own, strict=True)]
    left = statistics.fmean(differences) - CERTAIN * statistics.stdev(differences) / len(differences) ** 0.5
    return max(1 + left / statistics.fmean(b * b for b in own), 0.0) ** 0.5


def over(theirs: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    return {name: theirs[name] / own[name] for name in own}


def worst_of(figures: dict[str, float]) -> dict[str, Any]:
    name = max(figures, key=figures.__getitem__)
    return {"worst": figures[name], "parameter": name, "median": statistics.median(figures.values())}

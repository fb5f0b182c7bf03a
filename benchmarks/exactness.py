"""Compare the gradients of every schedule with plain autograd on the same kernels: rows for benchmarks/magc.py.

The model has four layers of the 2.7B size and a small vision encoder. The batches are ragged and contain frames.

fp32 (without TF32): `worst` is the relative difference between the two gradients. `plain_from_fp64` is the relative
difference between plain autograd in fp32 and in fp64 (the fp64 gradient is computed on the CPU with plain PyTorch).

bf16: `worst` is the error of the schedule divided by the error of plain bf16 autograd, for the worst parameter. Both
errors are distances from the fp32 gradient, root mean square over DRAWS batches. On a single batch, rounding decides
which of two equivalent computations is closer. `surely` is therefore the worst ratio that chance does not explain: the
mean difference of the squared errors is first reduced by CERTAIN standard errors.
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
"""Parameter name -> one relative error per batch."""


def plans() -> list[Plan]:
    """Return plans that together cover every feature of a schedule.

    They cover both nestings, every stash, stored and recomputed boundaries, memos, CUDA graphs on and off, and chunks
    of one scan block and of less. All lengths are multiples of 16: for any other length Triton spends a minute on
    compiling the fp32 matrix products again.
    """
    stashes: list[tuple[StashPlace, int]] = [("device", 1), ("host", 1), ("host", 2)]
    graphs = [Plan("sequence", 256, LAYERS, stash, e, graphs=True) for stash, e in stashes]
    eager = [Plan("sequence", 256, LAYERS, stash, e) for stash, e in stashes]
    layer = [Plan("layer", 256, 1, "device"), Plan("layer", 256, 3, "host", 2)]
    groups = [Plan("sequence", 256, 1, "device", 3), Plan("sequence", 208, 2, "host")]
    return [*graphs, *eager, *layer, *groups, Plan("sequence", 256, LAYERS, "host", memo_chunks=3)]


def make_batch(rows: int, draw: int) -> Batch:
    """Return ragged rows of text and frames. The longest row has 1,296 tokens, a multiple of no chunk length."""
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
    """Yield one row for each batch size with its frozen or trained encoder, each dtype and each plan."""
    torch.manual_seed(0)
    model = VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=VISION)).to(DEVICE)
    model.bfloat16()  # so that both dtypes represent the weights exactly
    for batch_rows, vision in ((1, "frozen"), (4, "trained")):
        batches = [make_batch(batch_rows, draw) for draw in range(DRAWS)]
        case = {"rows": batch_rows, "tokens": batches[0].ids_BS.shape[1], "vision": vision}
        model.float().vision.requires_grad_(vision == "trained")
        with without_tf32():
            exact = [plain(model, batch) for batch in batches]
            exact_fp64 = plain(model.cpu().double(), batches[0])
            model.float().to(DEVICE)
            plain_errors = root_mean_squares(errors(exact[:1], [on_device(exact_fp64)]))
            for plan in plans:
                worst = worst_of(root_mean_squares(errors(streamed(model, batches[:1], plan), exact[:1])))
                yield {
                    **case,
                    "dtype": "fp32",
                    "plan": vars(plan),
                    **worst,
                    "plain_from_fp64": plain_errors[worst["parameter"]],
                }
        model.bfloat16()
        of_plain = errors([plain(model, batch) for batch in batches], exact)
        mean_of_plain = root_mean_squares(of_plain)
        for plan in plans:
            of_plan = errors(streamed(model, batches, plan), exact)
            ratios = {name: mean / mean_of_plain[name] for name, mean in root_mean_squares(of_plan).items()}
            surely = max(certain_ratio(of_plan[name], of_plain[name]) for name in of_plain)
            yield {**case, "dtype": "bf16", "plan": vars(plan), **worst_of(ratios), "surely": surely}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32 in cuDNN's convolutions, where PyTorch enables it by default. Matrix products do not use it."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


def plain(model: VideoMa2mba, batch: Batch) -> Gradients:
    """Return the gradients of plain autograd over the whole sequence."""
    device = model.language_model.lm_head.weight.device
    x_BTD = model.embed(batch.ids_BS.to(device), batch.visual_BS.to(device), batch.frames.all().to(device))
    x_BTD, _ = model.run(x_BTD, model.initial_states(x_BTD))
    (model.loss_sum(x_BTD, batch.targets_BS.to(device)) / batch.supervised).backward()
    return take_gradients(model)


def streamed(model: VideoMa2mba, batches: Sequence[Batch], plan: Plan) -> list[Gradients]:
    """Return the gradients of a plan for each batch. A first step, which captures CUDA graphs, is discarded."""
    streamer, found = build_streamer(model, plan), []
    for batch in (batches[0], *batches):
        streaming_loss(model, batch, plan, 1 / batch.supervised, streamer).backward()
        found.append(take_gradients(model))
    return found[1:]


def take_gradients(model: VideoMa2mba) -> Gradients:
    """Return the gradients and remove them from the model, which would convert them along with its weights."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def on_device(found: Gradients) -> Gradients:
    return {name: gradient.to(DEVICE) for name, gradient in found.items()}


def errors(found: Sequence[Gradients], exact: Sequence[Gradients]) -> Errors:
    """Return relative errors. Leave out parameters whose gradient is only rounding noise, such as biases of keys."""
    smallest = 1e-5 * max(gradient.norm().item() for gradient in exact[0].values())
    return {
        name: [relative(f[name], e[name]) for f, e in zip(found, exact, strict=True)]
        for name, gradient in exact[0].items()
        if gradient.norm().item() > smallest
    }


def root_mean_squares(found: Errors) -> dict[str, float]:
    return {name: statistics.fmean(e * e for e in each) ** 0.5 for name, each in found.items()}


def certain_ratio(of_plan: Sequence[float], of_plain: Sequence[float]) -> float:
    """Return the ratio of the root mean squares that chance does not explain."""
    differences = [a * a - b * b for a, b in zip(of_plan, of_plain, strict=True)]
    certain = statistics.fmean(differences) - CERTAIN * statistics.stdev(differences) / len(differences) ** 0.5
    return max(1 + certain / statistics.fmean(b * b for b in of_plain), 0.0) ** 0.5


def worst_of(figures: dict[str, float]) -> dict[str, Any]:
    name = max(figures, key=figures.__getitem__)
    return {"worst": figures[name], "parameter": name, "median": statistics.median(figures.values())}

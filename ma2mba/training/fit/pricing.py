"""Price a model for training: its layers, its front and head, and what ZeRO keeps in memory all the time.

B rows of a micro-batch, T tokens of a chunk, D model width, N frames, K tokens of a frame.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.magc.cell import Piece, State, Values
from ma2mba.magc.plan import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.sizes import CLIP, SIZES
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops import backend, kernels_on_meta
from ma2mba.ops.types import LOSS_BLOCK
from ma2mba.planner.choose import Budget, Planner
from ma2mba.planner.cost import Cost, Price
from ma2mba.planner.measure import measure, price, sum_bytes
from ma2mba.planner.memory import USABLE
from ma2mba.planner.schedule import Workload
from ma2mba.planner.speed import clock, estimate
from ma2mba.training.recipe.schema import COMPONENTS, Recipe
from ma2mba.training.world import ZeroPolicy, load_policy

BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed's ZeRO 2 and 3 reduce gradients (its default)."""
CONVERSATION_TOKENS = 1024
"""Tokens of text that a plan allows for with the frames of a video."""
MEASURED = (256, 512, 2048)
"""Tokens of the chunks on which a layer is measured."""
CLOCKED = (256, 1024, 4096, 8192, 16384, 32768)
"""Tokens of the chunks on which a layer is timed."""
SECONDS_PER_HOUR = 3600
Priced = Literal["here", "kernels", "torch"]


@dataclass(frozen=True)
class Setup:
    """How a model is trained.

    trained   the components of the model that train.
    rows      rows of a micro-batch on one GPU.
    gpus      GPUs that ZeRO shards over; `zero` is its stage.
    features  frames come as the output of a frozen encoder.
    """

    config: ModelConfig
    trained: tuple[str, ...] = COMPONENTS
    dtype: torch.dtype = torch.bfloat16
    rows: int = 1
    gpus: int = 1
    zero: int = 1
    optimizer_on_host: bool = False
    features: bool = False


@dataclass(frozen=True)
class Machine:
    """The memory of a machine, and how layers are priced for it.

    device_bytes  memory of one GPU.
    host_bytes    host memory for the process of one GPU; None keeps nothing in host memory.
    priced        "here": layers run on this machine's GPU. "kernels" and "torch": layers are priced as a GPU's kernels
                  or as plain torch, and nothing is computed.
    graphs        chunks may be captured as CUDA graphs.
    one_memory    host memory and device memory are the same, as on a CPU.
    """

    device_bytes: float
    host_bytes: float | None = None
    priced: Priced = "torch"
    graphs: bool = False
    one_memory: bool = False


def can_capture(zero_stage: int, ranks: int) -> bool:
    """Return True if some plan may use CUDA graphs when `ranks` ranks share each sequence."""
    return not Plan.problems(graphs=True, ranks=ranks, moves_weights=moves_weights(zero_stage))


def moves_weights(zero_stage: int) -> bool:
    """Return True for ZeRO 3, which gathers the weights at new addresses in every step."""
    return zero_stage == 3


def priced_here(kernels: bool) -> bool:
    """Return True if this machine has a GPU that runs layers with kernels, or without them if `kernels` is False."""
    return torch.cuda.is_available() and (backend(torch.device("cuda")) == "triton") == kernels


@dataclass(frozen=True)
class SampleLength:
    """The length of the longest sample: its frames, and its tokens of text, all of which may be learned."""

    frames: int
    text_tokens: int

    @staticmethod
    def of_video(hours: float) -> "SampleLength":
        """Return the length of a video at one frame a second with a conversation about it."""
        return SampleLength(round(hours * SECONDS_PER_HOUR), CONVERSATION_TOKENS)

    def workload(self, config: ModelConfig) -> Workload:
        """Return the sample as the planner sees it for a model of `config`."""
        K = config.tokens_per_frame
        tokens = self.frames * K + self.text_tokens
        return Workload(tokens, K, self.frames * K, self.text_tokens) if self.frames else Workload(tokens)


def config_of_size(name: str) -> ModelConfig:
    """Return the configuration of one of the paper's models: 370m, 1.3b or 2.7b, with CLIP ViT-L/14-336."""
    if name not in SIZES:
        raise UserError(
            f"--model {name}: unknown model. Use one of {', '.join(SIZES)}, or a recipe: a YAML file, or a name that "
            "`ma2mba recipes` lists"
        )
    return ModelConfig(language_model=SIZES[name], vision=CLIP)


def setup_of_recipe(
    recipe: Recipe, gpus: int, dtype: torch.dtype, config: ModelConfig, policy: ZeroPolicy | None = None
) -> Setup:
    """Return how a recipe trains a model of `config`. Read the recipe's ZeRO policy unless `policy` is given."""
    policy = policy or load_policy(recipe.zero_config)
    offload = policy.values["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    trained = tuple(name for name in COMPONENTS if getattr(recipe.trainable, name))
    return Setup(config, trained, dtype, recipe.micro_batch, gpus, policy.stage, offload == "cpu")


def make_planner(setup: Setup, workload: Workload, machine: Machine) -> Planner:
    """Return a planner for the setup's model on a machine. Speeds are an H200's, unless layers are priced "here"."""
    device = "cuda" if machine.priced == "here" else "meta"
    with torch.device(device), kernels_on_meta() if machine.priced == "kernels" else nullcontext():
        short = setup.config.language_model.model_copy(update={"n_layer": 1})
        model = VideoMa2mba(setup.config.model_copy(update={"language_model": short})).to(setup.dtype)
        for name in COMPONENTS:
            model.get_submodule(name).requires_grad_(name in setup.trained)
        cost = _price(model, setup, workload, machine)
        like_x = torch.zeros(setup.rows, 1, setup.config.language_model.d_model)
        lengths = CLOCKED[:2] + tuple(tokens for tokens in CLOCKED[2:] if tokens * setup.rows <= CLOCKED[-1])
        speed = clock(_layers(model, setup), like_x, cost, lengths) if machine.priced == "here" else estimate(cost)
    base, host = base_bytes(model, setup)
    host_bytes = None if machine.host_bytes is None else int(machine.host_bytes)
    budget = Budget(int(machine.device_bytes * USABLE), host_bytes, base, host, machine.one_memory)
    longest_call = None if machine.priced == "torch" else model.layers[0].longest_call(setup.rows)
    return Planner(cost, speed, budget, machine.graphs, longest_call)


def base_bytes(model: VideoMa2mba, setup: Setup) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes that are taken on the device and on the host all the time. `model` has one of the layers.

    These are the weights in the setup's dtype; an fp32 master copy and AdamW's two fp32 moments, sharded from ZeRO 1
    on; and DeepSpeed's fp32 gradients, sharded from ZeRO 2 on. ZeRO 3 keeps a shard of the weights and gathers all
    weights for a step.
    """
    layer = sum(p.numel() for p in model.layers[0].parameters()) * (setup.config.language_model.n_layer - 1)
    every = layer + sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained += layer if "language_model" in setup.trained else 0
    width = setup.dtype.itemsize
    master = 4 if width < 4 or setup.zero > 0 else 0
    weights = every * width + (every * width // setup.gpus if setup.zero == 3 else 0)
    gradients = 4 * trained // (setup.gpus if setup.zero >= 2 else 1)
    gradients += 2 * BUCKET * width if setup.zero >= 2 else 0
    optimizer = (8 + master) * trained // (setup.gpus if setup.zero >= 1 else 1)
    device = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    if setup.optimizer_on_host:
        return device | {"optimizer": 0}, {"optimizer": optimizer}
    return device, {}


def _price(model: VideoMa2mba, setup: Setup, workload: Workload, machine: Machine) -> Cost:
    tokens_per_frame = workload.unit if workload.unit > 1 else 0
    front, head = price_ends(model, setup, tokens_per_frame, _head_lengths(setup.rows, machine.priced))
    like_x = torch.empty(setup.rows, 1, setup.config.language_model.d_model)
    return measure(_layers(model, setup), like_x, front, head, _lengths(workload), persistent_sums=machine.graphs)


def _layers(model: VideoMa2mba, setup: Setup) -> list[nn.Module]:
    """Return the layers of the setup's model. `model` has one of them: a backbone builds all its layers alike."""
    return [model.layers[0]] * setup.config.language_model.n_layer


def _head_lengths(rows: int, priced: Priced) -> list[int]:
    """Return the lengths on which the head runs.

    With a GPU's kernels, logits exist for `LOSS_BLOCK` positions of all rows at a time. The price has a step at this
    length, and a different slope up to twice this length.
    """
    if priced == "torch":
        return [64, 256, 1024]
    lengths = (256 // rows, LOSS_BLOCK // rows, LOSS_BLOCK // rows + 1, 2 * LOSS_BLOCK // rows, 4 * LOSS_BLOCK // rows)
    return sorted({max(1, length) for length in lengths})


def _lengths(workload: Workload) -> list[int]:
    """Return the lengths on which a layer runs, at least two; none is longer than the sequence."""
    tokens, unit = workload.tokens, workload.unit
    lengths = {length // unit * unit or length for length in MEASURED if length < tokens}
    return sorted(lengths | {tokens} if tokens < max(MEASURED) else lengths) if lengths else [-(-tokens // 2), tokens]


def price_ends(
    model: VideoMa2mba, setup: Setup, tokens_per_frame: int, head_lengths: Sequence[int]
) -> tuple[Price, Price]:
    """Return the prices of the front and of the head, as `streaming.streaming_loss` runs them on the model's device.

    The front's chunks are full of frames, or of text if `tokens_per_frame` is 0. The head learns every token.
    """
    language, rows, unit = model.language_model, setup.rows, max(tokens_per_frame, 1)
    device = language.lm_head.weight.device

    def front(ids_BT: Tensor, visual_BT: Tensor, frames: Tensor) -> Values:
        return (model.embed(ids_BT, visual_BT, frames.view(torch.bfloat16) if setup.features else frames),)

    def chunk(tokens: int) -> tuple[Values, list[State]]:
        ids_BT = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
        frames = rows * tokens // tokens_per_frame if tokens_per_frame else 0
        return (ids_BT, torch.zeros_like(ids_BT), _frames(model, setup, frames)), []

    def head(x_BTD: Tensor, places_M: Tensor, targets_M: Tensor) -> Values:
        return (model.loss_at(x_BTD, places_M, targets_M) * 1.0,)

    def behind(tokens: int) -> tuple[Values, list[State]]:
        x_BTD = torch.zeros(rows, tokens, model.config.language_model.d_model, device=device)
        return (x_BTD, *(torch.zeros(rows * tokens, dtype=torch.int64, device=device) for _ in range(2))), []

    before = Piece.of_function(front, [model.vision, model.projector, language.backbone.embedding])
    after = Piece.of_function(head, [language.backbone.norm_f, language.lm_head])
    front_price = price(before, chunk, [unit * count for count in ((1, 3) if tokens_per_frame else (256, 1024))])
    shared = set(before.parameters) & set(after.parameters)
    sums, weights = front_price.sums - sum_bytes(shared), front_price.weights - sum(p.nbytes for p in shared)
    return replace(front_price, sums=sums, weights=weights), price(after, behind, head_lengths)


def _frames(model: VideoMa2mba, setup: Setup, frames: int) -> Tensor:
    """Return frames as `streaming.Chunks` yields them: images, or the bits of features."""
    config, device = model.config, model.language_model.lm_head.weight.device
    if setup.features:
        return torch.zeros(frames, config.tokens_per_frame, config.vision.width, dtype=torch.int16, device=device)
    return torch.zeros(frames, 3, config.image_size, config.image_size, dtype=torch.uint8, device=device)

"""Plans for training: what a model costs on the meta device, what ZeRO keeps all the time, and whether a step fits.

B rows of a micro-batch, T tokens of a chunk, D model width, N frames, K tokens of a frame.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.magc.cell import Piece, State, Values
from ma2mba.magc.choose import Budget, Planner, chunk_lengths
from ma2mba.magc.cost import Cost, Price, measure, price
from ma2mba.magc.predict import Prediction, Sequence
from ma2mba.magc.speed import clock, estimate
from ma2mba.model.config import BackboneConfig, ModelConfig, VisionConfig
from ma2mba.model.pretrained import read_config, state_spaces_config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.checkpoint import model_folder
from ma2mba.training.recipe import PART_NAMES, Recipe
from ma2mba.training.world import ZeroPolicy, load_policy

GIB = 2**30
SIZES = {"370m": (48, 1024), "1.3b": (48, 2048), "2.7b": (64, 2560)}
USABLE = 0.94
"""Of a device's memory; the rest is CUDA's context and what the allocator cannot use of its blocks."""
CLIP = VisionConfig(num_hidden_layers=24)
"""ViT-L/14-336."""
BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed's ZeRO 2 and 3 reduce gradients (its default)."""
CONVERSATION_TOKENS = 1024
"""Text that is planned for beside the frames of a video."""
LONGEST_MEASURED = 4608
CLOCKED = (256, 1024, 4096)
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Setup:
    """What is trained how. `trained` names parts of the model; rows are those of a micro-batch on one GPU."""

    config: ModelConfig
    trained: tuple[str, ...] = PART_NAMES
    dtype: torch.dtype = torch.bfloat16
    rows: int = 1
    gpus: int = 1
    zero: int = 1
    optimizer_on_host: bool = False


@dataclass(frozen=True)
class Workload:
    """The longest sample: frames, and text of which every token may be learned."""

    frames: int
    text_tokens: int

    @staticmethod
    def of_video(hours: float) -> "Workload":
        """A video at one frame a second, and a conversation about it."""
        return Workload(round(hours * SECONDS_PER_HOUR), CONVERSATION_TOKENS)

    def sequence(self, config: ModelConfig) -> Sequence:
        K = config.tokens_per_frame
        tokens = self.frames * K + self.text_tokens
        return Sequence(tokens, K, self.frames * K, self.text_tokens) if self.frames else Sequence(tokens)


def config_of_size(name: str) -> ModelConfig:
    """The paper's models: 370m, 1.3b, 2.7b, with CLIP ViT-L/14-336."""
    if name not in SIZES:
        raise UserError(f"--model {name}: neither one of {', '.join(SIZES)} nor a recipe (a YAML file)")
    layers, width = SIZES[name]
    return ModelConfig(language_model=BackboneConfig(d_model=width, n_layer=layers), vision=CLIP)


def setup_of_recipe(recipe: Recipe, gpus: int, dtype: torch.dtype, policy: ZeroPolicy | None = None) -> Setup:
    """As the recipe trains. Reads configurations, never weights. Raises UserError where one is missing."""
    policy = policy or load_policy(recipe.zero_config)
    offload = policy.values["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    trained = tuple(part for part in PART_NAMES if getattr(recipe.trainable, part))
    return Setup(_config(recipe), trained, dtype, recipe.micro_batch, gpus, policy.stage, offload == "cpu")


def _config(recipe: Recipe) -> ModelConfig:
    source = recipe.init_from
    if recipe.model is not None:
        return recipe.model
    if isinstance(source, str):
        return read_config(model_folder(source))
    assert source is not None, "the recipe's validation asks for a model otherwise"
    assert source.language_model is not None, "the recipe's validation asks for a model otherwise"
    language_model = state_spaces_config(source.language_model)
    path = Path(source.vision or "") / "config.json"
    if not path.is_file():
        return ModelConfig(language_model=language_model, vision=CLIP)
    values = json.loads(path.read_text(encoding="utf-8"))
    values = values.get("vision_config", values)
    known = {name: values[name] for name in VisionConfig.model_fields if name in values}
    return ModelConfig(language_model=language_model, vision=CLIP.model_copy(update=known))


def planner(
    setup: Setup, sequence: Sequence, device_bytes: float, host_bytes: float | None, device: str = "meta"
) -> Planner:
    """Price the setup's model for a machine of so many bytes.

    device  "cuda": by running one layer and the ends there, through the kernels that training will use, time included.
            "meta": without running anything, in plain torch, with the speed of an H200.
    """
    with torch.device(device):
        short = setup.config.language_model.model_copy(update={"n_layer": 1})
        model = VideoMa2mba(setup.config.model_copy(update={"language_model": short})).to(setup.dtype)
        for part in PART_NAMES:
            model.get_submodule(part).requires_grad_(part in setup.trained)
        cost = _price(model, setup, sequence)
        like_x = torch.zeros(setup.rows, 1, setup.config.language_model.d_model)
        speed = estimate(cost) if device == "meta" else clock(model.layers[0], like_x, cost, CLOCKED)
    base, host = base_bytes(model, setup)
    budget = Budget(int(device_bytes * USABLE), None if host_bytes is None else int(host_bytes), base, host)
    return Planner(cost, speed, budget)


def base_bytes(model: VideoMa2mba, setup: Setup) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes on the device and on the host all the time, of a model that has only one of the setup's layers.

    Weights in the setup's dtype; an fp32 master copy and AdamW's two fp32 moments, shared out from ZeRO 1 on;
    DeepSpeed's fp32 gradients, shared out from ZeRO 2 on; ZeRO 3 keeps a share of the weights and gathers all of them
    for a step.
    """
    layer = sum(p.numel() for p in model.layers.parameters()) * (setup.config.language_model.n_layer - 1)
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


def check_fits(
    setup: Setup,
    workload: Workload,
    plan: Plan,
    device_bytes: int,
    host_bytes: int | None = None,
    device: str = "meta",
) -> Prediction:
    """Predict a step of the longest sample under `plan`.

    Raises UserError with the predicted parts, and a plan that would fit if there is one.
    """
    sequence = workload.sequence(setup.config)
    machine = planner(setup, sequence, device_bytes, host_bytes, device)
    prediction = machine.predict(sequence, plan)
    budget = machine.budget if host_bytes is not None else replace(machine.budget, host=1 << 62)
    if budget.holds(prediction):
        return prediction
    raise UserError(
        f"magc: {describe(plan)} needs {_parts(prediction)} for {sequence.tokens:,} tokens, but "
        f"{machine.budget.device / GIB:.1f} GiB of {device_bytes / GIB:.1f} GiB can be used"
        + ("" if host_bytes is None else f" and {host_bytes / GIB:.1f} GiB of host memory")
        + f"; {remedy(machine, sequence)}"
    )


def remedy(machine: Planner, sequence: Sequence) -> str:
    """What to do when something does not fit."""
    choice = machine.choose(sequence)
    if choice:
        plan = choice.best.plan
        keys = f"chunk_tokens: {plan.chunk_tokens}, group_layers: {plan.group_layers}, stash: {plan.stash}"
        return f"this would fit: magc: {{nesting: {plan.nesting}, {keys}}}"
    least = machine.smallest(sequence)
    total = f"{needed_gib(least)} GB of device memory"
    if machine.budget.host is not None and least.host_bytes > machine.budget.host:
        total += f" and {least.host_bytes / GIB:.1f} GB of host memory"
    return f"no plan fits: the smallest that would takes {total} ({describe(least.plan)})"


def needed_gib(prediction: Prediction) -> str:
    """The memory of a device, in GiB, on which a prediction fits."""
    return f"{prediction.device_bytes / USABLE / GIB + 0.05:.1f}"


def describe(plan: Plan) -> str:
    """A plan in words."""
    return (
        f"{plan.nesting} nesting, chunks of {plan.chunk_tokens:,} tokens, groups of {plan.group_layers} layers, "
        f"states on the {plan.stash}"
    )


def _parts(prediction: Prediction) -> str:
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in prediction.device.items() if size)
    host = f" and {prediction.host_bytes / GIB:.1f} GiB of host memory" if prediction.host_bytes else ""
    return f"{prediction.device_bytes / GIB:.1f} GiB ({parts}){host}"


def _price(model: VideoMa2mba, setup: Setup, sequence: Sequence) -> Cost:
    plans = [Plan(chunk_tokens=T) for T in chunk_lengths(1 << 40)]
    lengths = {replace(sequence, tokens=1 << 40).chunk(plan) for plan in plans} | {sequence.tokens}
    front, head = price_ends(model, setup.rows, sequence.unit if sequence.unit > 1 else 0)
    like_x = torch.empty(setup.rows, 1, setup.config.language_model.d_model)
    layers = setup.config.language_model.n_layer
    return measure(model.layers[0], like_x, layers, front, head, [T for T in lengths if T <= LONGEST_MEASURED])


def price_ends(model: VideoMa2mba, rows: int, tokens_per_frame: int) -> tuple[Price, Price]:
    """What stands before the layers (chunks full of frames, or of text if `tokens_per_frame` is 0) and behind them
    (every token learned), as `streaming.streaming_loss` runs it on the model's device."""
    language, size, unit = model.language_model, model.config.image_size, max(tokens_per_frame, 1)
    device = language.lm_head.weight.device

    def front(ids_BT: Tensor, visual_BT: Tensor, frames_NCHW: Tensor, targets_BT: Tensor) -> Values:
        return model.embed(ids_BT, visual_BT, frames_NCHW), targets_BT

    def chunk(tokens: int) -> tuple[Values, list[State]]:
        ids_BT = torch.zeros(rows, tokens, dtype=torch.int64, device=device)
        frames = rows * tokens // tokens_per_frame if tokens_per_frame else 0
        frames_NCHW = torch.zeros(frames, 3, size, size, dtype=torch.uint8, device=device)
        return (ids_BT, torch.zeros_like(ids_BT), frames_NCHW, torch.zeros_like(ids_BT)), []

    def head(x_BTD: Tensor, targets_BT: Tensor) -> Values:
        return (model.loss_sum(x_BTD, targets_BT) * 1.0,)

    def behind(tokens: int) -> tuple[Values, list[State]]:
        x_BTD = torch.zeros(rows, tokens, model.config.language_model.d_model, device=device)
        return (x_BTD, torch.zeros(rows, tokens, dtype=torch.int64, device=device)), []

    before = Piece.of_function(front, [model.vision, model.projector, language.backbone.embedding])
    after = Piece.of_function(head, [language.backbone.norm_f, language.lm_head])
    front_price = price(before, chunk, [unit * count for count in ((1, 3) if tokens_per_frame else (256, 1024))])
    tied = sum(p.numel() * max(4, p.element_size()) for p in set(before.parameters) & set(after.parameters))
    return replace(front_price, sums=front_price.sums - tied), price(after, behind, (64, 256, 1024))

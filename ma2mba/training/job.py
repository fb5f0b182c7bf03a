"""Build the objects of a run from a recipe. All ranks do the same, before any process group exists."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from ma2mba.data.dataset import Dataset
from ma2mba.data.sampler import Position, Sampler
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.hf.folder import fixed_files
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import fingerprint
from ma2mba.ops import backend
from ma2mba.training.checkpoint.code_version import code_version, describe
from ma2mba.training.checkpoint.folder import Start
from ma2mba.training.checkpoint.resume import find_start
from ma2mba.training.fit.fitting import FittedPlan, fit_run
from ma2mba.training.model_source import ModelSource, find_source, pin
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.start_clock import StartClock
from ma2mba.training.world import World, ZeroPolicy, check_ranks, load_policy, share_sequences

log = logging.getLogger(__name__)


@dataclass
class Job:
    """Everything that a run needs before its processes join. `clock` has noted when each part was built."""

    recipe: Recipe
    world: World
    policy: ZeroPolicy
    fitted_plan: FittedPlan
    model: VideoMa2mba
    dataset: Dataset
    sampler: Sampler
    start: Start | None
    steps: int
    base_models: tuple[str, ...] = ()
    clock: StartClock = field(default_factory=StartClock)

    @property
    def plan(self) -> Plan:
        return self.fitted_plan.plan

    @property
    def first_step(self) -> int:
        return self.start.state.step if self.start else 0

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of a checkpoint's TrainerState that do not change during a run."""
        return {
            "ranks": self.world.size,
            "zero_stage": self.policy.stage,
            "dtype": str(self.world.dtype(self.recipe.precision)),
            "data_fingerprint": self.dataset.fingerprint,
            "data_contents": self.dataset.contents,
            "recipe": self.recipe.model_dump(mode="json"),
            "code": code_version(),
        }

    @property
    def position(self) -> Position:
        """The place in the data of the next step."""
        return Position(self.start.state.epoch, self.start.state.cursor) if self.start else Position()


def build(recipe: Recipe, world: World) -> Job:
    """Read the recipe's model and data, and choose the plan. Raise UserError before anything is written.

    One rank of each host reads and verifies weights and checkpoints (`World.reads_files`). If it raises an error, the
    launcher ends the other ranks.
    """
    clock = StartClock()
    clock.enter("checkpoint")
    world, policy = check_world(recipe, world)
    start = find_start(recipe, verify=world.reads_files)
    recipe = pin(recipe, start)
    clock.enter("weights")
    source = choose_source(recipe, start)
    log.debug("weights: %s", source.describe())
    # ZeRO 3 cuts the weights into shards of the ranks: no device need hold them all.
    device = world.device if policy.stage < 3 else torch.device("cpu")
    dtype = world.dtype(recipe.precision)
    model = source.build(recipe.seed, device, dtype) if world.reads_files else source.build_empty(device, dtype)
    clock.enter("data")
    data = open_data(recipe, world, source, model.config, start)
    if world.reads_files:
        _check_features(data.dataset, model)
    clock.enter("imports")
    backend(world.device)
    clock.enter("plan")
    fitted_plan = fit_run(data.recipe, world, policy, model.config, data.dataset)
    if world.rank == 0:  # so that the first checkpoint takes no longer than the others
        fixed_files(model.config.model_dump_json(), data.dataset.tokenizer_path.read_bytes())
    return Job(
        data.recipe,
        world,
        policy,
        fitted_plan,
        model,
        data.dataset,
        data.sampler,
        start,
        data.steps,
        source.base_models,
        clock,
    )


def check_world(recipe: Recipe, world: World) -> tuple[World, ZeroPolicy]:
    """Return the world in groups of `parallel.sequence` ranks, and the ZeRO policy. Raise UserError if one is wrong."""
    world = share_sequences(recipe, world)
    check_ranks(recipe if recipe.micro_batch_tokens is None else recipe.model_copy(update={"micro_batch": 1}), world)
    log.debug("ranks: %d on %s, dtype %s", world.size, world.device, world.dtype(recipe.precision))
    return world, load_policy(recipe.zero_config)


def choose_source(recipe: Recipe, start: Start | None) -> ModelSource:
    """Return where the model comes from. Raise UserError if the run would train around a random language model."""
    source = find_source(recipe, start)
    if source.draws_language_model and recipe.trainable.language_model is None:
        raise UserError(
            f"trainable: trains only {', '.join(recipe.trainable.components)}, for a language model of random weights, "
            "from which nothing can be learned. Name weights under init_from.language_model (or a run or a model "
            "under init_from), or train the language model too: trainable.language_model=1e-3"
        )
    return source


@dataclass
class Data:
    """The samples of a run and their order. `recipe` has the `micro_batch` that the sampler uses."""

    recipe: Recipe
    dataset: Dataset
    sampler: Sampler

    @property
    def steps(self) -> int:
        return self.recipe.steps or self.sampler.steps


def open_data(recipe: Recipe, world: World, source: ModelSource, config: ModelConfig, start: Start | None) -> Data:
    """Return the data of a run. Raise UserError if they do not fit the model, or the checkpoint that is resumed."""
    weights = [folder.weight for folder in recipe.sources]
    dataset = Dataset(
        recipe.folders, config.image_size, config.tokens_per_frame, weights=weights, exclude=recipe.excluded
    )
    _check_tokenizer(source, config, dataset)
    _require_frozen_vision(recipe, dataset)
    if start:
        start.check(recipe, world, dataset.fingerprint)
        start.check_contents(dataset.folders, dataset.contents)
        log.info("resuming from %s, written by %s", start.folder, describe(start.state.code))
    sampler, recipe = build_sampler(recipe, world, dataset)
    if start and recipe.order == "length":
        _require_same_passes(recipe, start, sampler)
    log.debug("data: %d samples, %d rows in a micro-batch", len(dataset), recipe.micro_batch)
    return Data(recipe, dataset, sampler)


def build_sampler(recipe: Recipe, world: World, dataset: Dataset) -> tuple[Sampler, Recipe]:
    """Return the sampler, and the recipe with the `micro_batch` that follows from `micro_batch_tokens`.

    DeepSpeed needs the same number of micro-batches in every step, so every step has as many as the step that needs
    most.
    """

    def make(micro_batch: int, passes: int) -> Sampler:
        return Sampler(
            dataset.length_N,
            dataset.targets_N,
            dataset.frames_N,
            global_batch=recipe.global_batch,
            micro_batch=micro_batch,
            ranks=world.groups,
            seed=recipe.seed,
            order=recipe.order,
            passes=passes,
            micro_batch_tokens=recipe.micro_batch_tokens,
            mixture=dataset.mixture,
        )

    finest = make(1, 1)
    passes = passes_of(recipe.epochs, recipe.steps, recipe.global_batch, finest)
    if recipe.micro_batch_tokens is None:
        return make(recipe.micro_batch, passes), recipe
    finest = make(1, passes)
    needed = finest.micro_batches_needed(recipe.micro_batch_tokens, recipe.steps or finest.steps)
    share = recipe.global_batch // world.groups
    micro_steps = next(count for count in range(-(-needed // world.groups), share + 1) if share % count == 0)
    recipe = recipe.model_copy(update={"micro_batch": share // micro_steps})
    return make(recipe.micro_batch, passes), recipe


def passes_of(epochs: int | None, steps: int | None, global_batch: int, sampler: Sampler) -> int:
    """Return how many passes over the data a run of so many epochs or steps makes, the last one perhaps in part."""
    return epochs or -(-(steps or 0) * global_batch // sampler.draws)


def _require_same_passes(recipe: Recipe, start: Start, sampler: Sampler) -> None:
    """Raise UserError if a run with order "length" resumes with another number of passes, and so in another order."""
    saved = {key: value for key in ("epochs", "steps") if isinstance(value := start.state.recipe.get(key), int)}
    before = passes_of(saved.get("epochs"), saved.get("steps"), recipe.global_batch, sampler)
    if sampler.passes != before:
        key, old = "epochs" if recipe.epochs else "steps", ", ".join(f"{key}={value}" for key, value in saved.items())
        raise UserError(
            f"{key}: {recipe.epochs or recipe.steps} makes {sampler.passes} passes over the data, but the run began "
            f"with {before} ({old}). With order: length all passes are sorted together, so the short samples of other "
            f"passes would never be seen. Restore {old}, or train in a new run folder with init_from={start.folder}"
        )


def _check_tokenizer(source: ModelSource, config: ModelConfig, dataset: Dataset) -> None:
    data = ", ".join(map(str, dataset.folders))
    tokens, known = load_tokenizer(dataset.tokenizer_path).get_vocab_size(), config.language_model.vocab_size
    if tokens > known:
        raise UserError(
            f"{data}: the tokenizer has {tokens} tokens, but the model knows only {known}. Build the shards with the "
            "model's tokenizer"
        )
    if dataset.largest_token >= known:
        raise UserError(
            f"{data}: has a token with the id {dataset.largest_token}, but the model knows only {known} tokens. Build "
            "the shards with the model's tokenizer"
        )
    if not source.has_tokens_of(dataset.tokenizer_path):
        raise UserError(
            f"{data}: preprocessed with another tokenizer than the model's. Build the shards with {source.tokenizer}"
        )


def _require_frozen_vision(recipe: Recipe, dataset: Dataset) -> None:
    """Raise UserError if the recipe trains the vision encoder on stored features."""
    if dataset.features is not None and recipe.trainable.vision is not None:
        raise UserError(
            f"trainable.vision: {recipe.trainable.vision} is incompatible with {', '.join(map(str, recipe.folders))}, "
            "which holds features of a frozen vision encoder. Remove trainable.vision, or train on the shards with "
            "frames"
        )


def _check_features(dataset: Dataset, model: VideoMa2mba) -> None:
    """Raise UserError unless stored features come from the model's own vision encoder."""
    if dataset.features is not None and dataset.features.encoder != fingerprint(model.vision):
        raise UserError(
            f"{', '.join(map(str, dataset.folders))}: features of another vision encoder than the model's. Encode the "
            "frames again with `ma2mba data encode --encoder` and the encoder that init_from names"
        )

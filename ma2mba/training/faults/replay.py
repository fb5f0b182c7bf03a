"""Save a step whose loss or gradient is not finite (RUN/replay/step-000123.json), and re-run its samples separately."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from ma2mba.data.batch import collate
from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.magc import Plan
from ma2mba.model.base_config import problem
from ma2mba.model.tensor_file import reason_of
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.planner.meter import tensors_in
from ma2mba.text import read_json
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.model_source import find_source
from ma2mba.training.optimizer import set_trainable
from ma2mba.training.recipe.rules import conflicts
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.streaming import streaming_loss

REPLAY = "replay"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class MicroBatchRecord(_Record):
    """One micro-batch of one rank.

    samples     indices of its samples in the dataset
    sample_ids  ids of the same samples
    loss        mean over their supervised tokens
    """

    samples: list[Count]
    sample_ids: list[str]
    loss: float

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.samples) != len(self.sample_ids):
            raise ValueError(f"{len(self.samples)} samples, but {len(self.sample_ids)} sample_ids")
        return self


class StepRecord(_Record):
    """One step, as the JSON file holds it.

    step           number of the step, from 1
    checkpoint     folder of the latest checkpoint before the step; None if there was none
    plan           fields of `ma2mba.magc.Plan`
    micro_batches  `micro_batches[rank][micro_step]`
    """

    step: Count
    loss: float
    gradient_norm: float
    checkpoint: str | None
    dtype: Annotated[str, Field(pattern=r"^torch\.(float32|bfloat16)$")]
    plan: dict[str, Any]
    recipe: dict[str, Any]
    micro_batches: list[list[MicroBatchRecord]]


@dataclass(frozen=True)
class Replayed:
    """The result of one sample, run separately.

    loss              mean over the sample's supervised tokens
    first_not_finite  name of the first module whose output is infinite or NaN, such as
                      `language_model.backbone.layers.3`; None if all outputs are finite
    """

    rank: int
    sample_id: str
    tokens: int
    frames: int
    loss: float
    gradient_norm: float
    first_not_finite: str | None

    @property
    def fine(self) -> bool:
        """True if the loss, the gradient and all outputs are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm) and self.first_not_finite is None


def write(path: Path, record: StepRecord) -> None:
    """Write a step's record. Raise UserError if it cannot be written."""
    try:
        with atomic_write(path) as file:
            file.write(record.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Free disk space and start again") from error


def read(path: Path) -> StepRecord:
    """Read a step's record. Raise UserError if the file is missing or is not such a record."""
    if not path.exists():
        raise UserError(f"{path}: No such file. Give a file in the folder {REPLAY} of a run")
    try:
        record = StepRecord.model_validate(read_json(path))
        Plan(**record.plan)
        wrong = [text for _, text in conflicts(Recipe.model_validate(record.recipe))]
    except ValidationError as error:
        wrong = [problem(error)]
    except (ValueError, TypeError) as error:
        wrong = [f"plan: {reason_of(error)}"]
    if wrong:
        raise UserError(
            f"{path}: not a step saved by training ({wrong[0]}). Give a file in the folder {REPLAY} of a run"
        )
    return record


def replay(record: StepRecord, device: torch.device) -> Iterator[Replayed]:
    """Run forward and backward for each sample of a step separately, with the weights of the checkpoint before it.

    The weights may be NaN or infinite: the result names the module. Raise UserError if the checkpoint is missing or the
    data have changed.
    """
    recipe = Recipe.model_validate(record.recipe)
    start = _start(record)
    dtype = getattr(torch, record.dtype.removeprefix("torch."))
    model = find_source(recipe, start).build(recipe.seed, device, dtype, finite=False).to(device, dtype)
    set_trainable(model, recipe.trainable)
    config = model.config
    dataset = Dataset(recipe.folders, config.image_size, config.tokens_per_frame, exclude=recipe.excluded)
    plan = _plan_for_one_rank(Plan(**record.plan), recipe.parallel.sequence)
    if problems := plan.conflicts(model.config.language_model.n_layer):
        raise UserError(f"step {record.step}: {problems[0]}. Give the replay file of this model's run")
    for rank, micro_batches in enumerate(record.micro_batches):
        for micro_batch in micro_batches:
            for index, sample_id in zip(micro_batch.samples, micro_batch.sample_ids, strict=True):
                _check_sample(dataset, index, sample_id)
                yield _run_sample(model, dataset, index, plan, rank)


def _start(record: StepRecord) -> checkpoint.Start | None:
    if record.checkpoint is None:
        return None
    if not Path(record.checkpoint).is_dir():
        raise UserError(
            f"{record.checkpoint}: the checkpoint before step {record.step} does not exist on this machine. Replay "
            "where the run was trained, or copy the checkpoint to this path"
        )
    return checkpoint.read(Path(record.checkpoint))


def _plan_for_one_rank(plan: Plan, ranks: int) -> Plan:
    """Return the plan for one rank. Its chunks have as many tokens as a chunk's share on each of `ranks` ranks.

    The plan has no graphs and no memos: both skip the hooks that check the outputs of modules.
    """
    return replace(plan, chunk_tokens=max(1, plan.chunk_tokens // ranks), graphs=False, memo_chunks=0)


def _run_sample(model: VideoMa2mba, dataset: Dataset, index: int, plan: Plan, rank: int) -> Replayed:
    batch = collate([dataset[index]], model.config.tokens_per_frame)
    model.zero_grad(set_to_none=True)
    with first_not_finite(model) as found:
        loss = streaming_loss(model, batch, plan, 1.0 / batch.supervised)
        loss.backward()
    gradients = [p.grad.float() for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    return Replayed(
        rank=rank,
        sample_id=batch.sample_ids[0],
        tokens=batch.ids_BS.shape[1],
        frames=len(batch.frames),
        loss=loss.item(),
        gradient_norm=norm,
        first_not_finite=found[0] if found else None,
    )


@contextmanager
def first_not_finite(model: VideoMa2mba) -> Iterator[list[str]]:
    """Yield a list. It receives the name of the first module whose output is not finite, while the block runs."""
    found: list[str] = []
    backbone = model.language_model.backbone
    modules = [model.vision, model.projector, backbone.embedding, *model.layers, backbone.norm_f]
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not all(bool(t.isfinite().all()) for t in tensors_in(output)):
            found.append(names[module])

    handles = [module.register_forward_hook(look) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check_sample(dataset: Dataset, index: int, sample_id: str) -> None:
    if index >= len(dataset) or dataset.samples[index][1].sample_id != sample_id:
        folders = ", ".join(map(str, dataset.folders))
        raise UserError(
            f"{folders}: sample {index} is not {sample_id}, which the failed step used. Replay with the run's shards"
        )

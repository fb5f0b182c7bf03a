"""A step that went wrong (RUN/replay/step-000123.json), and its samples run again one by one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from ma2mba.data.batch import collate
from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.magc import Plan
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.checkpoint import folder as checkpoint
from ma2mba.training.job import build_model
from ma2mba.training.optimizer import set_trainable
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.streaming import streaming_loss

REPLAY = "replay"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class KeptMicroBatch(_Kept):
    """Samples (places in the data, and ids) that a rank saw at once; their mean loss over supervised tokens."""

    samples: list[int]
    sample_ids: list[str]
    loss: float


class KeptStep(_Kept):
    """A step, from 1; `micro_batches[rank][micro_step]`. `checkpoint` is the last before it, None for the start.

    `plan` has the fields of `ma2mba.magc.Plan`.
    """

    step: int
    loss: float
    gradient_norm: float
    checkpoint: str | None
    dtype: str
    plan: dict[str, Any]
    recipe: dict[str, Any]
    micro_batches: list[list[KeptMicroBatch]]


@dataclass(frozen=True)
class Replayed:
    """One sample alone: loss over its supervised tokens (mean), norm of its gradient, and the first module whose output
    was infinite or not a number, as `language_model.backbone.layers.3`, None where all were fine."""

    rank: int
    sample_id: str
    tokens: int
    frames: int
    loss: float
    gradient_norm: float
    first_not_finite: str | None

    @property
    def fine(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm) and self.first_not_finite is None


def write(path: Path, kept: KeptStep) -> None:
    """Raises UserError where the disk does not take it."""
    try:
        with atomic_write(path) as file:
            file.write(kept.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error


def read(path: Path) -> KeptStep:
    """Raises UserError when it is missing or something else."""
    try:
        return KeptStep.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file of a run's folder {REPLAY}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a step that training kept; give a file of a run's folder {REPLAY}") from error


def replay(kept: KeptStep, device: torch.device) -> Iterator[Replayed]:
    """Run every sample of a step alone, forward and backward, with the weights of the checkpoint before it.

    Raises UserError when the checkpoint or the data are no longer there.
    """
    recipe = Recipe.model_validate(kept.recipe)
    start = checkpoint.read(Path(kept.checkpoint)) if kept.checkpoint else None
    model = build_model(recipe, start).to(device, getattr(torch, kept.dtype.removeprefix("torch.")))
    set_trainable(model, recipe.trainable)
    dataset = Dataset(recipe.folders, model.config.image_size, model.config.tokens_per_frame)
    plan = _plan_alone(Plan(**kept.plan), recipe.parallel.sequence)
    for rank, micro_batches in enumerate(kept.micro_batches):
        for micro_batch in micro_batches:
            for index, sample_id in zip(micro_batch.samples, micro_batch.sample_ids, strict=True):
                _check_sample(dataset, index, sample_id)
                yield _run_alone(model, dataset, index, plan, rank)


def _plan_alone(plan: Plan, ranks: int) -> Plan:
    """With chunks of one rank's tokens where several shared a sequence; no graphs and memos, which pass by the modules
    whose outputs are looked at."""
    return replace(plan, chunk_tokens=max(1, plan.chunk_tokens // ranks), graphs=False, memo_chunks=0)


def _run_alone(model: VideoMa2mba, dataset: Dataset, index: int, plan: Plan, rank: int) -> Replayed:
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
    """A list that holds, as soon as there is one, the name of the first part whose output is not finite."""
    found: list[str] = []
    backbone = model.language_model.backbone
    parts = [model.vision, model.projector, backbone.embedding, *model.layers, backbone.norm_f]
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not all(bool(t.isfinite().all()) for t in _tensors(output)):
            found.append(names[module])

    handles = [part.register_forward_hook(look) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple):
        for item in output:
            yield from _tensors(item)


def _check_sample(dataset: Dataset, index: int, sample_id: str) -> None:
    if index >= len(dataset) or dataset.samples[index][1].sample_id != sample_id:
        folders = ", ".join(map(str, dataset.folders))
        raise UserError(f"{folders}: sample {sample_id} is no longer number {index}; replay with the data of the run")

"""The only file that imports DeepSpeed: processes, ZeRO, the optimizer's step, and its state in a checkpoint."""

import ctypes
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage_1_and_2
from deepspeed.utils import set_z3_leaf_modules
from pydantic import ValidationError
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.distributed import DistNetworkError, ProcessGroup
from torch.distributed import distributed_c10d as c10d
from torch.optim import Optimizer

from ma2mba.data.batch import Batch
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.weights import stored_tensors
from ma2mba.text import brief, shorten
from ma2mba.training.checkpoint.optimizer_files import read_fragments
from ma2mba.training.checkpoint.zero_state import Fragment, attach_moments, fragments, set_steps_taken, steps_taken
from ma2mba.training.faults.stop_points import StopPoints
from ma2mba.training.optimizer import parameter_groups, set_trainable
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.streaming import build_streamer, streaming_loss
from ma2mba.training.world import World, ZeroPolicy, announce_alone

IN_USE = "EADDRINUSE"
"""A word in torch's error when rank 0 cannot listen on its port."""
COLLECTIVE_LIMIT = timedelta(days=7)
"""How long a collective may take when the watchdog runs: the watchdog ends a hanging run earlier."""


def start_processes(world: World) -> None:
    """Join the process group that the launcher announced, without compiling any of DeepSpeed's kernels.

    Raise UserError if another process listens on the port that the launcher chose for rank 0.
    """
    announce_alone(os.environ)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    try:
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    except DistNetworkError as error:
        if IN_USE not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT: port {os.environ['MASTER_PORT']} is in use on {socket.gethostname()}. Set MASTER_PORT "
            "(--master_port of deepspeed) to a free port, the same on all nodes, and start again"
        ) from error


def stop_processes() -> None:
    """Leave the process group."""
    torch.distributed.destroy_process_group()


class StreamingLoss(nn.Module):
    """The streamed loss as one module: DeepSpeed's hooks fire once around it, so ZeRO 3 gathers the weights once."""

    def __init__(self, model: VideoMa2mba, plan: Plan, group: ProcessGroup | None):
        super().__init__()
        self.model, self.plan, self.group = model, plan, group
        self.streamer = build_streamer(model, plan, group)

    def forward(self, anchor: Tensor, batch: Batch, loss_scale: float, stop_points: StopPoints) -> Tensor:
        """Return the scaled loss, fp32 ().

        `anchor` is a zero that requires a gradient: ZeRO 3 frees the weights when the gradient of an input is ready.
        """
        loss = streaming_loss(
            self.model,
            batch,
            self.plan,
            loss_scale,
            self.streamer,
            self.group,
            before_chunk=stop_points.before_chunk,
            when_done=stop_points.before_reduction,
        )
        return loss + anchor


@dataclass
class Engine:
    """A model, its optimizer and ZeRO. Every method that exchanges tensors is called by all ranks."""

    inner: Any
    model: VideoMa2mba
    world: World
    zero_stage: int
    base_rates: list[float]
    names: list[str]

    def forward(self, batch: Batch, loss_scale: float, stop_points: StopPoints) -> Tensor:
        """Return the sum of the micro-batch's cross-entropies times `loss_scale`, fp32 ()."""
        anchor = torch.zeros((), device=self.world.device, requires_grad=True)
        return self.inner(anchor, batch, loss_scale, stop_points)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch; ranks exchange them as the ZeRO stage asks."""
        self.inner.backward(loss)

    def step(self) -> None:
        """End a micro-batch. After a step's last one DeepSpeed clips the gradients and updates the weights."""
        self.inner.step()

    def give_up_step(self) -> None:
        """Abandon the micro-batch in progress, so that ZeRO 3 can free the weights that it has gathered for it."""
        if self.zero_stage == 3:
            for parameter in self.model.parameters():
                parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]

    def barrier(self) -> None:
        """Wait for every rank."""
        deepspeed.comm.barrier()

    def averaging(self, micro_steps: int) -> int:
        """Return the number by which DeepSpeed divides the sum of the gradients of a step's micro-batches."""
        return self.world.size * micro_steps

    def set_rates(self, factor: float) -> dict[str, float]:
        """Set every learning rate to its base rate times `factor` for the next step. Return the rates by component."""
        rates = [rate * factor for rate in self.base_rates]
        for group, rate in zip(self.inner.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return dict(zip(self.names, rates, strict=True))

    def gradient_norm(self) -> float:
        """Return the norm of the last step's gradient over all ranks, before clipping."""
        return float(self.inner.get_global_grad_norm())

    def sum_over_ranks(self, value: Tensor) -> float:
        """Return the sum of a scalar over all ranks."""
        total = value.clone()
        deepspeed.comm.all_reduce(total)
        return total.item()

    def gather(self, values: Tensor) -> list[list[float]]:
        """Return the values (M,) of every rank, by rank. Every rank has the same number of values."""
        by_rank = [torch.empty_like(values) for _ in range(self.world.size)]
        deepspeed.comm.all_gather(by_rank, values)
        return [values.tolist() for values in by_rank]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that a checkpoint holds, with their names.

        ZeRO 3 gathers each one, and frees it when the next one is asked for: all ranks must ask for all of them.
        """
        parameters = dict(self.model.named_parameters())
        for name, tensor in stored_tensors(self.model).items():
            if self.zero_stage == 3 and name in parameters:
                with deepspeed.zero.GatheredParameters([parameters[name]]):
                    yield name, parameters[name].detach()
            else:
                yield name, tensor

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of each of the `weights`, also where this rank has only a share."""
        parameters = dict(self.model.named_parameters())
        return {
            name: getattr(parameters.get(name), "ds_numel", tensor.numel()) * tensor.element_size()
            for name, tensor in stored_tensors(self.model).items()
        }

    def optimizer_state(self) -> tuple[list[Fragment], int]:
        """Return this rank's share of the optimizer's state, and how many steps AdamW has taken."""
        return list(self._fragments()), steps_taken(self.inner.optimizer)

    def load(self, folder: Path) -> None:
        """Read this rank's share of a saved optimizer state, from any number of ranks and any ZeRO stage.

        Raise UserError when the files do not hold it.
        """
        set_steps_taken(self.inner.optimizer, read_fragments(self._fragments(), folder))

    def _fragments(self) -> Iterator[Fragment]:
        return fragments(self.model.named_parameters(), self.inner.optimizer, self.world.rank)


def build_engine(model: VideoMa2mba, recipe: Recipe, plan: Plan, world: World, policy: ZeroPolicy) -> Engine:
    """Freeze the components that the recipe does not train, and return the model under DeepSpeed. All ranks call it."""
    set_trainable(model, recipe.trainable)
    groups = parameter_groups(model, recipe)
    base_rates, names = [group["lr"] for group in groups], [group["name"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=recipe.optimizer.betas, eps=recipe.optimizer.eps, fused=True)
    # DeepSpeed would move and convert the model later, but CUDA graphs must capture the weights that are trained.
    if policy.stage < 3:
        model.to(world.device, world.dtype(recipe.precision))
    module = StreamingLoss(model, plan, sequence_group(world))
    if policy.stage == 3:
        set_z3_leaf_modules(module, [StreamingLoss])
    inner = _initialize(module, optimizer, ds_config(recipe, world, policy), recipe.zero_config)
    for buffer in model.buffers() if world.size > 1 else ():  # DeepSpeed shares rank 0's parameters alone
        deepspeed.comm.broadcast(buffer, 0)
    if recipe.watchdog:
        _let_collectives_wait()
    attach_moments(inner.optimizer)
    return Engine(inner, model, world, policy.stage, base_rates, names)


def _initialize(module: nn.Module, optimizer: Optimizer, config: dict[str, Any], policy: str) -> Any:
    """Return DeepSpeed's engine. Raise UserError if DeepSpeed refuses a value of the policy."""
    _check_config(config, policy)
    with redirect_stdout(StringIO()), _flattening_in_place():  # its bf16 wrapper prints its memory use for every group
        engine = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    if getattr(engine.optimizer, "flatten", None) is _flatten:
        engine.optimizer.flatten = _flatten_dense_tensors
    return engine


@contextmanager
def _flattening_in_place() -> Iterator[None]:
    """Within the block, ZeRO 1 and 2 join parameters without holding all of them twice."""
    places = (stage_1_and_2, bf16_optimizer)
    for module in places:
        module._flatten_dense_tensors = _flatten
    try:
        yield
    finally:
        for module in places:
            module._flatten_dense_tensors = _flatten_dense_tensors


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors joined, as `_flatten_dense_tensors` does. A parameter becomes a view of its place at once."""
    flat = tensors[0].new_empty(sum(t.numel() for t in tensors), requires_grad=False)
    for tensor, place in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        place.copy_(tensor.detach().reshape(-1))
        if isinstance(tensor, nn.Parameter):
            tensor.data = place.view(tensor.shape)
            _return_free_memory(tensor.device)
    return flat


def _return_free_memory(device: torch.device) -> None:
    """Give memory that tensors on a CPU no longer need back to the system: glibc keeps tensors of less than 32 MiB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if device.type == "cpu" else None
    if trim:
        trim(0)


def _check_config(config: dict[str, Any], policy: str) -> None:
    """Raise UserError if DeepSpeed cannot read its configuration.

    DeepSpeed raises errors of any type for a wrong value. All other values of the configuration are of checked types,
    so the policy holds the wrong one.
    """
    try:
        deepspeed.DeepSpeedConfig(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = brief(".".join(map(str, first["loc"])))
        raise UserError(
            f"zero_config: {policy}: DeepSpeed refuses {key} of zero_optimization ({first['msg']}). Correct the policy"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten(' '.join(str(error).split()))}"
        raise UserError(f"zero_config: {policy}: DeepSpeed cannot read the policy ({reason}). Correct it") from error


def sequence_group(world: World) -> ProcessGroup | None:
    """Return the process group of the ranks that share this rank's samples, None without sequence parallelism.

    All ranks call it.
    """
    if world.sequence == 1:
        return None
    firsts = range(0, world.size, world.sequence)
    groups = [torch.distributed.new_group(list(range(first, first + world.sequence))) for first in firsts]
    own = groups[world.group]
    assert isinstance(own, ProcessGroup)  # every rank is in one of the groups
    return own


def _let_collectives_wait() -> None:
    """Raise the time limit of collectives to COLLECTIVE_LIMIT.

    A rank may have to wait half an hour for a rank with a longer video. NCCL's own limit is 10 minutes.
    """
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(COLLECTIVE_LIMIT, group)


def ds_config(recipe: Recipe, world: World, policy: ZeroPolicy) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the ZeRO policy and the recipe's values.

    DeepSpeed counts every rank as one with samples of its own, so ranks that share samples multiply the batch size.
    """
    return {
        **policy.values,
        "train_batch_size": recipe.global_batch * world.sequence,
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_clipping": recipe.clip,
        "bf16": {"enabled": world.dtype(recipe.precision) == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
    }

"""What is known before any process group exists: this process's place, its device and the ZeRO policy file."""

import json
import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ma2mba.errors import UserError
from ma2mba.training.recipe.paths import POLICIES, shipped_policies
from ma2mba.training.recipe.schema import Recipe

POLICY_KEYS = ("zero_optimization", "communication_data_type", "comms_logger", "flops_profiler", "wall_clock_breakdown")


@dataclass(frozen=True)
class World:
    """This process among `size` processes, `local_size` of them on this host; each `sequence` of them, neighbours in
    rank, share the same samples."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    sequence: int = 1

    @property
    def groups(self) -> int:
        """How many groups of ranks see samples of their own."""
        return self.size // self.sequence

    @property
    def place(self) -> int:
        """This rank's place in its group."""
        return self.rank % self.sequence

    @property
    def group(self) -> int:
        """The group that this rank belongs to."""
        return self.rank // self.sequence

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "World":
        """As the launcher says; a process started without it is alone. DS_ACCELERATOR=cpu keeps off the GPUs."""
        local = int(environment.get("LOCAL_RANK", 0))
        on_gpu = torch.cuda.is_available() and environment.get("DS_ACCELERATOR") != "cpu"
        device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        here = environment.get("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", 1))  # DeepSpeed's name, torchrun's
        return World(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)), device, int(here))

    def dtype(self, precision: str) -> torch.dtype:
        """The weights' dtype: "auto" is bf16 on CUDA and on CPUs with AMX, else fp32."""
        fast_bf16 = self.device.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
        return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast_bf16) else torch.float32


def announce_alone(environment: MutableMapping[str, str]) -> None:
    """Write down what the launcher would have for a single process, unless a launcher did."""
    if "MASTER_ADDR" in environment:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


def check_ranks(recipe: Recipe, world: World) -> None:
    """Raises UserError unless the global batch can be shared out to the ranks, or to the groups of them."""
    share = recipe.micro_batch * world.groups
    if recipe.global_batch % share:
        near = sorted({max(1, recipe.global_batch // share) * share, (recipe.global_batch // share + 1) * share})
        raise UserError(
            f"global_batch: {recipe.global_batch} is not a multiple of micro_batch {recipe.micro_batch} * "
            f"{world.groups} {'ranks' if world.sequence == 1 else f'groups of {world.sequence} ranks'}; "
            f"take {' or '.join(map(str, near))}, or another number of ranks"
        )


def share_sequences(recipe: Recipe, world: World) -> World:
    """The world in groups as `parallel.sequence` says. Raises UserError unless it divides the number of ranks."""
    sequence = recipe.parallel.sequence
    if world.size % sequence:
        fitting = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
        raise UserError(
            f"parallel.sequence: {sequence} does not divide the number of ranks, {world.size}; "
            f"take one of {fitting}, or start a multiple of {sequence} ranks"
        )
    return replace(world, sequence=sequence)


@dataclass(frozen=True)
class ZeroPolicy:
    """A file of ds_configs."""

    values: dict[str, Any]
    stage: int


def load_policy(name: str) -> ZeroPolicy:
    """Read a ZeRO policy: the name of a file in ds_configs, as zero1, or a path.

    Raises UserError when the file is missing, is not JSON, offloads to nvme, or sets what belongs into the recipe.
    """
    shipped = shipped_policies()
    found = POLICIES / f"{name}.json" if name in shipped else Path(name)
    if not found.is_file():
        raise UserError(f"zero_config: {name} does not exist. Use one of: {', '.join(shipped)}, or a path")
    try:
        values = json.loads(found.read_text(encoding="utf-8"))
        stage = int(values["zero_optimization"]["stage"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found}: not a ZeRO policy ({error!r}); it needs zero_optimization.stage") from error
    if stage not in (1, 2, 3):
        raise UserError(f"{found}: zero_optimization.stage is {stage}; it must be 1, 2 or 3")
    foreign = [key for key in values if key not in POLICY_KEYS]
    if foreign:
        raise UserError(
            f"{found}: {', '.join(foreign)} cannot stand in a ZeRO policy; "
            "batch sizes, precision, optimizer and clipping stand in the recipe"
        )
    for key, value in values["zero_optimization"].items():
        if isinstance(value, dict) and value.get("device") == "nvme":
            raise UserError(f"{found}: zero_optimization.{key}.device is nvme, which no checkpoint can hold; take cpu")
    return ZeroPolicy(values, stage)

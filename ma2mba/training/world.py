"""What a process knows before any process group exists: its rank, its device and the ZeRO policy."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ma2mba.errors import UserError
from ma2mba.model.dtypes import choose_dtype
from ma2mba.shipped import POLICIES, policy_names
from ma2mba.text import LISTED, RECIPE_BYTES, brief, read_json, shorten
from ma2mba.training.recipe.schema import Recipe

POLICY_KEYS = {
    "zero_optimization": dict,
    "communication_data_type": str,
    "comms_logger": dict,
    "flops_profiler": dict,
    "wall_clock_breakdown": bool,
}
"""The keys that a ZeRO policy may hold, and the type of each. DeepSpeed itself does not check these types."""

NOUNS = {dict: "an object", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class World:
    """This process among all processes of a run.

    size        number of ranks
    local_size  number of ranks on this host
    sequence    number of consecutive ranks that share the same samples
    local_rank  number of this rank on its host, from 0
    """

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    sequence: int = 1
    local_rank: int = 0

    @property
    def reads_files(self) -> bool:
        """True on the rank of each host that reads and verifies the files of all ranks: weights and checkpoints.

        DeepSpeed gives the weights of rank 0 to all ranks.
        """
        return self.rank == 0 or self.local_rank == 0

    @property
    def groups(self) -> int:
        """Number of groups of ranks; each group has samples of its own."""
        return self.size // self.sequence

    @property
    def place(self) -> int:
        """This rank's place in its group, from 0."""
        return self.rank % self.sequence

    @property
    def group(self) -> int:
        """Number of this rank's group, from 0."""
        return self.rank // self.sequence

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "World":
        """Return the world that the launcher describes; without a launcher, a single process.

        DS_ACCELERATOR=cpu makes a machine with GPUs train on its CPU.
        """
        local = int(environment.get("LOCAL_RANK", 0))
        on_gpu = torch.cuda.is_available() and environment.get("DS_ACCELERATOR") != "cpu"
        device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        # The deepspeed launcher sets LOCAL_SIZE, torchrun sets LOCAL_WORLD_SIZE.
        here = environment.get("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", 1))
        rank, size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
        return World(rank, size, device, int(here), local_rank=local)

    def dtype(self, precision: str) -> torch.dtype:
        """Return the weights' dtype. "auto" means bf16 on CUDA and on CPUs with AMX, else fp32."""
        return choose_dtype(precision, self.device)


def announce_alone(environment: MutableMapping[str, str]) -> None:
    """Set the variables of a launcher for a single process, unless a launcher has set them."""
    if "MASTER_ADDR" in environment:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


def check_ranks(recipe: Recipe, world: World) -> None:
    """Raise UserError unless the global batch can be split evenly between the ranks, or the groups of ranks."""
    share = recipe.micro_batch * world.groups
    if recipe.global_batch % share:
        near = sorted({max(1, recipe.global_batch // share) * share, (recipe.global_batch // share + 1) * share})
        raise UserError(
            f"global_batch: {recipe.global_batch} is not a multiple of micro_batch {recipe.micro_batch} * "
            f"{world.groups} {'ranks' if world.sequence == 1 else f'groups of {world.sequence} ranks'}. "
            f"Use {' or '.join(map(str, near))}, or another number of ranks"
        )


def share_sequences(recipe: Recipe, world: World) -> World:
    """Return the world in groups of `parallel.sequence` ranks.

    Raise UserError unless `parallel.sequence` divides the number of ranks.
    """
    sequence = recipe.parallel.sequence
    if world.size % sequence:
        fitting = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
        raise UserError(
            f"parallel.sequence: {sequence} does not divide the number of ranks, {world.size}. "
            f"Use one of {fitting}, or start a multiple of {sequence} ranks"
        )
    return replace(world, sequence=sequence)


@dataclass(frozen=True)
class ZeroPolicy:
    """The part of DeepSpeed's configuration that a policy file holds, and its ZeRO stage."""

    values: dict[str, Any]
    stage: int


def load_policy(name: str) -> ZeroPolicy:
    """Read a ZeRO policy: the name of a file in ds_configs, as zero1, or a path.

    Raise UserError when the file is missing, is not JSON, offloads to nvme, holds a value of a wrong type, or sets a
    value that belongs in the recipe.
    """
    shipped = policy_names()
    found = POLICIES / f"{name}.json" if name in shipped else Path(name)
    if not found.is_file():
        raise UserError(f"zero_config: {name} does not exist. Use one of: {', '.join(shipped)}, or a path")
    values = read_json(found, RECIPE_BYTES)
    zero = values.get("zero_optimization") if isinstance(values, dict) else None
    if not isinstance(zero, dict) or "stage" not in zero:
        raise UserError(f"{found}: not a ZeRO policy. Set zero_optimization.stage")
    stage = zero["stage"]
    if isinstance(stage, bool) or stage not in (1, 2, 3):
        raise UserError(f"{found}: zero_optimization.stage is {brief(stage)}. Set it to 1, 2 or 3")
    foreign = [shorten(key) for key in values if key not in POLICY_KEYS][:LISTED]
    if foreign:
        raise UserError(
            f"{found}: {', '.join(foreign)} does not belong in a ZeRO policy. Set batch sizes, precision, optimizer "
            "and clipping in the recipe"
        )
    for key, value in values.items():
        if not isinstance(value, POLICY_KEYS[key]):
            raise UserError(f"{found}: {key} is {brief(value)}. Set it to {NOUNS[POLICY_KEYS[key]]}")
    for key, value in zero.items():
        if isinstance(value, dict) and value.get("device") == "nvme":
            raise UserError(
                f"{found}: zero_optimization.{key}.device: nvme is unsupported, as checkpoints cannot hold it. Use cpu"
            )
    return ZeroPolicy(values, int(stage))

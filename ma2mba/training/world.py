"""What is known before any process group exists: this process's place, its device and the ZeRO policy file."""

import json
import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ma2mba.errors import UserError
from ma2mba.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
POLICY_KEYS = ("zero_optimization", "communication_data_type", "comms_logger", "flops_profiler", "wall_clock_breakdown")


@dataclass(frozen=True)
class World:
    """This process among `size` processes."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "World":
        """As the launcher says; a process started without it is alone. DS_ACCELERATOR=cpu keeps off the GPUs."""
        local = int(environment.get("LOCAL_RANK", 0))
        on_gpu = torch.cuda.is_available() and environment.get("DS_ACCELERATOR") != "cpu"
        device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        return World(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)), device)

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
    """Raises UserError unless the global batch can be shared out to the ranks."""
    share = recipe.micro_batch * world.size
    if recipe.global_batch % share:
        near = sorted({max(1, recipe.global_batch // share) * share, (recipe.global_batch // share + 1) * share})
        raise UserError(
            f"global_batch: {recipe.global_batch} is not a multiple of micro_batch {recipe.micro_batch} * "
            f"{world.size} ranks; take {' or '.join(map(str, near))}, or another number of ranks"
        )


@dataclass(frozen=True)
class ZeroPolicy:
    """A file of ds_configs."""

    values: dict[str, Any]
    stage: int


def load_policy(path: str) -> ZeroPolicy:
    """Read a ZeRO policy, relative to the current directory or else to the checkout.

    Raises UserError when it is missing, not JSON, offloads to nvme, or says what belongs into the recipe.
    """
    places = [Path(path), ROOT / path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        known = ", ".join(f"ds_configs/{p.name}" for p in sorted((ROOT / "ds_configs").glob("*.json")))
        raise UserError(f"zero_config: {path} does not exist; take one of {known}")
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

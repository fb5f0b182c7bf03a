"""Save and restore the random number generators of a process (torch on CPU and CUDA, numpy, Python)."""

import random
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict


class RandomState(BaseModel):
    """The generators of one rank as JSON values. The states of torch are hexadecimal; `cuda` is None on a CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    torch_cpu: str
    cuda: str | None
    numpy: dict[str, Any]
    python: tuple[int, tuple[int, ...], float | None]

    @staticmethod
    def capture(device: torch.device) -> "RandomState":
        """Return the present states of this process's generators."""
        state: dict[str, Any] = dict(np.random.get_state(legacy=False))
        inner = {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}
        return RandomState(
            torch_cpu=_hex(torch.get_rng_state()),
            cuda=_hex(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
            numpy={**state, "state": inner},
            python=random.getstate(),
        )

    def restore(self, device: torch.device) -> None:
        """Set this process's generators to these states; the CUDA generator only if both processes have a GPU."""
        torch.set_rng_state(_bytes(self.torch_cpu))
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(_bytes(self.cuda), device)
        inner = {**self.numpy["state"], "key": np.array(self.numpy["state"]["key"], np.uint32)}
        np.random.set_state({**self.numpy, "state": inner})
        random.setstate(self.python)


def seed(*numbers: int) -> None:
    """Seed all generators of this process from several numbers, such as (seed, rank, step)."""
    combined = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(combined)
    np.random.seed(combined)
    random.seed(combined)


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

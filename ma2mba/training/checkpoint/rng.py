"""Save and restore the random number generators of a process (torch on CPU and CUDA, numpy, Python)."""

import random
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

WORDS = 624
"""The length of a Mersenne Twister's state, in words of 32 bits."""
Word = Annotated[int, Field(ge=0, lt=1 << 32)]


class NumpyKey(BaseModel):
    """A Mersenne Twister. numpy does not check `pos`, and reads beyond the state if it is larger."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: Annotated[list[Word], Field(min_length=WORDS, max_length=WORDS)]
    pos: int = Field(ge=0, le=WORDS)


class NumpyState(BaseModel):
    """The fields of `numpy.random.get_state(legacy=False)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bit_generator: Literal["MT19937"]
    state: NumpyKey
    has_gauss: Literal[0, 1]
    gauss: float = Field(allow_inf_nan=False)


class RandomState(BaseModel):
    """The generators of one rank as JSON values. The states of torch are hexadecimal; `cuda` is None on a CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    torch_cpu: str
    cuda: str | None
    numpy: NumpyState
    python: tuple[int, Annotated[tuple[Word, ...], Field(min_length=WORDS + 1, max_length=WORDS + 1)], float | None]

    @staticmethod
    def capture(device: torch.device) -> "RandomState":
        """Return the present states of this process's generators."""
        state: dict[str, Any] = dict(np.random.get_state(legacy=False))
        inner = {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}
        return RandomState(
            torch_cpu=_hex(torch.get_rng_state()),
            cuda=_hex(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
            numpy=NumpyState(**{**state, "state": inner}),
            python=random.getstate(),
        )

    def restore(self, device: torch.device) -> None:
        """Set this process's generators to these states; the CUDA generator only if both processes have a GPU.

        Raise ValueError if a state is not one of its generator.
        """
        try:
            self._restore(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(str(error).splitlines()[0]) from error

    def _restore(self, device: torch.device) -> None:
        torch.set_rng_state(_bytes(self.torch_cpu))
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(_bytes(self.cuda), device)
        inner = {"key": np.array(self.numpy.state.key, np.uint32), "pos": self.numpy.state.pos}
        np.random.set_state({**self.numpy.model_dump(), "state": inner})
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

"""Where the recurrent states at chunk boundaries live between forward and backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.magc.cell import State
from ma2mba.magc.plan import StashPlace


class Stash:
    """Keeps states on their device, or in host memory (pinned when they come from a GPU)."""

    def __init__(self, place: StashPlace):
        self.place = place
        self._kept: list[list[tuple[State, list[torch.device]]]] = []

    def push(self, states: Sequence[State]) -> None:
        self._kept.append([(tuple(self._keep(t) for t in state), [t.device for t in state]) for state in states])

    def pop(self) -> list[State]:
        """The states pushed last, on the devices that they came from."""
        return [
            tuple(t.to(device, non_blocking=True) for t, device in zip(state, devices, strict=True))
            for state, devices in self._kept.pop()
        ]

    def _keep(self, tensor: Tensor) -> Tensor:
        if self.place == "device" or tensor.device.type == "cpu":
            return tensor.detach()
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach())

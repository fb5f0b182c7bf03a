"""Where ZeRO keeps a rank's share of the fp32 weights and of AdamW's moments: views by parameter, for any stage.

Reads DeepSpeed's wrappers of stages 1 and 2, of 3 and of bf16 (they differ only in where a share lies), imports none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


@dataclass(frozen=True)
class Fragment:
    """A rank's part of one parameter: elements `start` to `start + numel` of the flattened parameter.

    `tensors` are views (numel,) of the living state: `weight` in fp32, `exp_avg`, `exp_avg_sq`.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]


def attach_moments(wrapper: Any) -> None:
    """Give AdamW under ZeRO the zeros that it would make in its first step, so that there is always a state to read."""
    for flat in _flat_shares(wrapper):
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        moments = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
        wrapper.optimizer.state[flat] = {STEP: step, **moments}


def steps_taken(wrapper: Any) -> int:
    """How often AdamW has stepped; steps without a finite gradient are not among them."""
    return int(wrapper.optimizer.state[_flat_shares(wrapper)[0]][STEP].item())


def set_steps_taken(wrapper: Any, steps: int) -> None:
    for flat in _flat_shares(wrapper):
        wrapper.optimizer.state[flat][STEP].fill_(steps)


def fragments(parameters: Iterable[tuple[str, nn.Parameter]], wrapper: Any, rank: int) -> Iterator[Fragment]:
    """This rank's part of every trained parameter of which it has one. Waits for no other rank."""
    for name, parameter in parameters:
        place = _place(parameter, wrapper, rank)
        if place is None:
            continue
        flat, offset, start, numel = place
        tensors = {"weight": flat.detach()} | {key: wrapper.optimizer.state[flat][key] for key in MOMENTS}
        yield Fragment(name, start, {key: t.narrow(0, offset, numel) for key, t in tensors.items()})


def _flat_shares(wrapper: Any) -> list[Tensor]:
    """The flat tensors that AdamW updates on this rank."""
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        return wrapper.fp32_partitioned_groups_flat
    return [group["params"][0] for group in wrapper.optimizer.param_groups]


def _place(parameter: nn.Parameter, wrapper: Any, rank: int) -> tuple[Tensor, int, int, int] | None:
    """The flat tensor, where in it this rank's part begins, where in the parameter, and the number of elements."""
    if not parameter.requires_grad:
        return None
    if hasattr(parameter, "ds_id"):  # stage 3: every parameter is cut into equal parts, the last ones padded
        group, offset, padded = wrapper.grad_position[wrapper.get_param_id(parameter)]
        start = rank * padded
        numel = min(padded, parameter.ds_numel - start)  # type: ignore[attr-defined]
        return (_flat_shares(wrapper)[group], offset, start, numel) if numel > 0 else None
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    ours, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _flat_shares(wrapper)[mapping.param_group_index], ours.start, whole.start, ours.numel

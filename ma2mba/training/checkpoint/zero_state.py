"""Find a rank's shard of the fp32 weights and of AdamW's moments under ZeRO, as views of each parameter.

Supports DeepSpeed's optimizer wrappers for stages 1 and 2, for stage 3 and for bf16 without importing them. They differ
only in where they keep a shard.
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
    """A rank's shard of one parameter: elements `start` to `start + numel` of the flattened parameter.

    `tensors` are fp32 views (numel,) of the optimizer's own state: `weight`, `exp_avg`, `exp_avg_sq`.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]


def attach_moments(wrapper: Any) -> None:
    """Create the zero moments that AdamW would create in its first step, so that a checkpoint can always read them."""
    for flat in _flat_shards(wrapper):
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        moments = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
        wrapper.optimizer.state[flat] = {STEP: step, **moments}


def steps_taken(wrapper: Any) -> int:
    """Return how many steps AdamW has taken. It skips steps whose gradient is not finite."""
    return int(wrapper.optimizer.state[_flat_shards(wrapper)[0]][STEP].item())


def set_steps_taken(wrapper: Any, steps: int) -> None:
    """Set how many steps AdamW has taken."""
    for flat in _flat_shards(wrapper):
        wrapper.optimizer.state[flat][STEP].fill_(steps)


def fragments(parameters: Iterable[tuple[str, nn.Parameter]], wrapper: Any, rank: int) -> Iterator[Fragment]:
    """Yield this rank's shard of every trained parameter. Does not communicate with other ranks."""
    for name, parameter in parameters:
        shard = _find_shard(parameter, wrapper, rank)
        if shard is None:
            continue
        flat, offset, start, numel = shard
        tensors = {"weight": flat.detach()} | {key: wrapper.optimizer.state[flat][key] for key in MOMENTS}
        yield Fragment(name, start, {key: t.narrow(0, offset, numel) for key, t in tensors.items()})


def _flat_shards(wrapper: Any) -> list[Tensor]:
    """Return the flat tensors that AdamW updates on this rank."""
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):
        return wrapper.fp32_partitioned_groups_flat
    return [group["params"][0] for group in wrapper.optimizer.param_groups]


def _find_shard(parameter: nn.Parameter, wrapper: Any, rank: int) -> tuple[Tensor, int, int, int] | None:
    """Return where this rank's shard of a parameter is, None if the rank has no shard.

    That is the flat tensor, the shard's offset in it, its offset in the flattened parameter, and its length.
    """
    if not parameter.requires_grad:
        return None
    if hasattr(parameter, "ds_id"):  # stage 3 cuts every parameter into equal shards and pads the last ones
        group, offset, padded = wrapper.grad_position[wrapper.get_param_id(parameter)]
        start = rank * padded
        numel = min(padded, parameter.ds_numel - start)  # type: ignore[attr-defined]
        return (_flat_shards(wrapper)[group], offset, start, numel) if numel > 0 else None
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    in_flat, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _flat_shards(wrapper)[mapping.param_group_index], in_flat.start, in_parameter.start, in_flat.numel

"""Which tensors a recomputation gives a gradient: the leaves of its graph.

Autograd knows them all, whoever owns them: a layer may use the weight of another layer, and `front` may use a module
that `modules` does not name.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ma2mba.magc.weights import Weights, owner_in_words


class Recorded(NamedTuple):
    """What one piece of a cell has recorded.

    nodes  The operations that made what the piece has returned. They keep no memory that the graph does not keep.
    began  `operations_so_far()` before the piece ran.
    """

    name: str
    nodes: list[Any]
    began: int

    @staticmethod
    def of(name: str, outputs: Iterable[Tensor], began: int) -> "Recorded":
        return Recorded(name, [get_gradient_edge(tensor).node for tensor in outputs if tensor.requires_grad], began)


def operations_so_far() -> int:
    """Return the number that autograd gives to the next operation of this thread."""
    return torch._C._autograd._get_sequence_nr()


def check_leaves(piece: Recorded, inputs: Iterable[Tensor], cell_began: int, weights: Weights) -> list[Tensor]:
    """Return the parameters that a piece uses. Raise ValueError if it uses a tensor that would get no gradient.

    inputs      The inputs of the cell.
    cell_began  `operations_so_far()` before the first piece of the cell.
    """
    leaves = _find_leaves(piece, inputs, cell_began)
    if leaves is None:
        raise ValueError(
            f"{piece.name} uses a tensor that was computed outside of it and needs a gradient. Pass the tensor through "
            "x, a chunk or the state, compute it inside, or detach it"
        )
    for tensor in leaves:
        if tensor not in weights:
            named = piece.name in ("front", "head")
            remedy = "Name its module in `modules`" if named else "Make its module a submodule of the layer"
            raise ValueError(
                f"{piece.name} uses {owner_in_words(tensor)}, which needs a gradient but would get none. {remedy}, or "
                "detach the tensor. (FSDP and other hooks that replace parameters in every call are not supported)"
            )
    return leaves


def _find_leaves(piece: Recorded, inputs: Iterable[Tensor], cell_began: int) -> list[Tensor] | None:
    """Walk a piece's graph back to its leaves. Return None if it uses an operation from before the cell."""
    own_inputs = {id(tensor) for tensor in inputs}
    nodes, leaves = list(piece.nodes), []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        following = node.next_functions
        if not following:
            tensor = getattr(node, "variable", None)
            if tensor is not None and id(tensor) not in own_inputs:
                leaves.append(tensor)
            continue
        number = node._sequence_nr()
        if number < cell_began:
            return None
        if number < piece.began:  # recorded by the piece before
            continue
        for other, _ in following:
            if other is not None and other not in seen:
                seen.add(other)
                nodes.append(other)
    return leaves

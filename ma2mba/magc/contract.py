"""What a layer, the front and the head must return, and the errors that name the layer and the broken rule."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

State = tuple[Tensor, ...]


def layer_name(number: int, layer: Any) -> str:
    """Return a layer's name in messages, for example "layer 3 (GRULayer)"."""
    return f"layer {number} ({type(layer).__name__})"


def check_state(name: str, state: Any, source: str) -> State:
    """Return a state. Raises ValueError if it is not a tuple of tensors. `source` says where it comes from."""
    if type(state) is tuple:
        for item in state:
            if not isinstance(item, Tensor):
                raise ValueError(f"{name}: {source} contains {_kind(item)}. A state is a tuple of tensors only")
        return state
    if isinstance(state, tuple):
        remedy = f"is the namedtuple {type(state).__name__}. Use tuple(state)"
    elif isinstance(state, dict):
        remedy = "is a dict. Use tuple(state.values())"
    elif isinstance(state, Tensor):
        remedy = "is a tensor. Use (state,)"
    elif state is None:
        remedy = "is None. Use () for a layer without a state"
    else:
        remedy = f"is {_kind(state)}"
    raise ValueError(f"{name}: {source} {remedy}: a state is a tuple of tensors")


def check_result(name: str, x: Tensor, state: State, result: Any) -> tuple[Tensor, State]:
    """Return x and state from what a layer has returned for `x` and `state`. Raises ValueError if that is wrong."""
    if type(result) is not tuple or len(result) != 2:
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else _kind(result)
        raise ValueError(f"{name} returned {found}. forward(x, state) must return (x, state)")
    y, after = result
    if not isinstance(y, Tensor):
        raise ValueError(f"{name} returned {_kind(y)} for x. forward(x, state) must return (x, state)")
    if y.shape != x.shape and (y.shape[:2] != x.shape[:2] or y.dim() != x.dim()):
        raise ValueError(
            f"{name} returned x of shape {tuple(y.shape)} for x of shape {tuple(x.shape)}. The batch and the number of "
            "tokens must stay the same"
        )
    check_state(name, after, "the returned state")
    if len(after) != len(state):
        raise ValueError(
            f"{name} got a state of {len(state)} tensors and returned {len(after)}. The number must stay the same. Use "
            "an empty tensor for a part that is not there yet"
        )
    return y, after


def check_values(name: str, result: Any, tokens: int | None = None) -> tuple[Tensor, ...]:
    """Return what the front has returned. Raises ValueError if it is wrong or longer than `tokens`."""
    if type(result) is not tuple or not result or not all(isinstance(item, Tensor) for item in result):
        raise ValueError(f"{name} returned {_kind(result)}. It must return a tuple of tensors, (x, ...)")
    if tokens is not None and result[0].dim() > 1 and result[0].shape[1] > tokens:
        raise ValueError(
            f"a chunk has {result[0].shape[1]} tokens, but plan.chunk_tokens is {tokens}. Cut the chunks at "
            f"{tokens} tokens, or use Plan(chunk_tokens={result[0].shape[1]})"
        )
    return result


def check_loss(result: Any) -> tuple[Tensor]:
    """Return what the head has returned. Raises ValueError if it is not a tuple of one scalar."""
    if type(result) is not tuple or len(result) != 1 or not isinstance(result[0], Tensor):
        raise ValueError(f"head returned {_kind(result)}. It must return a tuple of one scalar, (loss,)")
    if result[0].dim():
        raise ValueError(f"head returned a loss of shape {tuple(result[0].shape)}. Sum it: the loss must be a scalar")
    return result


def initial_states(layers: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> list[State]:
    """Return each layer's state before the first token. Raises ValueError for a layer that gives none."""
    states = []
    for number, layer in enumerate(layers):
        name = layer_name(number, layer)
        if not hasattr(layer, "initial_state"):
            raise ValueError(f"{name} has no initial_state(x). Write one, or pass `states`")
        states.append(check_state(name, layer.initial_state(x), "initial_state(x)"))  # type: ignore[operator]
    return states


def _kind(value: Any) -> str:
    """Return a value's kind in words."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return f"a {type(value).__name__}"

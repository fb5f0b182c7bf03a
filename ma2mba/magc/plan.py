"""How to checkpoint a sequence, and the rules that say which plans are possible.

The paper (arXiv 2411.19460, Eq. 12-16) models the memory of MA-GC for L layers and S tokens, with a layer-axis
checkpoint every l layers and a sequence-axis checkpoint every s tokens:

    M(l, s) = (L S / l) C_L + (L S / s) C_S + l s C_grid + s C_state

The first two terms are the kept layer inputs and the kept recurrent states. The last two are the working set of one
recomputation. `Plan` calls l `group_layers` and s `chunk_tokens`. With "sequence" nesting the first term has s in place
of S: the layer inputs of one chunk are kept only while that chunk runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Nesting = Literal["sequence", "layer"]
StashPlace = Literal["device", "host"]


@dataclass(frozen=True)
class Setting:
    """A setting of an impossible plan.

    name     A field of `Plan`, "ranks" or "moves_weights".
    value    Its value in the impossible plan.
    instead  A value that resolves a conflict.
    """

    name: str
    value: Any
    instead: Any


@dataclass(frozen=True)
class PlanProblem:
    """A reason why a plan is impossible: one invalid setting, or two settings that are incompatible."""

    settings: tuple[Setting, ...]
    reason: str

    def describe(self, written: Callable[[str, Any], str]) -> str:
        """Return a message that says what is wrong, why, and what to do.

        `written(name, value)` is a setting as the reader writes it, for example "magc.graphs: true".
        """
        given = " is incompatible with ".join(written(s.name, s.value) for s in self.settings)
        if len(self.settings) == 1:
            return f"{given} is invalid; {self.reason}"
        return f"{given}: {self.reason}. Use {' or '.join(written(s.name, s.instead) for s in self.settings)}"

    def __str__(self) -> str:
        return self.describe(lambda name, value: f"{name}={value!r}")


@dataclass(frozen=True)
class Plan:
    """Which axis is the outer loop, where each axis is cut, and where the states at the cuts are stored.

    nesting       "sequence": all layers run on one chunk before the next chunk; only states grow with the sequence.
                  "layer": a group of layers runs on the whole sequence before the next group, as in the paper; the
                  input of every group is kept.
    chunk_tokens  Tokens in a chunk (s in the paper). Recurrent states are kept at the start of every chunk.
    group_layers  Layers in a group (l in the paper). The input of every group is kept.
    stash         Keep states on the "device", or move them to pinned "host" memory.
    stash_every   Keep the states of every N-th chunk only, and recompute the states between with one more forward.
                  Use more than 1 only where memory for states is short.
    memo_chunks   For the last N chunks before the final one, keep on the device what each layer offers to make its
                  recomputation cheaper (`layer.remember`). Needs sequence nesting, one group of layers, no graphs.
    graphs        With `Streamer` on a GPU, capture the layers of a chunk once and replay them as CUDA graphs. Small
                  chunks need this. Needs sequence nesting, one group of layers, and layers without dropout.

    Raises ValueError for an impossible plan; `Plan.problems` lists all reasons without raising.
    """

    nesting: Nesting = "sequence"
    chunk_tokens: int = 4096
    group_layers: int = 1
    stash: StashPlace = "device"
    stash_every: int = 1
    memo_chunks: int = 0
    graphs: bool = False

    def __post_init__(self) -> None:
        if problems := Plan.problems(**vars(self)):
            raise ValueError("; ".join(map(str, problems)))

    @staticmethod
    def problems(
        *, layers: int | None = None, ranks: int = 1, moves_weights: bool = False, **values: Any
    ) -> list[PlanProblem]:
        """Return every reason why a plan is impossible; an empty list for a possible plan.

        layers         Layers of the model; None if unknown.
        ranks          Ranks that share each sequence.
        moves_weights  True if the addresses of the weights change between steps, as under ZeRO 3.
        values         Fields of `Plan`; a missing field has its default. Raises TypeError for an unknown field.
        """
        plan = {field.name: field.default for field in fields(Plan)}
        if unknown := values.keys() - plan.keys():
            raise TypeError(f"{', '.join(sorted(unknown))}: not a field of Plan. Use {', '.join(plan)}")
        plan.update(values)
        return _invalid(plan) or _conflicts(plan, layers, ranks, moves_weights)

    def conflicts(self, layers: int, ranks: int = 1, moves_weights: bool = False) -> list[PlanProblem]:
        """Return every reason why this plan cannot train a model of `layers` layers; see `problems`."""
        return Plan.problems(layers=layers, ranks=ranks, moves_weights=moves_weights, **vars(self))

    def allows(self, layers: int, **changes: Any) -> bool:
        """Return True if this plan, with these fields changed, is possible for a model of `layers` layers."""
        return not Plan.problems(layers=layers, **{**vars(self), **changes})


def _invalid(plan: dict[str, Any]) -> list[PlanProblem]:
    """Return a problem for each field whose value is impossible in every plan."""
    choices = {"nesting": get_args(Nesting), "stash": get_args(StashPlace)}
    smallest = {"chunk_tokens": 1, "group_layers": 1, "stash_every": 1, "memo_chunks": 0}
    reasons = [(name, f"use one of {', '.join(known)}") for name, known in choices.items() if plan[name] not in known]
    for name, least in smallest.items():
        if not isinstance(plan[name], int) or isinstance(plan[name], bool) or plan[name] < least:
            reasons.append((name, f"use a whole number of at least {least}"))
    return [PlanProblem((Setting(name, plan[name], None),), reason) for name, reason in reasons]


def _conflicts(plan: dict[str, Any], layers: int | None, ranks: int, moves_weights: bool) -> list[PlanProblem]:
    """Return a problem for each pair of settings that are incompatible."""
    graphs, memos = Setting("graphs", plan["graphs"], False), Setting("memo_chunks", plan["memo_chunks"], 0)
    nesting, groups = Setting("nesting", "layer", "sequence"), Setting("group_layers", plan["group_layers"], layers)
    by_layer, several = plan["nesting"] == "layer", layers is not None and plan["group_layers"] < layers
    sharing, moving = Setting("ranks", ranks, 1), Setting("moves_weights", moves_weights, False)
    # A setting, whether the rest of the plan rules it out, the other setting that does, and why.
    rules = [
        (graphs, by_layer, nesting, "CUDA graphs capture sequence nesting only"),
        (graphs, several, groups, f"CUDA graphs need all {layers} layers in one group"),
        (graphs, ranks > 1, sharing, "CUDA graphs cannot capture the exchange between ranks"),
        (graphs, moves_weights, moving, "CUDA graphs read the weights at fixed addresses"),
        (memos, plan["graphs"], graphs, "captured chunks keep no memos"),
        (memos, by_layer, nesting, "only sequence nesting keeps memos"),
        (memos, several, groups, f"memos need all {layers} layers in one group"),
    ]
    return [PlanProblem((one, other), reason) for one, broken, other, reason in rules if one.value and broken]

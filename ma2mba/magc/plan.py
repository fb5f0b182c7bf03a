"""How a sequence is checkpointed."""

from dataclasses import dataclass
from typing import Literal, get_args

Nesting = Literal["sequence", "layer"]
StashPlace = Literal["device", "host"]


@dataclass(frozen=True)
class Plan:
    """Which axis is the outer one, where it is cut, and where the states at the cuts live.

    nesting       "sequence": the whole depth inside one step over a chunk; only states grow with the sequence.
                  "layer": the whole sequence inside one group of layers, as in the paper; a group's input stays.
    chunk_tokens  s of the paper: recurrent states are kept every so many tokens.
    group_layers  l of the paper: layer inputs are kept every so many layers.
    stash         kept states stay on the device or move to (pinned) host memory.
    stash_every   states are kept every so many chunks, and those between made again by one more forward; over 1 only
                  where memory for states is short.
    memo_chunks   of so many chunks layers keep, on the device, what they offer to spare work in their recomputation
                  (`layer.remember`); only with "sequence" nesting, one group of layers and no graphs.
    graphs        with `Streamer` on a GPU: a chunk's layers are captured once and replayed as CUDA graphs, which small
                  chunks need. Only with "sequence" nesting and one group of layers, and without dropout.
    """

    nesting: Nesting = "sequence"
    chunk_tokens: int = 4096
    group_layers: int = 1
    stash: StashPlace = "device"
    stash_every: int = 1
    memo_chunks: int = 0
    graphs: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("nesting", get_args(Nesting)), ("stash", get_args(StashPlace))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("chunk_tokens", "group_layers", "stash_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not isinstance(self.memo_chunks, int) or self.memo_chunks < 0:
            raise ValueError(f"memo_chunks is {self.memo_chunks!r}; it must be a whole number of at least 0")
        if self.memo_chunks and (self.graphs or self.nesting == "layer"):
            raise ValueError('memo_chunks stands beside graphs or nesting "layer"; it must be 0 there')
        if self.graphs and self.nesting == "layer":
            raise ValueError('graphs is True beside nesting "layer"; only "sequence" can be captured')

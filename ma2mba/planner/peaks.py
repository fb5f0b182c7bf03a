"""The moments of a step at which memory may peak, and what lives then.

Read off the engine (`cell.py`, `layers.py`, `scan.py`, `graphs.py`): backward holds most, at the edges of a group.
"""

from collections.abc import Iterator
from math import ceil

from ma2mba.planner.schedule import Layout

SUMS, LAYER_AXIS, SEQUENCE_AXIS, CELL, FRONT, LOSS, MEMOS = (
    "gradient sums",
    "layer checkpoints",
    "state checkpoints",
    "cell",
    "front",
    "loss",
    "memos",
)
WORKSPACES = 2 * 32 * 2**20
"""Bytes that cuBLAS keeps on a Hopper GPU for the recordings of two threads: that of forward and that of backward."""
Parts = dict[str, float]
Moment = tuple[str, Parts]


def moments(layout: Layout) -> Iterator[Moment]:
    """What lives, in bytes by part, at each moment at which memory may peak."""
    if layout.captured:
        yield from _recorded(layout)
    elif layout.in_order:
        yield from _sequence_nesting(layout)
    else:
        yield from _layer_nesting(layout)


def _sequence_nesting(s: Layout) -> Iterator[Moment]:
    for i in s.backward_chunks():
        tokens, newest = s.tokens_of(i), i == s.chunks - 1
        for g in s.groups():
            behind = s.L - g * s.size - s.layers_of(g)
            for name, cell in _cell(s, g, tokens):
                yield (
                    f"backward of chunk {i + 1} of {s.chunks}, group {g + 1} of {s.G}: {name}",
                    cell
                    | {
                        FRONT: cell[FRONT] + s.chunk_inputs(tokens),
                        SUMS: _sums(s, behind) if newest else s.cost.sums,
                        LAYER_AXIS: g * s.cost.x.at(tokens) + _ends(s, 1 - (i + 1) / s.chunks),
                        MEMOS: s.memos,
                        SEQUENCE_AXIS: s.states * s.kept(i) + (0 if newest else s.states) + s.cost.state * behind,
                    },
                )
    kept = 2 if s.on_host else ceil(s.chunks / s.every)
    graph = s.L * s.cost.layer.saved.at(s.rest) if s.G == 1 else 0.0
    yield from _joined(s, graph, s.states * kept)
    if (s.chunks - 1) % s.every > 1:  # the last segment's states are made again beside the last chunk's graph
        states = s.states * (3 if s.on_host else kept + (s.chunks - 1) % s.every + 1)
        parts = _made_again(s) | {LAYER_AXIS: _ends(s, 0), SEQUENCE_AXIS: states, MEMOS: s.memos}
        yield "making states again", parts | {CELL: parts[CELL] + graph}


def _layer_nesting(s: Layout) -> Iterator[Moment]:
    n, state = s.chunks, s.cost.state
    coarse = 0 if s.on_host else ceil(n / s.every)
    for g in s.groups():
        size, before = s.layers_of(g), g * s.size
        behind = s.L - before - size
        for i in s.backward_chunks():
            newest = i == n - 1
            done = (n - 1 - i) / n if g > 0 or not s.streams else 0.0
            inputs = g + done + (g < s.G - 1) + (0 if s.streams else 3)
            kept = before * max(coarse, s.on_host) + size * s.kept(i) + behind + (0 if newest else size)
            for name, cell in _cell(s, g, s.tokens_of(i)):
                yield (
                    f"backward of group {g + 1} of {s.G}, chunk {i + 1} of {n}: {name}",
                    cell
                    | {
                        FRONT: cell[FRONT] + (s.chunk_inputs(s.tokens_of(i)) if g == 0 else 0),
                        SUMS: _sums(s, behind + (0 if newest else size)),
                        LAYER_AXIS: inputs * s.x_whole,
                        SEQUENCE_AXIS: state * kept,
                    },
                )
    yield from _joined(s, (s.G - 1) * s.x_whole, s.states * (2 if s.on_host else coarse))


def _recorded(s: Layout) -> Iterator[Moment]:
    """Chunks of T tokens replay: what their layers took when they were captured is held all the time, and inputs,
    states and their gradients have fixed places. The last chunk is shorter: its layers run plainly beside that."""
    layer, x, sums = s.cost.layer, s.cost.x.at(s.T), s.cost.sums
    parts = [sum(cell.values()) for _, cell in _layers(s, s.L, s.T)]
    pool = WORKSPACES + x + max(layer.forward.at(s.T) + x + s.states, *parts)
    held: Parts = {SUMS: sums, LAYER_AXIS: 2 * x, CELL: pool, FRONT: 0.0, LOSS: 0.0}
    states = s.states * (max(map(s.kept, s.backward_chunks())) + 4)
    front, head = s.cost.front, s.cost.head
    assert front is not None, "only a Streamer records"
    assert head is not None, "only a Streamer records"
    inputs, saved = s.chunk_inputs(s.T), front.saved.at(s.front_tokens(s.T))
    both = {SEQUENCE_AXIS: states, LAYER_AXIS: 3 * x}
    loss = head.backward.at(s.loss_tokens(s.T))
    yield "backward of a captured chunk: loss", held | both | {LOSS: loss, FRONT: inputs + saved}
    end = front.backward.at(s.front_tokens(s.T))
    yield "backward of a captured chunk: front", held | both | {FRONT: inputs + end}
    plain = s.T - 1 if s.workload.ragged else s.rest
    if plain < s.T:
        for name, cell in _cell(s, 0, plain):
            beside = {CELL: pool + cell[CELL], FRONT: cell[FRONT] + s.chunk_inputs(plain), LOSS: cell[LOSS]}
            yield f"backward of the last chunk, not captured: {name}", held | beside | {SEQUENCE_AXIS: states}
    yield "handing the gradients on", held | {SUMS: sums + s.cost.weights, SEQUENCE_AXIS: 3 * s.states}


def _cell(s: Layout, group: int, tokens: int) -> list[Moment]:
    """The working set of one cell's backward, at its last piece first."""
    key = (group == 0, group == s.G - 1, tokens)
    if key not in s.cells:
        s.cells[key] = list(_cell_moments(s, group, tokens))
    return s.cells[key]


def _cell_moments(s: Layout, group: int, tokens: int) -> Iterator[Moment]:
    size = s.layers_of(group)
    head = s.cost.head if group == s.G - 1 else None
    front = s.cost.front if group == 0 else None
    front_saved = front.saved.at(s.front_tokens(tokens)) if front else 0.0
    head_done = float(head.gradients) if head else 0.0
    if head:
        loss = head.backward.at(s.loss_tokens(tokens))
        yield "loss", {CELL: size * s.cost.layer.saved.at(tokens), LOSS: loss, FRONT: front_saved}
    for name, cell in _layers(s, size, tokens):
        yield name, cell | {LOSS: head_done, FRONT: front_saved}
    if front:
        done = size * (s.cost.layer.gradients + s.cost.state) + s.cost.x.at(tokens)
        yield "front", {CELL: done, LOSS: head_done, FRONT: front.backward.at(s.front_tokens(tokens))}


def _layers(s: Layout, size: int, tokens: int) -> Iterator[Moment]:
    layer = s.cost.layer
    one = layer.backward.at(tokens) + s.cost.x.at(tokens)
    yield "its last layer", {CELL: (size - 1) * layer.saved.at(tokens) + one}
    yield "its first layer", {CELL: (size - 1) * (layer.gradients + s.cost.state) + one}


def _made_again(s: Layout) -> Parts:
    """A chunk's forward while the graph of the last one is kept."""
    front, head = s.cost.front, s.cost.head
    cell = s.cost.layer.forward.at(s.T) + s.cost.x.at(s.T) + s.states
    if front is None or head is None:
        return {CELL: cell}
    tokens, rest = s.front_tokens(s.T), s.front_tokens(s.rest)
    ahead = max(front.forward.at(tokens) - cell, head.forward.at(s.loss_tokens(s.T)) - cell, 0.0)
    kept = head.saved.at(s.loss_tokens(s.rest)) if s.G == 1 else 0.0
    held = front.saved.at(rest) if s.G == 1 else 0.0
    return {CELL: cell, FRONT: ahead + held + s.chunk_inputs(s.T) + s.chunk_inputs(s.rest), LOSS: kept}


def _sums(s: Layout, layers: int) -> float:
    """The sums of gradients when backward has passed so many layers of the first chunk it meets."""
    if s.cost.standing:
        return s.cost.sums
    head = s.cost.head.sums if s.cost.head and layers else 0
    return layers * s.cost.layer.sums + head


def _ends(s: Layout, done: float) -> float:
    """Whole tensors of `checkpoint`: x, y, the gradient of y, and what is done of the gradient of x."""
    return 0.0 if s.streams else (3 + done) * s.x_whole


def _joined(s: Layout, inputs: float, states: float) -> Iterator[Moment]:
    """`checkpoint` joins the chunks of y after forward and those of x's gradient after backward."""
    if not s.streams:
        yield "joining y", {LAYER_AXIS: 3 * s.x_whole + inputs, SEQUENCE_AXIS: states + s.states}
        yield "joining the gradient of x", {SUMS: s.cost.sums, LAYER_AXIS: 5 * s.x_whole}

"""Predict memory: the moments of a training step at which memory may peak, and what is alive then.

They follow the engine (`magc/{cell,chain,scan,graphs}.py`). Memory peaks in backward, at an edge of a layer group.
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
"""Bytes of cuBLAS's workspaces on a Hopper GPU: one for captured forwards, one for captured backwards."""
Parts = dict[str, float]
"""Bytes by kind of use."""
Moment = tuple[str, Parts]


def moments(layout: Layout) -> Iterator[Moment]:
    """Yield each moment at which memory may peak: its name, and the bytes that are alive."""
    if layout.captured:
        yield from _captured(layout)
    elif layout.in_order:
        yield from _sequence_nesting(layout)
    else:
        yield from _layer_nesting(layout)


def _sequence_nesting(s: Layout) -> Iterator[Moment]:
    states = s.stack.state
    for i in s.backward_chunks():
        tokens, newest = s.tokens_of(i), i == s.chunks - 1
        for g in s.groups.edges:
            for name, cell in _cell(s, g, tokens):
                yield (
                    f"backward of chunk {i + 1} of {s.chunks}, group {g + 1} of {s.G}: {name}",
                    cell
                    | {
                        FRONT: cell[FRONT] + s.chunk_inputs(tokens),
                        SUMS: _sums(s, g, passed=False) if newest else s.cost.sums,
                        LAYER_AXIS: g * s.cost.x.at(tokens) + _whole_tensors(s, 1 - (i + 1) / s.chunks),
                        MEMOS: s.memos,
                        SEQUENCE_AXIS: states * s.kept(i) + (0 if newest else states) + s.groups.behind[g],
                    },
                )
    kept = 2 if s.on_host else ceil(s.chunks / s.every)
    graph = s.stack.saved(s.rest) if s.G == 1 else 0.0
    yield from _joined(s, graph, states * kept)
    if (s.chunks - 1) % s.every > 1:  # the states of the last segment are recomputed while the last graph is alive
        recomputed = states * (3 if s.on_host else kept + (s.chunks - 1) % s.every + 1)
        parts = _forward_beside_graph(s) | {LAYER_AXIS: _whole_tensors(s, 0), SEQUENCE_AXIS: recomputed, MEMOS: s.memos}
        yield "recomputing states", parts | {CELL: parts[CELL] + graph}


def _layer_nesting(s: Layout) -> Iterator[Moment]:
    n = s.chunks
    coarse = 0 if s.on_host else ceil(n / s.every)
    for g in s.groups.edges:
        own, before, behind = s.groups[g].state, s.groups.before[g], s.groups.behind[g]
        for i in s.backward_chunks():
            newest = i == n - 1
            done = (n - 1 - i) / n if g > 0 or not s.streams else 0.0
            inputs = g + done + (g < s.G - 1) + (0 if s.streams else 3)
            kept = before * max(coarse, s.on_host) + own * s.kept(i) + behind + (0 if newest else own)
            for name, cell in _cell(s, g, s.tokens_of(i)):
                yield (
                    f"backward of group {g + 1} of {s.G}, chunk {i + 1} of {n}: {name}",
                    cell
                    | {
                        FRONT: cell[FRONT] + (s.chunk_inputs(s.tokens_of(i)) if g == 0 else 0),
                        SUMS: _sums(s, g, passed=not newest),
                        LAYER_AXIS: inputs * s.x_whole,
                        SEQUENCE_AXIS: kept,
                    },
                )
    yield from _joined(s, (s.G - 1) * s.x_whole, s.stack.state * (2 if s.on_host else coarse))


def _captured(s: Layout) -> Iterator[Moment]:
    """Yield the moments of a plan with graphs.

    Chunks of T tokens replay: the memory of their captured layers stays all the time, and inputs, states and their
    gradients have fixed places. The last chunk is shorter: its layers run without graphs while that memory stays.
    """
    x, sums = s.cost.x.at(s.T), s.cost.sums
    parts = [nbytes for _, nbytes in s.stack.backward(s.T, x)]
    pool = WORKSPACES + x + max(s.stack.forward(s.T, x), *parts)
    held: Parts = {SUMS: sums, LAYER_AXIS: 2 * x, CELL: pool, FRONT: 0.0, LOSS: 0.0}
    states = s.stack.state * (max(map(s.kept, s.backward_chunks())) + 4)
    front, head = s.cost.front, s.cost.head
    assert front is not None, "only a Streamer captures chunks"
    assert head is not None, "only a Streamer captures chunks"
    inputs, saved = s.chunk_inputs(s.T), front.saved.at(s.front_tokens(s.T))
    both = {SEQUENCE_AXIS: states, LAYER_AXIS: 3 * x}
    loss = head.backward.at(s.loss_tokens(s.T))
    yield "backward of a captured chunk: loss", held | both | {LOSS: loss, FRONT: inputs + saved}
    end = front.backward.at(s.front_tokens(s.T))
    yield "backward of a captured chunk: front", held | both | {FRONT: inputs + end}
    plain = s.T - 1 if s.workload.ragged else s.rest
    if plain < s.T:
        for name, cell in _cell(s, 0, plain):
            last = {CELL: pool + cell[CELL], FRONT: cell[FRONT] + s.chunk_inputs(plain), LOSS: cell[LOSS]}
            yield f"backward of the last chunk, not captured: {name}", held | last | {SEQUENCE_AXIS: states}
    yield "returning the gradients", held | {SUMS: sums + s.cost.weights, SEQUENCE_AXIS: 3 * s.stack.state}


def _cell(s: Layout, g: int, tokens: int) -> list[Moment]:
    """Return the moments of one cell's backward, the last piece first. Equal groups share them."""
    key = (g == 0, g == s.G - 1, id(s.groups[g]), tokens)
    if key not in s.cells:
        s.cells[key] = list(_cell_moments(s, g, tokens))
    return s.cells[key]


def _cell_moments(s: Layout, g: int, tokens: int) -> Iterator[Moment]:
    stack, x = s.groups[g], s.cost.x.at(tokens)
    head = s.cost.head if g == s.G - 1 else None
    front = s.cost.front if g == 0 else None
    front_saved = front.saved.at(s.front_tokens(tokens)) if front else 0.0
    head_done = float(head.gradients) if head else 0.0
    if head:
        loss = head.backward.at(s.loss_tokens(tokens))
        yield "loss", {CELL: stack.saved(tokens), LOSS: loss, FRONT: front_saved}
    for layer, nbytes in stack.backward(tokens, x):
        yield _layer_name(layer, stack.depth), {CELL: nbytes, LOSS: head_done, FRONT: front_saved}
    if front:
        done = stack.gradients + stack.state + x
        yield "front", {CELL: done, LOSS: head_done, FRONT: front.backward.at(s.front_tokens(tokens))}


def _layer_name(layer: int, depth: int) -> str:
    if layer in (0, depth - 1):
        return "its last layer" if layer == depth - 1 else "its first layer"
    return f"its layer {layer + 1} of {depth}"


def _forward_beside_graph(s: Layout) -> Parts:
    """Return what a chunk's forward takes while the graph of the last chunk is alive."""
    front, head = s.cost.front, s.cost.head
    cell = s.stack.forward(s.T, s.cost.x.at(s.T))
    if front is None or head is None:
        return {CELL: cell}
    tokens, rest = s.front_tokens(s.T), s.front_tokens(s.rest)
    ahead = max(front.forward.at(tokens) - cell, head.forward.at(s.loss_tokens(s.T)) - cell, 0.0)
    kept = head.saved.at(s.loss_tokens(s.rest)) if s.G == 1 else 0.0
    held = front.saved.at(rest) if s.G == 1 else 0.0
    return {CELL: cell, FRONT: ahead + held + s.chunk_inputs(s.T) + s.chunk_inputs(s.rest), LOSS: kept}


def _sums(s: Layout, g: int, passed: bool) -> float:
    """Return the bytes of the sums of gradients in group g's backward; `passed`: a later chunk has run it before."""
    if s.cost.persistent_sums:
        return s.cost.sums
    head = s.cost.head.sums if s.cost.head and (passed or g < s.G - 1) else 0
    return s.groups.sums_behind[g] + (s.groups[g].sums if passed else 0) + head


def _whole_tensors(s: Layout, done: float) -> float:
    """Return the bytes of `checkpoint`'s whole tensors: x, y, y's gradient, and the share `done` of x's gradient."""
    return 0.0 if s.streams else (3 + done) * s.x_whole


def _joined(s: Layout, inputs: float, states: float) -> Iterator[Moment]:
    """Yield the moments at which `checkpoint` joins the chunks of y, and those of x's gradient."""
    if not s.streams:
        yield "joining y", {LAYER_AXIS: 3 * s.x_whole + inputs, SEQUENCE_AXIS: states + s.stack.state}
        yield "joining the gradient of x", {SUMS: s.cost.sums, LAYER_AXIS: 5 * s.x_whole}

"""Stream a batch through the model chunk by chunk, with multi-axis gradient checkpointing.

A chunk's frames are encoded, its tokens pass the layers, and its loss is added, before the next chunk begins.
B batch, S tokens of the sample, T tokens of a chunk, N frames, C colours, H and W pixels, K tokens of a frame,
M supervised tokens of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from ma2mba.data.batch import Batch
from ma2mba.data.cuts import cuts, rank_cuts
from ma2mba.magc import Plan, Streamer
from ma2mba.model.video_ma2mba import VideoMa2mba, supervised

FEATURE_BITS = torch.int16
"""Features reach the engine as the bits of bf16, because it computes gradients of floating-point inputs."""


def streaming_loss(
    model: VideoMa2mba,
    batch: Batch,
    plan: Plan,
    loss_scale: float,
    streamer: Streamer | None = None,
    group: dist.ProcessGroup | None = None,
    before_chunk: Callable[[], None] | None = None,
    when_done: Callable[[], None] | None = None,
) -> Tensor:
    """Return the sum of the cross-entropies of the batch's supervised tokens times `loss_scale`, fp32 or wider, ().

    Every trainable parameter gets a gradient: zero if the batch does not use the parameter.

    streamer      from `build_streamer`; a plan with graphs needs the same one in every step
    group         ranks that see the same batch and share the tokens of every chunk; loss and gradients are then this
                  rank's share
    before_chunk  called before every chunk, in forward and in backward; may raise
    when_done     called at the end of backward, before any gradient is handed over; may raise
    """
    streamer = streamer or build_streamer(model, plan, group)
    device = next(model.parameters()).device
    place, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    chunks = Chunks(batch, streamer.plan, model.config.tokens_per_frame, device, place, ranks, before_chunk)
    like_x_BTD = torch.empty(len(batch.ids_BS), 0, model.config.language_model.d_model, device=device)
    total, _ = streamer(chunks, model.initial_states(like_x_BTD), when_done)
    return total * loss_scale


def build_streamer(model: VideoMa2mba, plan: Plan, group: dist.ProcessGroup | None = None) -> Streamer:
    """Return the model as a streamed sum of losses. Freeze parameters before, not after.

    Chunks that are captured as CUDA graphs hold whole frames if a frame fits into a chunk.
    """
    K = model.config.tokens_per_frame
    if plan.graphs and plan.chunk_tokens > K:
        plan = replace(plan, chunk_tokens=plan.chunk_tokens // K * K)

    def front(
        ids_BT: Tensor, visual_BT: Tensor, frames: Tensor, places_M: Tensor, targets_M: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if frames.dtype == FEATURE_BITS:
            frames = frames.view(torch.bfloat16)
        return model.embed(ids_BT, visual_BT, frames), places_M, targets_M

    def head(x_BTD: Tensor, places_M: Tensor, targets_M: Tensor) -> tuple[Tensor]:
        return (model.loss_at(x_BTD, places_M, targets_M),)

    backbone = model.language_model.backbone
    outside_layers = [model.vision, model.projector, backbone.embedding, backbone.norm_f, model.language_model.lm_head]
    layers = [layer.split(group) for layer in model.layers] if group else model.layers
    return Streamer(front, layers, head, outside_layers, plan, zeros_for_unused=True)


class Chunks(Sequence[tuple[Tensor, ...]]):
    """The chunks of a batch: ids_BT, visual_BT, frames, and the chunk's supervised tokens as places_M and targets_M.

    A chunk is moved to the device when it is asked for, once in forward and once in backward. Its frames are read
    then, and the frames of the next chunk in the same direction are read in the background. Features come as
    FEATURE_BITS. When `ranks` ranks share the batch, each chunk holds only the tokens of rank `place`, perhaps none.
    """

    def __init__(
        self,
        batch: Batch,
        plan: Plan,
        tokens_per_frame: int,
        device: torch.device,
        place: int = 0,
        ranks: int = 1,
        before_chunk: Callable[[], None] | None = None,
    ):
        self.batch, self.tokens_per_frame, self.device = batch, tokens_per_frame, device
        self.cuts = cuts(batch.visual_BS, plan.chunk_tokens, tokens_per_frame, even=plan.graphs)
        self.spans = [self._span(start, stop, place, ranks) for start, stop in pairwise(self.cuts)]
        self.before_chunk, self._last = before_chunk, -1

    def __len__(self) -> int:
        return len(self.spans)

    def _span(self, start: int, stop: int, place: int, ranks: int) -> slice:
        if ranks == 1:
            return slice(start, stop)
        places = rank_cuts(self.batch.visual_BS[:, start:stop], ranks, self.tokens_per_frame)
        return slice(start + places[place], start + places[place + 1])

    def __getitem__(self, i):
        if self.before_chunk:
            self.before_chunk()
        at = self.spans[i]
        visual_BT = self.batch.visual_BS[:, at]
        seen = visual_BT >= 0
        numbers, places = torch.unique(visual_BT[seen] // self.tokens_per_frame, return_inverse=True)
        local_BT = visual_BT.clone()
        local_BT[seen] = places * self.tokens_per_frame + visual_BT[seen] % self.tokens_per_frame
        frames = self.batch.frames[numbers]
        if (following := self._after(i)) is not None:
            self.batch.frames.expect(self._frames_of(following))
        bits = frames.view(FEATURE_BITS) if frames.dtype == torch.bfloat16 else frames
        chunk = (self.batch.ids_BS[:, at], local_BT, bits, *supervised(self.batch.targets_BS[:, at]))
        return tuple(t.to(self.device, non_blocking=True) for t in chunk)

    def _after(self, i: int) -> int | None:
        """Return the number of the chunk that is asked for after chunk i, None when chunk 0 ends backward.

        Forward goes from the first chunk to the last one. Backward still has the last chunk, and goes back from the
        chunk before it.
        """
        back, self._last = i <= self._last, i
        if back or i == len(self) - 1:
            return i - 1 if i else None
        return i + 1

    def _frames_of(self, i: int) -> Tensor:
        visual_BT = self.batch.visual_BS[:, self.spans[i]]
        return torch.unique(visual_BT[visual_BT >= 0] // self.tokens_per_frame)

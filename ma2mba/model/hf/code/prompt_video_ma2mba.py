"""Where the tokens of a batch stand: padding on the left, frames in their places, places whose results are wanted.

B rows of the batch, T tokens, D model width, N frames, M frames of a chunk, K visual tokens of a frame, L wanted
places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FRAMES = 32
"""Frames that the vision encoder takes at one time."""
MOST_FRAMES = 128
"""Frames of a chunk at most, of a batch of one row."""


class Alignment:
    """Moves the tokens of each row to its end, whatever places its padding has. A state then ends with the last token.

    order_BT   the place that each token comes from; None if the rows have padding on the left alone
    back_BT    for each place the new place of its token, and at padding of the last token before it
    """

    def __init__(self, mask_BT: Tensor | None):
        self.mask_BT = mask_BT
        self.order_BT: Tensor | None = None
        self._pads: list[int] = []
        if mask_BT is None:
            return
        counts_B = mask_BT.sum(1)
        self._pads = (mask_BT.shape[1] - counts_B).tolist()
        if bool((mask_BT[:, :-1] & ~mask_BT[:, 1:]).any()):
            self.order_BT = torch.argsort(mask_BT.to(torch.uint8), dim=1, stable=True)
            rank_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
            first_B1 = (mask_BT.shape[1] - counts_B)[:, None]
            self.back_BT = (first_B1 + rank_BT).clamp(max=mask_BT.shape[1] - 1)

    @classmethod
    def of(
        cls, attention_mask: Tensor | None, shape: tuple[int, int] | torch.Size, device: torch.device
    ) -> "Alignment":
        """Take the end of a mask that begins with tokens that were read before. Raise ValueError if it is too short."""
        if attention_mask is None:
            return cls(None)
        batch, tokens = shape
        if attention_mask.dim() != 2 or len(attention_mask) != batch or attention_mask.shape[1] < tokens:
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}, and the tokens have {tuple(shape)}. "
                "Give one number a token: 0 at padding"
            )
        mask_BT = attention_mask[:, attention_mask.shape[1] - tokens :].to(device).bool()
        return cls(None if bool(mask_BT.all()) else mask_BT)

    def moved(self, given: Tensor) -> Tensor:
        """Return values (B, T) or (B, T, D) in the new order."""
        return given if self.order_BT is None else _pick(given, self.order_BT)

    def back(self, x_BTD: Tensor) -> Tensor:
        """Undo `moved`."""
        return x_BTD if self.order_BT is None else _pick(x_BTD, self.back_BT)

    def without_padding(self, given: Tensor, value: int) -> Tensor:
        """Return values with `value` at padding."""
        return given if self.mask_BT is None else given.masked_fill(~self.mask_BT.to(given.device), value)

    def pads(self, start: int, stop: int) -> Tensor | None:
        """Return how many places of each row of a chunk are padding; None if there is none."""
        within = [min(max(pads - start, 0), stop - start) for pads in self._pads]
        assert self.mask_BT is not None or not any(within)
        return torch.tensor(within, device=self.mask_BT.device) if self.mask_BT is not None and any(within) else None


def _pick(values: Tensor, places_BL: Tensor) -> Tensor:
    places_BL = places_BL.to(values.device)
    if values.dim() == 2:
        return values.gather(1, places_BL)
    return values.gather(1, places_BL[..., None].expand(-1, -1, values.shape[2]))


class Frames:
    """The frames of a batch, which each chunk encodes where it needs them, FRAMES at a time."""

    def __init__(self, pixels_N3HW: Tensor, visual_BT: Tensor, per_frame: int, encode: Callable[[Tensor], Tensor]):
        """`visual_BT` is n * K + k at token k of frame n, and -1 at text."""
        self._pixels_N3HW, self._visual_BT, self._per_frame, self._encode = pixels_N3HW, visual_BT, per_frame, encode
        self._numbers_M: Tensor | None = None
        self._tokens_MKD: Tensor | None = None

    @classmethod
    def none(cls) -> "Frames":
        empty = torch.empty(0, 0)
        return cls(empty, empty, 1, lambda frames: frames)

    def cuts(self, tokens: int, longest: int) -> list[int]:
        """Return the boundaries of chunks of at most `longest` tokens, from 0 to `tokens`.

        A single row is cut as `ma2mba ask` cuts it, for the same bits: between frames, and after the last frame.
        """
        if len(self._visual_BT) != 1:
            return [*range(0, tokens, longest), tokens]
        visual_T = self._visual_BT[0].cpu()
        inside_T = ((visual_T >= 0) & (visual_T % self._per_frame != 0)).tolist() + [False]
        last = int((visual_T >= 0).nonzero()[-1:].sum()) + 1
        longest = min(longest, MOST_FRAMES * self._per_frame)
        places = [0]
        for end in (last, tokens):
            while places[-1] < end:
                latest = min(places[-1] + longest, end)
                places.append(next((at for at in range(latest, places[-1], -1) if not inside_T[at]), latest))
        return places

    def put_into(self, x_BTD: Tensor, start: int, stop: int) -> Tensor:
        """Return x_BTD of a chunk with the visual tokens in their places."""
        visual_BT = self._visual_BT[:, start:stop].to(x_BTD.device)
        seen_BT = visual_BT >= 0
        if not visual_BT.numel() or not bool(seen_BT.any()):
            return x_BTD
        visual_P = visual_BT[seen_BT]
        numbers_M, frame_P = torch.unique(visual_P // self._per_frame, return_inverse=True)
        tokens_MKD = self._tokens(numbers_M, x_BTD)
        tokens_PD = tokens_MKD.flatten(0, 1)[frame_P * self._per_frame + visual_P % self._per_frame]
        return x_BTD.masked_scatter(seen_BT[..., None], tokens_PD.to(x_BTD.dtype))

    def _tokens(self, numbers_M: Tensor, x_BTD: Tensor) -> Tensor:
        """Return the tokens of frames. A frame that the chunk before needed too is not encoded again."""
        if self._numbers_M is None or self._tokens_MKD is None:
            tokens_MKD = self._encoded(numbers_M, x_BTD.device)
        else:
            again_M = torch.isin(numbers_M, self._numbers_M)
            tokens_MKD = self._tokens_MKD.new_empty(len(numbers_M), *self._tokens_MKD.shape[1:])
            tokens_MKD[again_M] = self._tokens_MKD[torch.isin(self._numbers_M, numbers_M)]
            if not bool(again_M.all()):
                tokens_MKD[~again_M] = self._encoded(numbers_M[~again_M], x_BTD.device)
        if not torch.is_grad_enabled():
            self._numbers_M, self._tokens_MKD = numbers_M, tokens_MKD
        return tokens_MKD

    def _encoded(self, numbers_M: Tensor, device: torch.device) -> Tensor:
        blocks = numbers_M.to(self._pixels_N3HW.device).split(FRAMES)
        return torch.cat([self._encode(self._pixels_N3HW[block].to(device)).to(device) for block in blocks])


class Wanted:
    """Collects the residual stream at the places whose logits are wanted, and the sum of the losses."""

    def __init__(self, tokens: int, keep: int | Tensor, align: Alignment):
        self._align, self._chunks = align, list[Tensor]()
        self._x_BLD: Tensor | None = None
        self.loss: Tensor = torch.zeros(())
        self._places_L: Tensor | None = None
        if isinstance(keep, Tensor):
            self._places_L = torch.arange(tokens)[keep.cpu()] if keep.dtype == torch.bool else keep.cpu() % tokens
        elif 0 < keep < tokens:
            self._places_L = torch.arange(tokens - keep, tokens)

    def add(self, x_BTD: Tensor, start: int) -> None:
        """Take a chunk, which begins at `start`."""
        self.loss = self.loss.to(x_BTD.device)
        if self._places_L is None:
            self._chunks.append(x_BTD)
            return
        places_BL = self._places_L.to(x_BTD.device).expand(len(x_BTD), -1)
        if self._align.order_BT is not None:
            places_BL = self._align.back_BT.to(x_BTD.device).gather(1, places_BL)
        within_BL1 = ((places_BL >= start) & (places_BL < start + x_BTD.shape[1]))[..., None]
        picked_BLD = _pick(x_BTD, (places_BL - start).clamp(0, x_BTD.shape[1] - 1))
        self._x_BLD = picked_BLD if self._x_BLD is None else torch.where(within_BL1, picked_BLD, self._x_BLD)

    def result(self) -> Tensor:
        if self._places_L is None:
            return self._align.back(torch.cat(self._chunks, dim=1))
        assert self._x_BLD is not None
        return self._x_BLD


def frames_of_rows(pixels_N3HW: Tensor, frames_B: Tensor, new_B: Tensor, copies: int) -> Tensor | None:
    """Return the frames that each row reads now, for rows that repeat each prompt `copies` times.

    Each row has `frames_B` frames, and the cache has seen all but the last `new_B`. `pixels_N3HW` holds the frames of
    every prompt once, with or without the seen ones. Other numbers of frames are returned as they are, and `forward`
    refuses them.
    """
    frames, new = frames_B[::copies].tolist(), new_B[::copies].tolist()
    if len(pixels_N3HW) not in (sum(frames), sum(new)):
        return pixels_N3HW
    parts = pixels_N3HW.split(frames if len(pixels_N3HW) == sum(frames) else new)
    if copies > 1 or len(pixels_N3HW) != sum(new):
        last = [part[len(part) - count :] for part, count in zip(parts, new, strict=True)]
        pixels_N3HW = torch.cat([part for part in last for _ in range(copies)])
    return pixels_N3HW if len(pixels_N3HW) else None


__all__ = ["Alignment", "Frames", "Wanted", "frames_of_rows"]

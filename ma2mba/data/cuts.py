"""Cut a sequence of text and frames into chunks, and a chunk into slices for several ranks.

B batch, S tokens of the sequence, T tokens of a chunk.
"""

from torch import Tensor


def cuts(visual_BS: Tensor, chunk_tokens: int, tokens_per_frame: int, even: bool = False) -> list[int]:
    """Return the boundaries of chunks of at most `chunk_tokens`, from 0 to S.

    Boundaries lie between frames where possible, in every row. Where a boundary cuts a frame, both chunks encode the
    frame: the result is exact, but slower. With `even`, all chunks between the first and the last have exactly
    `chunk_tokens`, even if this cuts frames: chunks captured as CUDA graphs need equal lengths.
    """
    tokens = visual_BS.shape[1]
    inside_S = _inside_frames(visual_BS, tokens_per_frame)
    places = [0]
    while places[-1] < tokens:
        latest = min(places[-1] + chunk_tokens, tokens)
        edge = next((at for at in range(latest, places[-1], -1) if not inside_S[at]), latest)
        places.append(latest if even and len(places) > 1 else edge)
    return places


def rank_cuts(visual_BT: Tensor, ranks: int, tokens_per_frame: int) -> list[int]:
    """Return the boundaries of the slices of a chunk for `ranks` ranks, from 0 to T. A slice may be empty.

    Slices have equal lengths, except that a boundary moves by up to half a frame if this avoids cutting a frame.
    """
    tokens = visual_BT.shape[1]
    inside_T = _inside_frames(visual_BT, tokens_per_frame)
    places = [0]
    for rank in range(1, ranks):
        even = max(tokens * rank // ranks, places[-1])
        near = sorted(
            range(even - tokens_per_frame // 2, even + tokens_per_frame // 2 + 1), key=lambda at: abs(at - even)
        )
        places.append(next((at for at in near if places[-1] <= at <= tokens and not inside_T[at]), even))
    return [*places, tokens]


def _inside_frames(visual_BS: Tensor, tokens_per_frame: int) -> list[bool]:
    """Return for each boundary 0..S whether it cuts a frame in any row."""
    return ((visual_BS >= 0) & (visual_BS % tokens_per_frame != 0)).any(dim=0).tolist() + [False]

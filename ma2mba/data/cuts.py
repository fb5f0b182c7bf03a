"""Where a sequence of text and frames may be cut into chunks, and a chunk into the parts of several ranks.

B batch, S tokens of the sequence.
"""

from torch import Tensor


def cuts(visual_BS: Tensor, chunk_tokens: int, tokens_per_frame: int, even: bool = False) -> list[int]:
    """Where chunks of at most `chunk_tokens` begin and end: at a frame's edge in all rows if there is one.

    A frame that two chunks share is encoded in both, which is exact but costs time. With `even` all chunks between the
    first and the last have `chunk_tokens`, wherever that cuts (chunks captured as CUDA graphs must be alike).
    """
    tokens = visual_BS.shape[1]
    inside_S = _inside_frames(visual_BS, tokens_per_frame)
    places = [0]
    while places[-1] < tokens:
        latest = min(places[-1] + chunk_tokens, tokens)
        edge = next((at for at in range(latest, places[-1], -1) if not inside_S[at]), latest)
        places.append(latest if even and len(places) > 1 else edge)
    return places


def parts(visual_BT: Tensor, ranks: int, tokens_per_frame: int) -> list[int]:
    """Where the parts of a chunk begin and end that `ranks` ranks take: as equal as can be, but for a frame.

    A part begins at the nearest frame's edge of all rows that lies within half a frame, else anywhere; it may be empty.
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
    """Whether a cut before a token, or after the last, would cut a frame of any row."""
    return ((visual_BS >= 0) & (visual_BS % tokens_per_frame != 0)).any(dim=0).tolist() + [False]

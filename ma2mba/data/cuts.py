"""Where a sequence of text and frames may be cut into chunks.

B batch, S tokens of the sequence.
"""

from torch import Tensor


def cuts(visual_BS: Tensor, chunk_tokens: int, tokens_per_frame: int, even: bool = False) -> list[int]:
    """Where chunks of at most `chunk_tokens` begin and end: at a frame's edge in all rows if there is one.

    A frame that two chunks share is encoded in both, which is exact but costs time. With `even` all chunks between the
    first and the last have `chunk_tokens`, wherever that cuts (chunks recorded as CUDA graphs must be alike).
    """
    tokens = visual_BS.shape[1]
    inside_S = ((visual_BS >= 0) & (visual_BS % tokens_per_frame != 0)).any(dim=0).tolist() + [False]
    places = [0]
    while places[-1] < tokens:
        latest = min(places[-1] + chunk_tokens, tokens)
        edge = next((at for at in range(latest, places[-1], -1) if not inside_S[at]), latest)
        places.append(latest if even and len(places) > 1 else edge)
    return places

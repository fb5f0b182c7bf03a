"""How long samples are, for the report."""

from collections import Counter
from typing import Any

from ma2mba.shards.format import IndexRow

PATCH, POOLING = 14, 2
"""Of the paper's vision encoder: pixels of a patch's side, and patches of a token's."""


def lengths(rows: list[IndexRow], image_size: int) -> dict[str, Any]:
    """Hours, and how many samples have how many tokens, with the visual tokens that the paper's encoder gives a frame.

    Keys of the histogram are powers of two: "1024" counts samples of 1,024 to 2,047 tokens.
    """
    tokens_per_frame = (-(-(image_size // PATCH) // POOLING)) ** 2
    tokens = [len(row.token_ids) + row.frames * tokens_per_frame for row in rows]
    counts = Counter(1 << (count.bit_length() - 1) for count in tokens)
    return {
        "hours": round(sum(row.duration for row in rows) / 3600, 3),
        "longest_seconds": round(max(row.duration for row in rows), 3),
        "visual_tokens_per_frame": tokens_per_frame,
        "tokens": sum(tokens),
        "longest_tokens": max(tokens),
        "tokens_per_sample": {str(size): counts[size] for size in sorted(counts)},
    }

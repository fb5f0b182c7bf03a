"""Compute the lengths of samples for the report of a build."""

from collections import Counter
from typing import Any

from ma2mba.shards.format import IndexRow

PATCH, POOLING = 14, 2
"""The paper's vision encoder: side of a patch in pixels, side of a token in patches."""


def lengths(rows: list[IndexRow], image_size: int) -> dict[str, Any]:
    """Return hours, token counts and a histogram of sample lengths; a frame counts as the tokens of
    the paper's encoder, whichever encoder is trained.

    The histogram's keys are powers of two: "1024" counts the samples of 1,024 to 2,047 tokens.
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

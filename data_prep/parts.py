"""How many samples a shard holds: a property of the recipe and its annotations, never of the workers."""

from typing import Any

FEWEST, MOST = 2, 64
"""Samples of a shard, unless the recipe gives another number."""
SHARDS = 32
"""Shards of a build that is too small for shards of MOST samples, so that many workers have something to do."""


def samples_per_shard(clips: int) -> int:
    """Return how many samples a shard holds, for a build of `clips` samples whose recipe leaves it open."""
    return max(FEWEST, min(MOST, clips // SHARDS))


def recorded(recipe: dict[str, Any]) -> int | None:
    """Return how many samples a shard holds, from the recipe that its folder records; None if it records none."""
    size = recipe.get("clips_per_part")
    return size if type(size) is int and size > 0 else None

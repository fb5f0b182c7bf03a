"""Share out the media of an evaluation between processes, without any communication between them."""

import os
from collections.abc import Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ma2mba.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Part `number` (from 0) of `of` parts. A part has the media number, number + of, number + 2 of, ..."""

    number: int = 0
    of: int = 1

    def share(self, media: Sequence[T]) -> list[T]:
        """Return this part's media."""
        return list(media[self.number :: self.of])

    def name(self, name: str) -> str:
        """Return the name of this part's own file: "answers.jsonl" is "answers-0-of-4.jsonl" in part 0 of 4."""
        stem, dot, suffix = name.rpartition(".")
        return name if self.of == 1 else f"{stem}-{self.number}-of-{self.of}{dot}{suffix}"

    def siblings(self) -> "list[Part]":
        """Return all parts, this one included."""
        return [Part(number, self.of) for number in range(self.of)]

    @staticmethod
    def choose(text: str | None, environment: Mapping[str, str] = os.environ) -> "Part":
        """Return the part that --part names; without it, the part of this rank of torchrun, or of this task of srun."""
        if text is not None:
            return Part.parse(text)
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", tasks)):
            if rank in environment and size in environment:
                return _of_environment(environment, rank, size)
        return Part()

    @staticmethod
    def parse(text: str) -> "Part":
        """Convert "3/8" to Part(3, 8). Raise UserError unless 0 <= number < of."""
        try:
            number, of = (int(word) for word in text.split("/"))
        except ValueError:
            raise UserError(f"--part {text}: not a part. Write number/of, for example 0/8") from None
        if not 0 <= number < of:
            raise UserError(f"--part {text}: out of range. Use 0/{max(of, 1)} to {max(of, 1) - 1}/{max(of, 1)}")
        return Part(number, of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def _of_environment(environment: Mapping[str, str], rank: str, size: str) -> Part:
    try:
        return Part.parse(f"{environment[rank]}/{environment[size]}")
    except UserError:
        given = f"{rank}={environment[rank]}, {size}={environment[size]}"
        raise UserError(f"{given}: not a rank below a number of ranks. Unset them, or give --part") from None


def choose_gpu(environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")) -> None:
    """Let a rank see its own GPU alone, of those of its host. Call it before PyTorch is imported."""
    place = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", ""))
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    found = range(len(list(devices.glob("nvidia[0-9]*"))))
    gpus = [str(number) for number in found] if listed is None else listed.split(",")
    if place.isdecimal() and len(gpus) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[int(place) % len(gpus)]


def in_order(keys: Iterable[T]) -> dict[T, list[int]]:
    """Return the places of each key, the keys in the order in which they first appear."""
    places: dict[T, list[int]] = {}
    for place, key in enumerate(keys):
        assert isinstance(key, Hashable)
        places.setdefault(key, []).append(place)
    return places

"""How answers are written: the options, and the random numbers of a sequence. Imports no torch."""

import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ma2mba.errors import UserError

SEEDS = 1 << 64
DRAW_BITS = 32
"""Bits of a draw: few enough that a draw times the sum of all probabilities stays below the sum in fp64."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is written.

    temperature        0: always the most likely token. Default: 0, or 1 if top_p, top_k or min_p is given.
    top_p              Draw from the fewest tokens whose probabilities reach this sum (1: all).
    top_k              Draw from the `top_k` most likely tokens (0: all).
    min_p              Draw from tokens with at least this share of the most likely token's probability (0: all).
    seed               The same seed gives the same text. None: choose one, which the answer names.
    max_tokens         Longest answer.
    stop               Strings that end the answer. They do not appear in it.
    repetition_stop    End the answer when its last five tokens appear earlier in it: the paper's rule for evaluation.
    logprobs           Note the log-probability of each token, before temperature and filters.

    Raise UserError for a value out of range.
    """

    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop: Sequence[str] = ()
    repetition_stop: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        wrong = {
            "temperature": "a number from 0" if not (math.isfinite(self.heat) and self.heat >= 0) else "",
            "top_p": "above 0, at most 1" if not 0 < self.top_p <= 1 else "",
            "top_k": "a whole number from 0" if self.top_k < 0 else "",
            "min_p": "from 0 to 1" if not 0 <= self.min_p <= 1 else "",
            "seed": "from 0 to 2^64 - 1" if self.seed is not None and not 0 <= self.seed < SEEDS else "",
            "max_tokens": "a whole number from 1" if self.max_tokens < 1 else "",
            "stop": "text that is not empty" if not all(self.stop) else "",
        }
        for name in (field.name for field in fields(self)):
            if wrong.get(name):
                raise UserError(f"{name}: {getattr(self, name)!r} is out of range. Use {wrong[name]}")

    @property
    def heat(self) -> float:
        """The temperature, or its default."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.top_p < 1 or self.top_k or self.min_p else 0.0

    def draws(self) -> "Draws":
        return Draws(secrets.randbelow(1 << 32) if self.seed is None else self.seed)


class Draws:
    """The random numbers of one sequence. They depend on the seed alone, not on the device or on other sequences."""

    def __init__(self, seed: int):
        self.seed = seed
        self._random = random.Random(seed)

    def next(self) -> float:
        """Return a number from 0, below 1."""
        return self._random.getrandbits(DRAW_BITS) / (1 << DRAW_BITS)

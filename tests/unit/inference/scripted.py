"""Let a batch write given tokens, whatever the model says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer

from ma2mba.inference import generate
from ma2mba.inference.answer import Answer
from ma2mba.inference.generate import Batch
from ma2mba.inference.sampling import Draws, Sampling


@contextmanager
def scripted(monkeypatch: pytest.MonkeyPatch, scripts: Sequence[list[int]]) -> Iterator[None]:
    """Let `choose` return the tokens of each row's script, one after the other; each row keeps its draws."""
    rows: dict[int, Iterator[int]] = {}
    left = [iter(script) for script in scripts]

    def choose(logits_BV: torch.Tensor, samplings: Sequence[Sampling], draws: list[Draws]) -> torch.Tensor:
        for own in draws:
            if id(own) not in rows:
                rows[id(own)] = left[len(rows)]
        return torch.tensor([next(rows[id(own)], 1) for own in draws])

    with monkeypatch.context() as patched:
        patched.setattr(generate, "choose", choose)
        yield


class Script:
    """Stands for session, model and decoder: the likeliest next token is the script's; NaN where it has None."""

    def __init__(self, tokenizer: Tokenizer, script: list[int | None]):
        self.tokenizer, self.script, self.model = tokenizer, script, None

    def require_states(self) -> "Script":
        return self

    def logits(self) -> torch.Tensor:
        token = self.script.pop(0) if self.script else 0
        if token is None:
            return torch.full((300,), torch.nan)
        return torch.nn.functional.one_hot(torch.tensor(token), 300).float() * 100


class ScriptDecoder:
    def __init__(self, model: None, states: list[Script]):
        (self.session,) = states

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        return self.session.logits()[None]


def answer_of(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, script: list, **options
) -> tuple[Answer, list[str]]:
    """Return the answer that has these tokens, and the pieces of text in which it appeared."""
    monkeypatch.setattr(generate, "Decoder", ScriptDecoder)
    batch = Batch([Script(tokenizer, list(script))], Sampling(**options))
    pieces = [piece for _, piece in batch.pieces()]
    return batch.answers[0], pieces

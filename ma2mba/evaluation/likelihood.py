"""Score the options of a question by their likelihood as the answer.

As in lm-evaluation-harness and lmms-eval: `total` is the sum of the log-probabilities of an option's tokens after the
prompt, without the end of the turn (the option of the largest total is right in their metric `acc`); `per_letter` is
`total` divided by the number of the option's characters (their metric `acc_norm`). This project reports `acc_norm`.

B options, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.session import Session
from ma2mba.model.plain_text import END, UnencodableText, plain_text
from ma2mba.ops import product_of_norm


@dataclass(frozen=True)
class OptionScore:
    """The likelihood of an option. `total` is a natural logarithm; `tokens`: how many tokens the option has."""

    total: float
    per_letter: float
    tokens: int


def score_options(chat: VideoChat, prompt: str, options: Sequence[str]) -> list[OptionScore]:
    """Return the score of each option as the answer to `prompt`. The chat stays as it is.

    A blank option is the answer that ends at once.

    Raise UserError for a prompt or an option that the tokenizer cannot encode, and if the model's output is not finite.
    """
    session = chat.asked(prompt)
    tokens = [_encode(session, option) for option in options]
    totals = _log_likelihoods(session, tokens)
    if not all(total == total and total != -torch.inf for total in totals):
        raise UserError("the model's output is not a number (NaN). Use the weights of another checkpoint")
    return [
        OptionScore(total, total / max(1, len(option)), len(ids))
        for total, option, ids in zip(totals, options, tokens, strict=True)
    ]


def likeliest(scores: Sequence[OptionScore]) -> int:
    """Return the index of the option with the largest `per_letter`; the first one of equal options."""
    return max(range(len(scores)), key=lambda i: scores[i].per_letter)


def _encode(session: Session, option: str) -> list[int]:
    """Return the ids of an answer, as they are in training."""
    try:
        ids = plain_text(session.tokenizer).ids(option)
    except UnencodableText as error:
        raise UserError(f"the option {option!r:.100} {error}. Write it in other words") from error
    end = session.tokenizer.token_to_id(END)
    assert end is not None, "load_tokenizer refuses a tokenizer without it"
    return ids or [end]


@torch.no_grad()
def _log_likelihoods(session: Session, tokens: Sequence[list[int]]) -> list[float]:
    """Return the sums of the log-probabilities of some continuations of a session. All are read together."""
    ids_BT = torch.zeros(len(tokens), max(map(len, tokens)), dtype=torch.long)
    for row, ids in enumerate(tokens):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    ids_BT = ids_BT.to(session.device)
    lengths_B = torch.tensor([len(ids) for ids in tokens], device=session.device)
    vocabulary = session.tokenizer.get_vocab_size()
    logits_BV = _logits(session).expand(len(tokens), -1)
    decoder = Decoder(session.model, [session.require_states()] * len(tokens))
    totals_B = torch.zeros(len(tokens), dtype=torch.float64, device=session.device)
    for t in range(ids_BT.shape[1]):
        logs_BV = logits_BV[:, :vocabulary].double().log_softmax(-1)
        taken_B = logs_BV.gather(1, ids_BT[:, t, None])[:, 0]
        totals_B += torch.where(t < lengths_B, taken_B, 0.0)
        if t + 1 < ids_BT.shape[1]:
            logits_BV = decoder.step(ids_BT[:, t])
    return totals_B.tolist()


def _logits(session: Session) -> Tensor:
    """Return the logits_1V of the first token of an answer, in fp32 or wider, as the decoder computes the others."""
    last_1D = session.last_1D
    assert last_1D is not None, "the session has read the prompt"
    norm = session.model.language_model.backbone.norm_f
    return product_of_norm(last_1D, norm.weight, session.model.language_model.lm_head.weight, norm.eps)

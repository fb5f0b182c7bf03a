"""The pieces of a conversation (paper, section 4), and a sample that is built of them. A model folder has a copy.

A sample is text with frames between its tokens. The number of tokens of a frame depends on the model, so frames are
positions here (`frame_positions`), never tokens.
"""

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from ma2mba.model.plain_text import END, encode, plain_text

SYSTEM = "<|system|>You are a helpful assistant." + END
USER, ASSISTANT = " <|user|>", " <|assistant|>"
IGNORE = -100
"""The target of a token that is not supervised."""


@dataclass
class Encoded:
    """An encoded sample.

    token_ids        the text
    supervised       for each token, True if the model must predict it
    frame_positions  for each frame, the index of the token after it. Positions never decrease; `len(token_ids)` is the
                     position of a frame after the last token.
    """

    token_ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    frame_positions: list[int] = field(default_factory=list)

    def add_template(self, tokenizer: Tokenizer, piece: str, *, supervised: bool = False) -> None:
        """Append a piece of the template, in which control tokens are tokens."""
        self._add(encode(tokenizer, piece).ids, supervised)

    def add_text(self, tokenizer: Tokenizer, text: str, *, supervised: bool = False) -> None:
        """Append a text that END follows. A control token that the text spells stays text."""
        self._add(plain_text(tokenizer).ids(text), supervised)

    def _add(self, ids: list[int], supervised: bool) -> None:
        self.token_ids += ids
        self.supervised += [supervised] * len(ids)

    def add_frames(self, count: int) -> None:
        self.frame_positions += [len(self.token_ids)] * count

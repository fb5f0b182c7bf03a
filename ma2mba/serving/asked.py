"""A question that was asked, and its answers while they are written."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from tokenizers import Tokenizer

from ma2mba.inference.answer import Writing
from ma2mba.inference.sampling import SEEDS, Draws, Sampling
from ma2mba.serving.contract import Likely, Piece, Question, Usage
from ma2mba.serving.mailbox import Mailbox
from ma2mba.serving.places import Token
from ma2mba.serving.prompt import Prompt
from ma2mba.serving.reading import MediumReading


class OneAnswer:
    """One answer of a question: it takes a place in the batch, and its tokens become pieces."""

    def __init__(self, asked: "Asked", number: int, sampling: Sampling, tokenizer: Tokenizer, alternatives: int):
        self.asked, self.number, self.sampling, self.alternatives = asked, number, sampling, alternatives
        self._tokenizer = tokenizer
        self._writing = Writing(tokenizer, sampling, asked.began)

    @property
    def draws(self) -> Draws:
        return self._writing.draws

    @property
    def ended(self) -> bool:
        return self._writing.answer.reason is not None

    def add(self, token: Token) -> None:
        """Add a token, and send what is new. Raise UserError if it is not a number."""
        answer, before = self._writing.answer, len(self._writing.answer.tokens)
        text = self._writing.add(token.id, token.value)
        named: tuple[Likely, ...] = ()
        others: tuple[tuple[Likely, ...], ...] = ()
        if len(answer.tokens) > before:
            self.asked.usage.answer_tokens += 1
            if self.sampling.logprobs:
                named = (self._likely(token.id, token.value),)
                others = (tuple(self._likely(*pair) for pair in token.alternatives),)
        if text or named or answer.reason:
            self.asked.send(Piece(self.number, text, named, others, answer.reason))

    def _likely(self, token: int, logprob: float) -> Likely:
        return Likely(token, self._tokenizer.decode([token], skip_special_tokens=False), logprob)


class Asked:
    """`Answering` of a question.

    reading    what the question waits for; `started`: the question began it
    admitted   its answers have places, or its prompt is read
    over       it has failed or was cancelled: its places are free
    """

    def __init__(self, question: Question, prompt: Prompt, tokenizer: Tokenizer, cancel: Callable[["Asked"], None]):
        self.question, self.prompt, self.client = question, prompt, question.client
        self.began = time.monotonic()
        self.usage = Usage()
        self.reading: MediumReading | None = None
        self.started = self.over = self.admitted = False
        self._mailbox = Mailbox[Piece | BaseException]()
        self._cancel = cancel
        samplings = [_numbered(question.sampling, number) for number in range(question.answers)]
        if question.alternatives:
            samplings = [replace(sampling, logprobs=True) for sampling in samplings]
        self.answers = [
            OneAnswer(self, number, sampling, tokenizer, question.alternatives)
            for number, sampling in enumerate(samplings)
        ]
        self.usage.seeds = [answer.draws.seed for answer in self.answers]

    @property
    def ended(self) -> bool:
        return all(answer.ended for answer in self.answers)

    def count(self, tokens_per_frame: int) -> None:
        """Count the tokens of the prompt, when the answers begin."""
        prefix, reading, usage = self.prompt.prefix, self.reading, self.usage
        usage.prompt_tokens = len(self.prompt.tail)
        if prefix and reading:
            frames, usage.seconds_of_video = reading.seen()
            read = sum(len(segment.before) for segment in prefix.segments) + frames * tokens_per_frame
            usage.prompt_tokens += read
            usage.cached_tokens = 0 if self.started and reading.frames_read else read

    def send(self, piece: Piece) -> None:
        self._mailbox.put(piece)

    def fail(self, error: BaseException) -> None:
        """Let the iteration raise an error."""
        self.over = True
        self._mailbox.put(error)

    def cancel(self) -> None:
        """Stop writing. Its places in the batch are free at once."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        left = len(self.answers)
        try:
            while left:
                item = await self._mailbox.get()
                if isinstance(item, BaseException):
                    raise item
                left -= item.reason is not None
                yield item
        finally:
            if left:
                self.cancel()


def _numbered(sampling: Sampling, number: int) -> Sampling:
    """Return the options of answer `number`: answers with the same seed would be the same."""
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + number) % SEEDS)

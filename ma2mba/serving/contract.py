"""What the parts of the server hand to each other: media that may be opened, questions, readings and answers.

The interfaces (`api/`, `page/`) make `Question`s of what clients send. `library.py` makes a `Medium` of what a client
names. `engine.py` reads media and writes answers.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from ma2mba.inference.sampling import Sampling

State = Literal["queued", "reading", "ready", "failed"]
Kind = Literal["video", "image"]


@dataclass(frozen=True)
class Medium:
    """A local file that the server may open.

    content   SHA-256 of the bytes, in hexadecimal: media with equal bytes are read once, whoever sent them
    name      what the client calls it; shown, and never used as a path
    """

    path: Path
    content: str
    kind: Kind
    name: str


@dataclass(frozen=True)
class Stored:
    """A medium that an owner has uploaded or had fetched. `created` and `expires` are seconds since 1970.

    id         cannot be guessed, and only its owner may use it
    duration   seconds of the video, 0 for an image
    """

    id: str
    medium: Medium
    bytes: int
    duration: float
    created: float
    expires: float


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: text and media, in the order in which the client gave them."""

    role: Literal["user", "assistant"]
    parts: tuple[str | Medium, ...]


@dataclass(frozen=True)
class Question:
    """A conversation whose last turn is the user's, and how its answers are written.

    answers      how many answers are wanted (OpenAI's `n`)
    alternatives for each token, how many likely tokens are named with their log-probabilities
    so_far       answer about what was read so far of a video that is being read, instead of waiting for its end
    client       whose limits count: a token's or an address's name
    """

    turns: tuple[Turn, ...]
    sampling: Sampling
    client: str
    answers: int = 1
    alternatives: int = 0
    so_far: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a medium was read."""

    state: State
    seconds: float = 0.0
    duration: float = 0.0
    frames: int = 0
    total: int = 0
    frames_per_second: float = 0.0
    waiting: int = 0
    """Readings before this one in the queue."""
    error: str = ""
    """Why the reading failed, with a remedy."""


@dataclass(frozen=True)
class Likely:
    """A token, its text and its log-probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Piece:
    """New text of answer number `answer`. `reason` is set in the last piece of each answer."""

    answer: int
    text: str
    tokens: tuple[Likely, ...] = ()
    alternatives: tuple[tuple[Likely, ...], ...] = ()
    reason: Literal["end", "length", "stop", "repetition"] | None = None


@dataclass
class Usage:
    """Tokens of a question (text and frames) and of its answers. `cached_tokens` of the prompt were not read again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    seconds_of_video: float = 0.0
    seeds: list[int] = field(default_factory=list)


class Reading(Protocol):
    """A medium that is read, or was read. Equal media share one reading."""

    @property
    def progress(self) -> Progress: ...
    async def wait(self) -> Progress:
        """Return when the medium is read. Raise `errors.Refused` if it cannot be."""

    def events(self) -> AsyncIterator[Progress]:
        """Yield the progress now, and after each change, until it is read or has failed."""

    def release(self) -> None:
        """Say that nobody waits for it here any more. A reading that nobody waits for is stopped."""


class Answering(Protocol):
    """Answers that are being written."""

    usage: Usage
    """The tokens of the prompt are known with the first piece."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield the pieces as they come. Raise `errors.Refused`, or another UserError, if the question fails."""

    def cancel(self) -> None:
        """Stop writing. Its place in the batch is free at once."""


class Busy(Exception):
    """A queue is full, or a client has reached its limit. `retry_after`: seconds after which to try again."""

    def __init__(self, reason: str, retry_after: float):
        super().__init__(reason)
        self.retry_after = retry_after


class Engine(Protocol):
    """What answers questions.

    `read` and `ask` return at once. They raise Busy, UserError for a bad question, and `errors.Refused` with status 503
    if nothing can be answered any more.
    """

    def read(self, medium: Medium, client: str) -> Reading: ...
    def ask(self, question: Question) -> Answering: ...
    def forget(self, content: str) -> None:
        """Delete the states of a medium in memory and on disk: nobody keeps the medium any more."""

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing new, let answers end within the grace, keep the states on disk."""

    def problem(self) -> str:
        """Return why nothing can be answered any more, with a remedy; "" while all is well. /health tells it."""

    def status(self) -> dict[str, float]:
        """Return numbers for /metrics: queues, places, states by tier, tokens and frames.

        A key such as `places_taken` becomes the gauge `ma2mba_places_taken`; one that ends in `_total`, a counter.
        """


class Library(Protocol):
    """What turns names from clients into media that may be opened.

    `owner` is the client or the page's session whose ids and quotas count. Every method raises `errors.Refused`, whose
    status and text the client sees: 403 for a forbidden place, 404 for an unknown id or the id of another owner,
    413 for too many bytes or hours, 415 for what is neither a video nor a picture, 429 for a full quota.
    """

    async def start(self) -> None:
        """From now on, delete media whose time is over."""

    async def store(self, chunks: AsyncIterator[bytes], name: str, owner: str, length: int | None = None) -> Stored:
        """Write an upload to disk while it comes, check it, and return it with a new id."""

    async def keep(self, url: str, owner: str) -> Stored:
        """Fetch a URL as an upload: return it with a new id."""

    async def fetch(self, url: str, kind: Kind, owner: str) -> Medium:
        """Return the medium that a content part names: an `https:`, `data:` or `file:` URL, or an id."""

    def hold(self, medium: Medium) -> None:
        """Keep a medium until `release`, also when its time is over. `fetch` holds what it returns."""

    def release(self, medium: Medium) -> None:
        """Say that a question or a reading of a medium has ended. Its time counts from now."""

    def find(self, id: str, owner: str) -> Stored: ...
    def list(self, owner: str) -> list[Stored]: ...
    async def delete(self, id: str, owner: str) -> None: ...
    async def end(self, owner: str) -> None:
        """Delete everything that an owner keeps: the session has ended."""

    def status(self) -> dict[str, float]:
        """Return numbers for /metrics: files and bytes that are kept, owners, uploads that are running."""

    async def close(self) -> None:
        """Stop what runs. Media stay for the next start, until their time is over."""

"""Watch videos once, ask about them as often as wanted, and keep what was watched in a file."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.files import xxh3_file
from ma2mba.inference.answer import Answer
from ma2mba.inference.cache import find_entry, keep_entry
from ma2mba.inference.fingerprint import dtype_name, fingerprint
from ma2mba.inference.generate import Batch
from ma2mba.inference.reading import Report, read_video
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.session import Session
from ma2mba.inference.state_file import Facts, Said, Watched, load_state, save_state
from ma2mba.model.conversation import SYSTEM, USER, Encoded, encode_prompt
from ma2mba.model.plain_text import END, UnencodableText
from ma2mba.model.pretrained import load_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.errors import MediaError, file_state
from ma2mba.video.frames import WHOLE, FrameReader, Window

log = logging.getLogger(__name__)
ONE_A_SECOND = "1fps"


def parse_frames(text: str) -> int | None:
    """Return the number of frames to sample: None for "1fps", 8 for "8". Raise UserError for other text."""
    if text == ONE_A_SECOND:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--frames {text}: not a number of frames above 0. Use 1fps, or a number such as 8")
    return int(text)


class VideoChat:
    """A model, the videos that it has watched, and the conversation about them.

    `watched` and `turns` say what has been read. Memory does not grow with either.
    """

    def __init__(self, model: VideoMa2mba, tokenizer: Tokenizer):
        self._network = _Network(model, tokenizer)
        self._now = _Point(Session(model, tokenizer))
        self._after_video: _Point | None = self._now

    @classmethod
    def open(cls, model: Path | str, device: str = "auto", dtype: str = "auto") -> "VideoChat":
        """Load a model folder, or the latest checkpoint of a run folder.

        `device`: "auto" (a GPU if there is one), "cpu" or "cuda". `dtype`: "auto", "bf16" or "fp32" (`load_model`).
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(*load_model(model, device, dtype))

    @property
    def model(self) -> VideoMa2mba:
        return self._network.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self._network.tokenizer

    @property
    def watched(self) -> tuple[Watched, ...]:
        return self._now.watched

    @property
    def turns(self) -> tuple[Said, ...]:
        return self._now.turns

    def watch(
        self,
        video: Path | str,
        frames: str | int = ONE_A_SECOND,
        *,
        reader: FrameReader | None = None,
        report: Report = lambda _: None,
        cache: Path | str | None = None,
        hashed: bool = True,
        keep_partial: bool = False,
        window: Window = WHOLE,
    ) -> Watched:
        """Watch a video, after what was watched before. Return what is known of it.

        `frames`: "1fps", or the number of frames to sample. With `cache`, the state after a first video is kept in this
        folder, and found there the next time. `hashed=False` does not hash the file; the chat cannot be saved then.
        With `keep_partial`, watch a damaged video up to the damage; `partial` of the result says how far. `window`
        (without a hash or a cache): watch only these seconds, or a folder of pictures. Raise UserError if the video
        cannot be used; nothing is watched then.
        """
        video, count = Path(video), parse_frames(str(frames))
        if window != WHOLE and (hashed or cache):
            raise ValueError("a window of a video cannot be hashed or kept. Use hashed=False, without cache")
        before = file_state(video, folder=window.picture_rate is not None)
        content = xxh3_file(video) if hashed or cache else None
        name = video.name.encode(errors="backslashreplace").decode()
        seen = Watched(name=name, content=content, seconds=0, frames=0, sampling=str(frames))
        kept_in = Path(cache) if cache and self._now.session.states is None else None
        wanted = _Point(self._now.session, (seen,), open=True)
        found = find_entry(kept_in, self._facts(wanted), wanted.session) if kept_in else None
        if found:
            session, seen = found[0], found[1].watched[0].model_copy(update={"name": name})
        else:
            read = read_video(
                *self.before_video(), video, count, reader, report, keep_partial=keep_partial, window=window
            )
            if file_state(video, folder=window.picture_rate is not None) != before:
                raise MediaError(video, "changed while it was watched", "Watch it again")
            session, known = read.session, {"frames": read.frames, "seconds": read.seconds, "damage": read.damage}
            seen = seen.model_copy(update=known | {"partial": read.seconds if read.damage else None})
        log.debug("video: %s, %.1f s, %d frames sampled", video, seen.seconds, seen.frames)
        self._now = self._after_video = _Point(session, (*self.watched, seen), self.turns, open=True)
        if kept_in and not found and not seen.damage:
            keep_entry(kept_in, session, self._facts(self._now))
        return seen

    def ask(self, question: str, *, remember: bool = False, **options: Any) -> Answer:
        """Return the answer to a question. `options`: see `Sampling`.

        With `remember`, question and answer become part of the conversation, and the next question follows them.
        Otherwise the chat stays as it is. Raise UserError for an empty question and for options out of range.
        """
        return self.stream(question, remember=remember, **options).finish()[0]

    def ask_all(self, questions: Sequence[str], **options: Any) -> list[Answer]:
        """Return the answers to several questions, each as `ask` gives it. They are written together."""
        return Together([self] * len(questions), questions, Sampling(**options)).finish()

    def stream(self, question: str, *, remember: bool = False, **options: Any) -> "Together":
        """Return an iterator over (0, piece of the answer); its `answers[0]` grows, and says why it ended."""
        return self.begin(question, Sampling(**options), remember=remember)

    def begin(self, question: str, sampling: Sampling, *, remember: bool = False) -> "Together":
        """`stream`, with the options as an object."""
        return Together([self], [question], sampling, remember=remember)

    def said(self, question: str, answer: str) -> None:
        """Make a question and an answer that was given elsewhere part of the conversation.

        Raise UserError for a text that the tokenizer cannot encode.
        """
        session, encoded = self.asked(question), Encoded()
        try:
            encoded.add_text(self._network.tokenizer, answer)
        except UnencodableText as error:
            raise UserError(f"the answer {error}. Write it in other words") from error
        encoded.add_template(self._network.tokenizer, END)
        session.feed_text(encoded.token_ids)
        self._remember(session, question, Answer(text=answer))

    def forget(self) -> None:
        """Forget the conversation since the last video. Raise UserError if the state before it is not known."""
        if self._after_video is None:
            raise UserError(
                "the state file holds only the state after its conversation. Load one without a conversation"
            )
        self._now = self._after_video

    def fork(self) -> "VideoChat":
        """Return a second chat that continues from here. Neither changes the other. The model is shared."""
        other = object.__new__(VideoChat)
        other._network, other._now, other._after_video = self._network, self._now, self._after_video
        return other

    def save(self, path: Path | str) -> None:
        """Write a state file (`ma2mba.inference.state_file`): a chat that `load` continues."""
        if self._now.session.states is None:
            raise UserError("nothing has been watched or said. Watch a video first")
        if unhashed := [video.name for video in self.watched if not video.live and video.content is None]:
            raise UserError(f"{unhashed[0]}: was watched without its hash. Watch it with hashed=True to save the state")
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path}: is a folder. Name a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: exists, and is not a file. Name another file")
        save_state(path, self._now.session, self._facts(self._now))

    def load(self, path: Path | str) -> "VideoChat":
        """Return the chat of a state file, with the same model. Raise UserError as `load_state` does."""
        session, facts = load_state(Path(path), *self._network.parts, self._network.fingerprint)
        other = self.fork()
        other._now = _Point(session, facts.watched, facts.turns, open=facts.turn_open)
        other._after_video = None if facts.turns else other._now
        return other

    def before_video(self) -> tuple[Session, list[int]]:
        """Return the session after everything so far, and the tokens before the frames of a next video."""
        return self._now.session, self._opening()

    def after_video(self, session: Session, seen: Watched) -> "VideoChat":
        """Return a chat that continues this one by a video. `session` has read it after what `before_video` returns."""
        other = self.fork()
        other._now = other._after_video = _Point(session, (*self.watched, seen), self.turns, open=True)
        return other

    def _opening(self) -> list[int]:
        """Return the tokens before the next frame or question."""
        encoded = Encoded()
        if self._now.session.states is None:
            encoded.add_template(self._network.tokenizer, SYSTEM)
        if not self._now.open:
            encoded.add_template(self._network.tokenizer, USER)
        return encoded.token_ids

    def asked(self, question: str) -> Session:
        """Return a fork of the session that has read the question, up to where the answer starts."""
        encoded = encode_prompt(self._network.tokenizer, question, 1)
        session = self._now.session.fork()
        session.feed_text(self._opening() + encoded.token_ids[encoded.frame_positions[-1] :])
        return session

    def _remember(self, session: Session, question: str, answer: Answer) -> None:
        said = (Said(role="user", text=question), Said(role="assistant", text=answer.text))
        self._now = _Point(session, self.watched, (*self.turns, *said))

    def _facts(self, point: "_Point") -> Facts:
        return Facts(
            fingerprint=self._network.fingerprint,
            dtype=dtype_name(self._network.model),
            chunk_tokens=point.session.chunk_tokens,
            turn_open=point.open,
            watched=point.watched,
            turns=point.turns,
        )


class Together:
    """Questions, one for each chat, whose answers are written together. Iterate once, over (number, piece of text)."""

    def __init__(
        self, chats: Sequence[VideoChat], questions: Sequence[str], sampling: Sampling, *, remember: bool = False
    ):
        began = time.monotonic()
        self._chats, self._questions, self._kept = chats, questions, remember
        self._sessions = [chat.asked(question) for chat, question in zip(chats, questions, strict=True)]
        self._batch = Batch(self._sessions, sampling, began)
        self.answers = self._batch.answers

    def __iter__(self) -> Iterator[tuple[int, str]]:
        yield from self._batch.pieces(keep=self._kept)
        if self._kept:
            said = zip(self._sessions, self._questions, self.answers, strict=True)
            for chat, (session, question, answer) in zip(self._chats, said, strict=True):
                chat._remember(session, question, answer)

    def ended(self) -> Iterator[tuple[int, Answer]]:
        """Yield (number, answer) as soon as an answer has ended, instead of its pieces."""
        told: set[int] = set()
        for _ in itertools.chain(self, [None]):  # once more at the end: an empty answer has no piece
            for number, answer in enumerate(self.answers):
                if answer.reason and number not in told:
                    told.add(number)
                    yield number, answer

    def finish(self) -> list[Answer]:
        """Return the answers when all have ended."""
        for _ in self:
            pass
        return self.answers


@dataclass(frozen=True)
class _Point:
    """A place in a chat. The session is never fed, only forked. `open`: the user's turn has begun."""

    session: Session
    watched: tuple[Watched, ...] = ()
    turns: tuple[Said, ...] = ()
    open: bool = False


class _Network:
    """A model and its tokenizer, whose fingerprint is computed once."""

    def __init__(self, model: VideoMa2mba, tokenizer: Tokenizer):
        self.model, self.tokenizer = self.parts = model, tokenizer

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

"""Answer the requests of a foreign evaluation harness: media, then a text.

lmms-eval and VLMEvalKit hand over the same things under different names. This module knows neither of them.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import xxhash
from PIL import Image

from ma2mba.errors import UserError
from ma2mba.evaluation.likelihood import score_options
from ma2mba.inference.answer import Answer
from ma2mba.inference.chat import Together, VideoChat, parse_frames
from ma2mba.inference.sampling import Sampling
from ma2mba.model.conversation import encode_prompt
from ma2mba.model.plain_text import plain_text
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.frames import WHOLE, FrameReader, Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Medium:
    """A video or picture file, and the seconds of it that are watched."""

    path: Path
    window: Window = WHOLE


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: a text about media, which it watches first, in their order."""

    media: tuple[Medium, ...]
    text: str


Reply = Answer | UserError
"""An answer, or the reason why a prompt has none."""


class Responder:
    """Answers prompts. Prompts with the same media share the state after them; the last state is kept.

    `frames`: how each video is sampled (`VideoChat.watch`). `batch_size`: answers that are written together.
    """

    def __init__(self, empty: VideoChat, frames: str | int = "1fps", batch_size: int = 1):
        """`empty`: a chat that has not watched anything."""
        parse_frames(str(frames))
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not a whole number from 1")
        self.frames, self.batch_size = frames, batch_size
        self._empty, self._reader = empty, FrameReader()
        self._last: tuple[tuple[tuple[Medium, ...], str], VideoChat] | None = None

    @property
    def model(self) -> VideoMa2mba:
        return self._empty.model

    def close(self) -> None:
        """Stop the process that decodes."""
        self._reader.close()

    def chat_about(self, media: tuple[Medium, ...]) -> VideoChat:
        """Return a chat that has watched these media. Raise UserError if one of them cannot be used."""
        wanted = media, str(self.frames)
        if self._last is None or self._last[0] != wanted:
            chat = self._empty.fork()
            for medium in media:
                chat.watch(medium.path, self.frames, reader=self._reader, hashed=False, window=medium.window)
            self._last = wanted, chat
        return self._last[1].fork()

    def answer(
        self, prompts: Sequence[Prompt], sampling: Sampling, report: Callable[[int], None] = lambda _: None
    ) -> list[Reply]:
        """Return a reply to each prompt. `report` is called with how many prompts have got one since the last call.

        A medium that cannot be used costs its prompts, and a text that cannot be asked costs itself.
        """
        replies: dict[int, Reply] = {}
        ready = self._ready(prompts, replies)
        reported = 0
        while batch := list(islice(ready, self.batch_size)):
            numbers, chats = zip(*batch, strict=True)
            answers = Together(chats, [prompts[n].text for n in numbers], sampling).finish()
            replies.update(zip(numbers, answers, strict=True))
            report(len(replies) - reported)
            reported = len(replies)
        report(len(replies) - reported)
        return [replies[n] for n in range(len(prompts))]

    def score(self, prompt: Prompt, answer: str) -> tuple[float, bool]:
        """Return the log-probability of an answer, without the end of the turn, and if greedy decoding begins with it.

        Raise UserError for media that cannot be used, and for a text or an answer that cannot be encoded.
        """
        chat = self.chat_about(prompt.media)
        (score,) = score_options(chat, prompt.text, [answer])
        greedy = chat.ask(prompt.text, temperature=0.0, max_tokens=score.tokens).tokens
        return score.total, greedy == plain_text(chat.tokenizer).ids(answer)

    def _ready(self, prompts: Sequence[Prompt], replies: dict[int, Reply]) -> Iterable[tuple[int, VideoChat]]:
        """Yield the number of each prompt and the chat that answers it. Add the others to `replies`."""
        by_media: dict[tuple[Medium, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_media.setdefault(prompt.media, []).append(number)
        for media, numbers in by_media.items():
            try:
                chat = self.chat_about(media)
            except UserError as error:
                replies.update(dict.fromkeys(numbers, error))
                continue
            for number in numbers:
                try:
                    encode_prompt(chat.tokenizer, prompts[number].text, 1)
                except UserError as error:
                    replies[number] = error
                else:
                    yield number, chat


class Pictures:
    """Files of pictures that a harness holds in memory. They are deleted with this object."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ma2mba-pictures-")

    def path(self, picture: Image.Image) -> Path:
        """Return the path of a lossless file. Equal pictures share one."""
        rgb = picture.convert("RGB")
        digest = xxhash.xxh3_128_hexdigest(rgb.tobytes() + repr(rgb.size).encode())
        path = Path(self._folder.name) / f"{digest}.png"
        if not path.exists():
            rgb.save(path)
        return path


def local_file(name: str) -> Path:
    """Return the path of a file name or file: URL. Raise UserError for the URL of another scheme."""
    if "://" not in name:
        return Path(name)
    url = urlsplit(name)
    if url.scheme != "file":
        raise UserError(f"{name}: this medium is not a local file. Download it, and name the file")
    return Path(unquote(url.path))


def seconds_window(start: Any, stop: Any, where: str) -> Window:
    """Return the window of two numbers of seconds, or None. Raise UserError, which names `where`, for anything else."""
    for name, value in (("start", start), ("end", stop)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise UserError(f"{where}: {name} {value!r} is not a number of seconds from 0")
    if start is not None and stop is not None and start >= stop:
        raise UserError(f"{where}: start {start} is not below end {stop}")
    return Window(None if start is None else float(start), None if stop is None else float(stop))


NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "num_return_sequences": (None, 1),
    "skip_special_tokens": (None, True),
    "use_cache": (None, True, False),
    "image_aspect_ratio": (None, "original", "pad"),
}
"""Keys for other models -> the values that change nothing here. `image_aspect_ratio` is LLaVA's: frames are always
resized and cropped as CLIP does."""
NUMBERS = {"max_new_tokens": "max_tokens", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed"}
"""Our options that have a number, by the names of generation_kwargs."""


def sampling_of(options: Mapping[str, Any], defaults: Sampling) -> Sampling:
    """Return the options of generation_kwargs as ours. Raise UserError for a key or value that cannot be honoured.

    `do_sample` False is greedy, whatever the temperature. Without `do_sample`, a temperature above 0 samples.
    `defaults` gives seed, max_tokens and repetition_stop.
    """
    given = {key: value for key, value in options.items() if value is not None}
    found: dict[str, Any] = {"max_tokens": defaults.max_tokens, "seed": defaults.seed}
    for key, value in given.items():
        if key in NEUTRAL:
            if value not in NEUTRAL[key]:
                raise _unsupported(key, value)
        elif key in NUMBERS:
            found[NUMBERS[key]] = _number(key, value, whole=key not in ("top_p", "min_p"))
        elif key not in ("do_sample", "temperature", "until"):
            raise _unsupported(key, value)
    sampled, heat = given.get("do_sample"), given.get("temperature")
    if sampled not in (None, True, False):
        raise _unsupported("do_sample", sampled)
    heat = float(sampled or False) if heat is None else _number("temperature", heat)
    if sampled is False or heat == 0:
        heat = 0.0
        found = {key: value for key, value in found.items() if key in ("max_tokens", "seed")}
    stop = _strings("until", given.get("until", ()))
    return Sampling(temperature=heat, stop=stop, repetition_stop=defaults.repetition_stop, **found)


def _number(key: str, value: Any, *, whole: bool = False) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
        raise _unsupported(key, value)
    return int(value) if whole else float(value)


def _strings(key: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(string, str) for string in strings):
        raise _unsupported(key, value)
    return strings


def _unsupported(key: str, value: Any) -> UserError:
    return UserError(f"generation_kwargs: {key}: {value!r} is unsupported. Remove or change it in the task's YAML")

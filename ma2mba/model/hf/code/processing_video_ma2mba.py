"""The processor of a model folder: token ids and frames of conversations about videos, as `ma2mba ask` makes them.

`ma2mba export` copies this file, and what it imports of ma2mba, into the folder (`ma2mba/model/hf/bundle.py`). There it
needs transformers, torch, tokenizers, numpy, Pillow and av alone.

S tokens of a row, N frames.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from ma2mba.model.encoded import ASSISTANT, SYSTEM, USER, Encoded
from ma2mba.model.plain_text import END

from .video_processing_video_ma2mba import VideoMa2mbaVideoProcessor, VideoProcessorMixin, joined_frames, listed

log = logging.get_logger(__name__)
VIDEO = "<|video|>"
"""Stands for a video in a text. Its token stands for one visual token in `input_ids`."""
SYSTEM_START = "<|system|>"
SYSTEM_TEXT = SYSTEM.removeprefix(SYSTEM_START).removesuffix(END)
TEMPLATE = re.compile("|".join(map(re.escape, (SYSTEM, SYSTEM_START, USER, END + ASSISTANT, ASSISTANT, END, VIDEO))))
"""The pieces of the template in a text. What is between them is the text of a person."""
SOURCES = ("video", "path", "url", "image")
"""The keys of a content part that name its video."""
IGNORED = {"add_special_tokens", "do_sample_frames", "return_attention_mask", "return_mm_token_type_ids", "truncation"}
"""Options of other processors that change nothing here."""


class VideoMa2mbaProcessor(ProcessorMixin):
    """Turns conversations and videos into the input of VideoMa2mbaForConditionalGeneration."""

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        video_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_frame: int = 144,
        video_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        super().__init__(video_processor, tokenizer, chat_template=chat_template)
        self.tokens_per_frame, self.video_token = tokens_per_frame, VIDEO
        known = tokenizer.get_vocab().get(VIDEO)
        self.video_token_id = known if video_token_id is None else video_token_id
        self._plain: Tokenizer | None = None

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts. AutoVideoProcessor would do the same, but it demands torchvision."""
        trust = kwargs.pop("trust_remote_code", None)
        video_processor = VideoMa2mbaVideoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=trust, **kwargs)
        return [video_processor, tokenizer]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Return the class of a part. Without torchvision, transformers cannot find the class of video processors."""
        if argument_name == "video_processor" and isinstance(argument, VideoProcessorMixin):
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._plain = None  # transformers copies all attributes
        return super().to_dict(*args, **kwargs)

    @property
    def _tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer without truncation and padding, which transformers may have switched on."""
        if self._plain is None:
            self._plain = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
            self._plain.no_truncation()
            self._plain.no_padding()
        return self._plain

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values_videos"]

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Return `input_ids`, `attention_mask` and, with videos, `pixel_values_videos` (uint8, all frames of all rows).

        `text`: one text or several. Each `<|video|>` in them stands for the next video. A text that has none, with one
        video for each text, is a question: the template is put around it. In other texts `<|endoftext|>` and the other
        pieces of the template are control tokens; use `apply_chat_template` for text from other people.

        `num_frames`, `fps`: see the video processor. `padding` (default: True), `padding_side`, `max_length`,
        `return_tensors` (default: "pt"; None returns lists).
        """
        videos = kwargs.pop("video", None) if videos is None else videos  # the name in the pipeline of transformers 5.6
        if images is not None or audio is not None:
            raise ValueError("images, audio: this model reads videos and text. Give a picture as a video of one frame")
        if text is None and videos is None:
            raise ValueError("Give text, videos, or both")
        options = _options(kwargs)
        frames = self._frames(videos, options)
        if text is None:
            return BatchFeature(_stacked(frames))
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("text: give a string or a list of strings")
        if frames and not any(VIDEO in one for one in texts):
            if len(frames) != len(texts):
                raise ValueError(f"videos: {len(frames)} videos for {len(texts)} texts without {VIDEO}")
            asked = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": one}]}] for one in texts]
            rows = [self._conversation(one, iter([len(own)]), True) for one, own in zip(asked, frames, strict=True)]
        else:
            places = sum(one.count(VIDEO) for one in texts)
            if places != len(frames):
                raise ValueError(f"text: {VIDEO} stands {places} times in it, but there are {len(frames)} videos")
            counts = iter([len(own) for own in frames])
            rows = [self._text(one, counts) for one in texts]
        return self._batch(rows, frames, options)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: Any = "auto",
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the text of conversations; with `tokenize` their ids, and with `return_dict` what `__call__` returns.

        A message is `{"role": "system" | "user" | "assistant", "content": TEXT or PARTS}`, a part
        `{"type": "text", "text": TEXT}` or `{"type": "video", "path" | "url" | "video": VIDEO}`. The videos of a
        message come before its text, as in training. With `tokenize`, a text that spells a control token stays text, as
        it does for `ma2mba ask`; other options are those of `__call__`, here or in `processor_kwargs`. With
        `return_assistant_tokens_mask`, `assistant_masks` is 1 at the tokens of answers.
        """
        own = chat_template is None or chat_template == self.chat_template
        if not (tokenize and own):
            return super().apply_chat_template(
                conversation,
                chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                tokenize=tokenize,
                return_tensors=return_tensors,
                return_dict=return_dict,
                processor_kwargs=dict(processor_kwargs or {}),
                **kwargs,
            )
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message: the last answer is continued, so there is no generation prompt")
        given = {**kwargs, **(processor_kwargs or {})}
        if return_tensors != "auto":
            given["return_tensors"] = return_tensors
        options = _options(given)
        conversations = [conversation] if _is_conversation(conversation) else list(conversation)
        frames = self._frames([video for one in conversations for video in _videos(one)], options)
        counts = iter([len(own) for own in frames])
        rows = [self._conversation(one, counts, add_generation_prompt, continue_final_message) for one in conversations]
        found = self._batch(rows, frames, options, masks=return_assistant_tokens_mask)
        return found if return_dict else found["input_ids"]

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the texts of generated ids, which `pipeline("any-to-any")` asks for."""
        if generation_mode not in (None, "text"):
            raise ValueError(f"generation_mode: {generation_mode!r} is not supported. This model writes text")
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Return the texts of generated ids."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def _frames(self, videos: Any, options: Mapping[str, Any]) -> list[Tensor]:
        chosen = {name: options[name] for name in ("num_frames", "fps") if name in options}
        return [self.video_processor.frames(video, **chosen) for video in listed(videos)] if videos is not None else []

    def _text(self, text: str, counts: Iterator[int]) -> Encoded:
        """Encode a text that holds pieces of the template."""
        encoded, end = Encoded(), 0
        for found in TEMPLATE.finditer(text):
            encoded.add_text(self._tokenizer, text[end : found.start()])
            if found[0] == VIDEO:
                encoded.add_frames(next(counts))
            else:
                encoded.add_template(self._tokenizer, found[0])
            end = found.end()
        encoded.add_text(self._tokenizer, text[end:])
        return encoded

    def _conversation(
        self, messages: Sequence[Mapping[str, Any]], counts: Iterator[int], prompt: bool, unended: bool = False
    ) -> Encoded:
        """Encode a conversation as `ma2mba.model.conversation` does. With `unended`, the last answer has no end."""
        tokenizer, encoded = self._tokenizer, Encoded()
        turns, system = list(messages), SYSTEM_TEXT
        if turns and turns[0].get("role") == "system":
            system = _text_of(turns.pop(0))
        if system == SYSTEM_TEXT:
            encoded.add_template(tokenizer, SYSTEM)
        else:
            encoded.add_template(tokenizer, SYSTEM_START)
            encoded.add_text(tokenizer, system)
            encoded.add_template(tokenizer, END)
        _require_turns(turns, prompt, unended)
        for number, message in enumerate(turns):
            text, last = _text_of(message), number == len(turns) - 1
            if message["role"] == "user":
                encoded.add_template(tokenizer, USER)
                for _ in _videos([message]):
                    encoded.add_frames(next(counts))
                if not text.strip():
                    raise ValueError(f"message {number + 1}: the question is empty")
                encoded.add_text(tokenizer, text)
                encoded.add_template(tokenizer, END + ASSISTANT if prompt or not last else END)
            else:
                encoded.add_text(tokenizer, text, supervised=True)
                if not (last and unended):
                    encoded.add_template(tokenizer, END, supervised=True)
        return encoded

    def _row(self, encoded: Encoded) -> tuple[list[int], list[int]]:
        """Return the ids of a row with its visual tokens, and 1 where a token belongs to an answer."""
        ids, mask, end = list[int](), list[int](), 0
        for at in [*encoded.frame_positions, None]:
            ids += encoded.token_ids[end:at]
            mask += map(int, encoded.supervised[end:at])
            if at is not None:
                ids += [self.video_token_id] * self.tokens_per_frame
                mask += [0] * self.tokens_per_frame
                end = at
        return ids, mask

    def _batch(
        self, encoded: Iterable[Encoded], frames: list[Tensor], options: Mapping[str, Any], masks: bool = False
    ) -> BatchFeature:
        """Pad the rows, and add the frames of all of them."""
        rows = [self._row(one) for one in encoded]
        padding, most = options.get("padding", True), options.get("max_length")
        longest = max(len(ids) for ids, _ in rows)
        if most is not None and longest > most:
            raise ValueError(f"max_length: a row has {longest:,} tokens, more than {most:,}. Choose fewer frames")
        if padding == "max_length" and most is not None:
            longest = most
        step = options.get("pad_to_multiple_of") or 1
        longest = -(-longest // step) * step
        left = options.get("padding_side", self.tokenizer.padding_side) == "left"
        found: dict[str, Any] = {"input_ids": [], "attention_mask": []}
        for ids, mask in rows:
            missing = longest - len(ids) if padding not in (False, None, "do_not_pad") else 0
            parts = [("input_ids", ids, self.tokenizer.pad_token_id), ("attention_mask", [1] * len(ids), 0)]
            for name, values, fill in [*parts, ("assistant_masks", mask, 0)] if masks else parts:
                fills = [fill] * missing
                found.setdefault(name, []).append(fills + values if left else values + fills)
        kind = str(getattr(options.get("return_tensors", "pt"), "value", options.get("return_tensors", "pt")))
        if kind in ("pt", "np"):
            if len({len(ids) for ids in found["input_ids"]}) > 1:
                raise ValueError("padding: rows of different lengths are no tensor. Use padding=True")
            build = torch.tensor if kind == "pt" else np.array
            found = {name: build(values) for name, values in found.items()}
        pixels = _stacked(frames)
        return BatchFeature(found | ({name: one.numpy() for name, one in pixels.items()} if kind == "np" else pixels))


def _stacked(frames: list[Tensor]) -> dict[str, Tensor]:
    return {"pixel_values_videos": joined_frames(frames)} if frames else {}


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, which may stand in groups such as `videos_kwargs`."""
    options: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in ("text_kwargs", "videos_kwargs", "common_kwargs", "images_kwargs", "audio_kwargs"):
            options |= value or {}
        else:
            options[name] = value
    known = {"num_frames", "fps", "padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors"}
    if unknown := {name for name, value in options.items() if value is not None} - known - IGNORED:
        log.warning_once(f"{', '.join(sorted(unknown))}: not an option of this processor. It is ignored")
    return {name: value for name, value in options.items() if name in known}


def _is_conversation(value: Any) -> bool:
    return not value or isinstance(value[0], Mapping)


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content") or ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message. Raise ValueError for parts of an unknown type."""
    texts = []
    for part in _parts(message):
        if part.get("type") == "text":
            texts.append(part["text"])
        elif part.get("type") not in ("video", "image"):
            raise ValueError(f"a part of type {part.get('type')!r}. Use text and video")
    return "".join(texts)


def _videos(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the videos of a conversation in order. A picture is a video of one frame; None for a part without one."""
    found = []
    for message in messages:
        for part in _parts(message):
            if part.get("type") in ("video", "image"):
                named = [part[key] for key in SOURCES if part.get(key) is not None]
                video = named[0] if named else None
                found.append([video] if part["type"] == "image" and not isinstance(video, str) else video)
    return found


def _require_turns(turns: Sequence[Mapping[str, Any]], prompt: bool, unended: bool) -> None:
    """Raise ValueError unless users and assistant alternate, and the last turn fits what is asked for."""
    roles = [turn.get("role") for turn in turns]
    if not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        raise ValueError(f"the roles are {', '.join(map(str, roles)) or 'none'}. Alternate user, assistant")
    if prompt and roles[-1] != "user":
        raise ValueError("add_generation_prompt: the last message is an answer. Use continue_final_message")
    if unended and roles[-1] != "assistant":
        raise ValueError("continue_final_message: the last message is no answer")

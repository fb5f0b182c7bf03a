"""The files of a model folder that transformers reads beside config.json: tokenizer, processor, chat template."""

import json
from typing import Any

from tokenizers import Tokenizer

from ma2mba.model.config import ModelConfig
from ma2mba.model.encoded import ASSISTANT, SYSTEM, USER
from ma2mba.model.plain_text import END

VIDEO = "<|video|>"
"""Stands for a visual token. tokenizer.json does not know it; tokenizer_config.json adds it."""
PROCESSOR = "VideoMa2mbaProcessor"
VIDEO_PROCESSOR = "VideoMa2mbaVideoProcessor"
AUTO_PROCESSOR = {"AutoProcessor": f"processing_video_ma2mba.{PROCESSOR}"}
AUTO_VIDEO_PROCESSOR = {"AutoVideoProcessor": f"video_processing_video_ma2mba.{VIDEO_PROCESSOR}"}


def video_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of `<|video|>`: the first after all tokens, unless the tokenizer has this token already.

    It fills no gap between other ids: `generate` writes the ids below it.
    """
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get(VIDEO, max(vocabulary.values(), default=-1) + 1)


def processor_files(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the name and the text of the files that AutoProcessor, AutoTokenizer and `generate` read."""
    return {
        "tokenizer_config.json": _json(_tokenizer_config(tokenizer)),
        "processor_config.json": _json(_processor_config(config, tokenizer)),
        "video_preprocessor_config.json": _json(_video_processor_config(config) | {"processor_class": PROCESSOR}),
        "generation_config.json": _json(_generation_config(tokenizer)),
        "chat_template.jinja": chat_template(),
    }


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what transformers adds to tokenizer.json. Turns end with END, and END fills short rows at their left."""
    video = {"content": VIDEO, "special": True}
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "added_tokens_decoder": {str(video_token_id(tokenizer)): video | flags},
        "extra_special_tokens": {"video_token": VIDEO},
        "padding_side": "left",
        "model_max_length": 1 << 40,
        "clean_up_tokenization_spaces": False,
        "processor_class": PROCESSOR,
    }


def _video_processor_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "auto_map": AUTO_VIDEO_PROCESSOR,
        "video_processor_type": VIDEO_PROCESSOR,
        "size": {"height": config.image_size, "width": config.image_size},
        "fps": 1.0,
    }


def _processor_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "auto_map": AUTO_PROCESSOR,
        "processor_class": PROCESSOR,
        "tokens_per_frame": config.tokens_per_frame,
        "video_token_id": video_token_id(tokenizer),
        "video_processor": _video_processor_config(config),
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the defaults of `generate`: greedy, as `ma2mba ask`."""
    end = tokenizer.token_to_id(END)
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": False,
        "max_new_tokens": 256,
    }


def chat_template() -> str:
    """Return the Jinja template of a conversation, in the words of ma2mba/model/encoded.py."""
    return (
        TEMPLATE.replace("SYSTEM_START", json.dumps(SYSTEM.split("You", 1)[0]))
        .replace("SYSTEM", json.dumps(SYSTEM))
        .replace("USER", json.dumps(USER))
        .replace("ASSISTANT", json.dumps(ASSISTANT))
        .replace("VIDEO", json.dumps(VIDEO))
        .replace("END", json.dumps(END))
    )


TEMPLATE = """\
{%- macro text_of(message) -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}{{- SYSTEM -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- SYSTEM_START + text_of(message) + END -}}
    {%- elif message.role == 'user' -%}
        {{- USER -}}
        {%- if message.content is not string -%}
            {%- for part in message.content if part.type in ['video', 'image'] -%}{{- VIDEO -}}{%- endfor -%}
        {%- endif -%}
        {{- text_of(message) + END -}}
    {%- elif message.role == 'assistant' -%}
        {{- ASSISTANT -}}
        {%- generation -%}{{- text_of(message) + END -}}{%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('the role ' + message.role + ': use system, user or assistant') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT -}}{%- endif -%}
"""
"""The videos of a message come before its text, as in training."""

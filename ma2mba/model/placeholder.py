"""The token `<|video|>` that transformers adds to a tokenizer when it saves one. This package has no use for it."""

import json

from tokenizers import Tokenizer

from ma2mba.model.hf.files import VIDEO


def without_placeholder(tokenizer: Tokenizer, video_token_id: int | None) -> Tokenizer:
    """Return the tokenizer without the token that stands for a visual token, or the same one if it has none.

    A model never writes this token, and a text that spells it is text.
    """
    if video_token_id is None or tokenizer.id_to_token(video_token_id) != VIDEO:
        return tokenizer
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] != video_token_id]
    return Tokenizer.from_str(json.dumps(content))


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Return True if two tokenizers give the same ids, although one was saved again by transformers."""
    contents = [json.loads(tokenizer.to_str()) for tokenizer in (one, other)]
    parts = [[content[key] for key in ("model", "normalizer", "pre_tokenizer")] for content in contents]
    return one.get_vocab() == other.get_vocab() and parts[0] == parts[1]

"""A program that tries a foreign tokenizer.json, given on stdin, and prints what is wrong with it, if anything.

Started by `tokenizer_check`, alone in a process that may use only so much memory and time. Imports nothing of ma2mba.
"""

import json
import re
import resource
import sys
from typing import Any

from tokenizers import Tokenizer

SAMPLES = ("a", "A", "0", " ", "\n", "\t", ".", "-", "_", "'", "/", "é", "中", "\u0301", "😀", "ab", "a 1", "<|")
"""What probes repeat: a pattern that runs away does so on a long run of one kind of letter."""
END = "\x01"
"""What follows in a probe, so that a pattern for the run fails at its end."""
LENGTH, LONG = 2_000, 200_000
"""Letters of a probe of the whole tokenizer, and of its patterns."""
GROWTH, MULTIPLE, SPARE = 64, 4096, 1000
"""Most tokens for a byte and most bytes for a token; the largest product of what the parts may multiply; and tokens
that any text may get besides."""
FACTORS = {"NFKD": 3, "NFKC": 3, "NFD": 3, "BertNormalizer": 3, "Precompiled": 4, "ByteLevel": 2, "Metaspace": 3}
"""How many times longer a part of a tokenizer may make a text; other parts: not longer."""


def main() -> None:
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    print(json.dumps(fault(sys.stdin.buffer.read())))


def fault(content: bytes) -> str | None:
    """Return why the tokenizer must not be used, None if nothing speaks against it."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except BaseException as error:  # of Rust, which also panics
        return f"cannot be loaded ({error})"
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        found = _multiplies(tokenizer) or _odd_tokens(tokenizer)
        if not found:
            _run_patterns(tokenizer)
        return found
    except BaseException as error:
        return f"fails on plain text ({type(error).__name__}: {error})"


def _parts(component: Any) -> list[dict[str, Any]]:
    """Return the settings of each part of a normalizer, pre-tokenizer or decoder."""
    return _flat(json.loads(component.__getstate__())) if component is not None else []


def _flat(settings: dict[str, Any]) -> list[dict[str, Any]]:
    inner = settings.get("normalizers") or settings.get("pretokenizers") or settings.get("decoders")
    return [part for one in inner for part in _flat(one)] if inner else [settings]


def _multiplies(tokenizer: Tokenizer) -> str | None:
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        product = 1.0
        for part in _parts(getattr(tokenizer, name)):
            product *= _factor(part)
            if len(part.get("prepend") or "") > SPARE:
                return f"its {name} adds {len(part['prepend']):,} letters to every text"
        if product > MULTIPLE:
            return f"its {name} may make a text {product:.3g} times longer"
    return None


def _factor(part: dict[str, Any]) -> float:
    if part.get("type") != "Replace":
        return FACTORS.get(part.get("type", ""), 1)
    content, pattern = len(part["content"].encode()), part["pattern"]
    text = len(pattern.get("String", "").encode())
    return max(1.0, content / text) if text else 1.0 + content


def _odd_tokens(tokenizer: Tokenizer) -> str | None:
    """Encode and decode short probes, and compare what the tokenizer gives with what a text can have."""
    for sample in SAMPLES:
        text = sample * (LENGTH // len(sample)) + END
        ids = _ids(tokenizer, text)
        most = GROWTH * len(text.encode()) + SPARE
        if len(ids) > most:
            return f"it makes {len(ids):,} tokens of {len(text):,} letters"
        if ids != _ids(tokenizer, text):
            return "it gives the same text other tokens each time (dropout)"
        if len(tokenizer.decode(ids, skip_special_tokens=False).encode()) > most + GROWTH * len(ids):
            return f"its decoder makes more than {most:,} bytes of {len(ids):,} tokens"
    text = "The answer, in 2 words: well - done."
    ids = _ids(tokenizer, text)
    tokenizer.post_processor = None
    return None if _ids(tokenizer, text) == ids else "its post_processor changes the tokens of a text"


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a text; none where the tokenizer has no token for a letter, which is no panic."""
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception:
        return []


def _run_patterns(tokenizer: Tokenizer) -> None:
    """Run the tokenizer's own patterns on long probes. One that runs away does not return: the limits end it."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    found = [part.get("pattern", {}) for part in (*_parts(normalizer), *_parts(splitter))]
    patterns = [pattern["Regex"] for pattern in found if "Regex" in pattern]
    words = [word[:20] for pattern in patterns for word in re.findall(r"[^\W_]+", pattern)]
    letters = "".join(dict.fromkeys("".join(patterns)))[:1000]  # a search ends early where a letter is missing
    for sample in dict.fromkeys((*SAMPLES, *words[:20])) if patterns else ():
        text = sample * (LONG // len(sample)) + END + letters
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        if splitter is not None:
            splitter.pre_tokenize_str(text)


if __name__ == "__main__":
    main()

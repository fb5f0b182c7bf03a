"""A tokenizer.json from a stranger: it is tried in a process of its own, and never hangs, multiplies or panics here."""

import json
import os
import time

import pytest
from tokenizers import Tokenizer

from data_prep.toy.words import build_tokenizer
from ma2mba.errors import UserError
from ma2mba.model import tokenizer_check
from ma2mba.model.conversation import END, encode_prompt, load_tokenizer
from ma2mba.model.tokenizer_check import CHECKED
from tests import forked

LETTERS = {END: 0, **{chr(code): code for code in range(32, 127)}}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": LETTERS, "merges": []}
TOKEN = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BASE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [TOKEN | {"special": True}],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": BPE,
}


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


def sequence(*normalizers):
    return {"normalizer": {"type": "Sequence", "normalizers": list(normalizers)}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
ATTACKS = {
    "exponential": (split("(a+)+$"), "fails on plain text"),
    "exponential words": (split("(foo|foo)+$"), "fails on plain text"),
    "back reference": (split(r"(a*)*\1b"), "fails on plain text"),
    "exponential normalizer": (sequence(replace("x", Regex="(a|a)*$")), "fails on plain text"),
    "doubling": (sequence(*[replace("aa", String="a")] * 30), "times longer"),
    "doubling of a rare letter": (sequence(*[replace("ΩΩ", String="Ω")] * 14), "times longer"),
    "nested doubling": (sequence(*[sequence(*[replace("ΩΩ", String="Ω")] * 7)["normalizer"]] * 2), "times longer"),
    "multiplying": (sequence(replace("a" * 1_000_000, String="a")), "times longer"),
    "multiplying by a pattern": (sequence(replace("x" * 3000, Regex=r"\w")), "MB for short text"),
    "multiplying nothing": (sequence(replace("a" * 1000, Regex="")), "tokens of"),
    "prepending": ({"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}}, "adds 1,000,000 letters"),
    "bytes of bytes": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 28}}, "times longer"),
    "template": ({"post_processor": TEMPLATE}, "tokens of"),
    "small template": ({"post_processor": TEMPLATE | {"single": TEMPLATE["single"][:2]}}, "post_processor changes"),
    "dropout": ({"model": BPE | {"dropout": 0.5, "vocab": LETTERS | {"ab": 200}, "merges": ["a b"]}}, "dropout"),
    "precompiled": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}}, "fails on"),
    "decoder": ({"decoder": {"type": "Sequence", "decoders": [replace("aa", String="a")] * 30}}, "times longer"),
    "strip": ({"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}}, "fails on plain text"),
    "no regular expression": (split("("), "cannot be loaded"),
    "no such letter": ({"model": {"type": "Unigram", "unk_id": 5, "vocab": [[END, 0.0]]}}, "cannot be loaded"),
}
FILES = {
    "empty": b"",
    "cut off": json.dumps(BASE).encode()[:300],
    "deep": b"[" * 1_000_000,
    "deep normalizer": json.dumps(BASE | sequence()).replace("[]", "[" * 5000 + "]" * 5000).encode(),
    "bytes": b"\xff\xfe\0",
    "null": b"null",
}


def write(folder, changes):
    path = folder / "tokenizer.json"
    path.write_bytes(changes if isinstance(changes, bytes) else json.dumps(BASE | changes).encode())
    return path


@pytest.mark.parametrize("name", [*ATTACKS, *FILES])
def test_it_is_refused_in_one_line(tmp_path, name):
    changes, reason = ATTACKS.get(name) or (FILES[name], "cannot be loaded")
    path = write(tmp_path, changes)

    def load():
        with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json to use") as refused:
            load_tokenizer(path)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1000

    outcome = forked.call(load, limit_s=120)
    assert outcome.code == 0, outcome.err
    assert "panicked" not in outcome.err
    assert outcome.peak_mb < 1000


@pytest.mark.parametrize("pattern", ["a*b", r"\s*x", r"(?:\p{L}*[^\p{L}\x00-\x7f])"])
def test_a_slow_pattern_is_ended(tmp_path, monkeypatch, pattern):
    """On 200,000 letters each of them takes minutes: too slow for training text, and no error of its library."""
    monkeypatch.setattr(tokenizer_check, "CPU_SECONDS", 2)
    with pytest.raises(UserError, match="does not end within 2 s on short text"):
        load_tokenizer(write(tmp_path, split(pattern)))


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}},
        {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 10**9, "pad_id": 0}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
    ],
)
def test_padding_and_truncation_are_switched_off(tmp_path, changes):
    for part in changes.values():
        part |= {"pad_type_id": 0, "pad_token": "a"} if "pad_id" in part else {}
    assert load_tokenizer(write(tmp_path, changes)).encode("abc", add_special_tokens=False).ids == [97, 98, 99]


GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
XLNET = sequence(
    replace('"', String="``"),
    {"type": "NFKD"},
    {"type": "StripAccents"},
    {"type": "Lowercase"},
    replace(" ", Regex=" {2,}"),
)
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
WORD_PIECE = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
ARABIC = [replace(to, String=letter) for letter, to in zip("ﻻآأإىةؤئ", ["لا", *"ااايهوي"], strict=True)]
HEALTHY = {
    "letters": {},
    "GPT-4o": split(GPT4O),
    "Llama 3": split(LLAMA3),
    "DeepSeek": split(DEEPSEEK),
    "CLIP": split(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+") | sequence(replace(" ", Regex=r"\s+")),
    "Llama 2": sequence({"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")),
    "T5": sequence(replace("▁", Regex=" {2,}")) | {"pre_tokenizer": METASPACE, "decoder": METASPACE},
    "XLNet": XLNET,
    "Arabic": sequence(*ARABIC * 2),
    "BERT": {
        "normalizer": BERT,
        "model": WORD_PIECE | {"max_input_chars_per_word": 100, "vocab": LETTERS | {"[UNK]": 1}},
    },
    "words": {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {END: 0, "[UNK]": 1}}},
    "template": {
        "post_processor": TEMPLATE
        | {
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}],
            "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
        }
    },
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_tokenizer_is_loaded_as_it_is(tmp_path, name):
    path = write(tmp_path, HEALTHY[name])
    text = "Hello, world! It's 12:30"
    loaded, itself = load_tokenizer(path), Tokenizer.from_file(str(path))
    assert loaded.encode(text, add_special_tokens=False).ids == itself.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_fails_on_the_template_is_refused(tmp_path):
    path = write(tmp_path, {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {END: 0, "a": 1}}})
    with pytest.raises(UserError, match="the text of the system's turn makes the tokenizer fail"):
        load_tokenizer(path)


@pytest.mark.parametrize("changes", [split("(Z+)+$"), {"model": BPE | {"unk_token": "none"}}])
def test_text_that_makes_the_tokenizer_fail_is_named(tmp_path, monkeypatch, changes):
    """A trial cannot know every text: here it is left out, and Rust panics, or raises, in this process."""
    monkeypatch.setattr(tokenizer_check, "_try", lambda content: None)
    tokenizer = load_tokenizer(write(tmp_path, changes))
    with pytest.raises(UserError, match="the question makes the tokenizer fail"):
        encode_prompt(tokenizer, "Z" * 40 + " Ω b", 1)


def test_a_tokenizer_is_tried_once_here_and_in_children(tmp_path, monkeypatch):
    monkeypatch.delenv(CHECKED, raising=False)
    path = tmp_path / "tokenizer.json"
    build_tokenizer().save(str(path))
    load_tokenizer(path)
    monkeypatch.setattr(tokenizer_check, "_try", lambda content: "tried again")
    load_tokenizer(path)
    outcome = forked.call(lambda: load_tokenizer(path))
    assert outcome.code == 0, outcome.err
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="tried again"):
        load_tokenizer(path)


def test_the_trial_of_the_published_tokenizer_is_quick(shared, monkeypatch):
    monkeypatch.delenv(CHECKED, raising=False)
    path = shared / "gpt-neox-tokenizer/20B_tokenizer.json"
    before = os.times()
    began = time.monotonic()
    load_tokenizer(path)
    spent = os.times()
    assert spent.children_user + spent.children_system - before.children_user - before.children_system < 0.5
    assert time.monotonic() - began < 10


def test_a_large_file_names_the_limit(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, 10**12)
    with pytest.raises(UserError, match=r"larger than 64 MB\. Set MA2MBA_LIMIT_TEXT_MB"):
        load_tokenizer(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"no such tokenizer file|not a regular file"):
        load_tokenizer(path)

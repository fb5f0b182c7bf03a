"""The words of an answer in a form that makes equal what a person reads as equal: "the T-shirt." and "t shirt"."""

import re
import unicodedata

Words = tuple[str, ...]
LONGEST = 10_000
"""Characters of an answer that are read: half of them at its start, half at its end."""

_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("“”„«»「」『』", '"'),
        **dict.fromkeys("‘’‚`´", "'"),
        **dict.fromkeys("\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}", "-"),
        **dict.fromkeys("–—", " - "),
        **dict(zip("【】〔〕。、⁄", "[][].,/", strict=True)),
    }
)
_CONTROL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<eos>|<pad>|<end_of_turn>")
"""The control tokens of language models, spelled out."""
_THINKING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z]\w*>")
_TOKEN = re.compile(
    r"""(?P<ordinal>\d+(?:st|nd|rd|th)\b)
    |(?P<number>(?:(?<![\w)\]%°.])-)?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w|,\d)|\d+\.\d+|\d+|(?<!\w)\.\d+))
    |(?P<article>(?<!\w)(?:an?|the)(?=\s+["'(]*[\w$£€¥]))
    |(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*)
    |(?P<between>(?<=\d)[-:/.](?=\d)|(?<=\d)\s+[-/:]\s+(?=\d))
    |(?P<sign>[%$£€¥°<>=+#@^~≤≥≠×÷√π&])""",
    re.VERBOSE,
)
_MONEY = frozenset("$£€¥")
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_SPELLED = {
    **{name: str(number) for number, name in enumerate(_SMALL)},
    **dict(zip(("first", "second", "third", "fourth", "fifth"), ("1st", "2nd", "3rd", "4th", "5th"), strict=True)),
    **dict(zip(("sixth", "seventh", "eighth", "ninth", "tenth"), ("6th", "7th", "8th", "9th", "10th"), strict=True)),
}


def plain(text: str) -> str:
    """Return an answer without control tokens, thoughts, tags and Markdown, and with ASCII punctuation."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} {text[-LONGEST // 2 :]}"
    text = _THINKING.sub(" ", text)
    text = next((piece for piece in _CONTROL.split(text) if piece.strip()), "")
    text = unicodedata.normalize("NFKC", text).translate(_PUNCTUATION)
    text = _TAG.sub(" ", text)
    for command in (r"\\(?:text|mathrm|mathbf)", r"\\boxed"):
        text = re.sub(command + r"\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\$\s*([A-Za-z])\s*\$", r"\1", text)
    return re.sub(r"\*\*|__|^[ \t]*(?:#+|[-*•])[ \t]+|(?<!\w)[*_](?=\w)|(?<=[\w.)])[*_](?!\w)", "", text, flags=re.M)


def words(text: str) -> Words:
    """Return the words, numbers and signs of a text, in lower case.

    Numbers have one form ("3.0", "three" and "3" are equal), a currency follows its number, and an article before
    another word is left out. Punctuation between words is left out; a sign that changes a value stays.
    """
    lower = unicodedata.normalize("NFC", plain(text).lower())
    found = [_one_form(match) for match in _TOKEN.finditer(lower) if match.lastgroup != "article"]
    for i in range(len(found) - 1):
        if found[i] in _MONEY and found[i + 1][-1].isdigit():
            found[i], found[i + 1] = found[i + 1], found[i]
    return tuple(found)


def _one_form(match: re.Match[str]) -> str:
    text = match[0].strip()
    if match.lastgroup == "number":
        whole, _, fraction = text.removeprefix("-").replace(",", "").partition(".")
        digits = (whole.lstrip("0") or "0") + f".{fraction}".rstrip("0").rstrip(".")
        return f"-{digits}" if text[0] == "-" and digits != "0" else digits
    return _SPELLED.get(text, text)


def places_of(part: Words, whole: Words) -> list[int]:
    """Return where `part` begins in `whole`."""
    return [i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part] if part else []

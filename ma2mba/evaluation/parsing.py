"""Find the option that an answer chooses, and judge an answer to an open question.

An answer that chooses no option, or two, is wrong: it is never replaced by a guess.
"""

import re
import string
from collections.abc import Sequence

from ma2mba.evaluation.words import Words, places_of, plain, words

_NEAR = 40
"""How many characters beside a letter are looked at."""
_CHOSEN = re.compile(
    r"""(?:\b(?:(?:answer|option|choice|alternative|letter)(?:\s+(?:here|to\s+(?:the|this)\s+question))?
            \s*(?:\bis\b|\bare\b|\bwould\s+be\b|\bshould\s+be\b|\bmust\s+be\b|:|=|->|-(?=\s))?
          |(?:i|we|i'll|i'd|would)\s+(?:would\s+|will\s+|\bhave\s+to\s+)?(?:choose|pick|select|say|go\s+with|answer))
        |答案\s*(?:是|为|為|应该是|選|选)?|(?:我)?(?:选择|選擇|选|選)(?:项|項)?|正解は|答えは|정답은?)
        \s*(?P<before>not\b|n't\b|不是)?\s*[:=]?\s*(?:option|choice|letter|选项)?\s*[\s("'\[{:]*
        (?P<letter>[A-Za-z])(?=[)\]}"'.,;:!?]|\s|$|[^\x00-\x7F])""",
    re.VERBOSE | re.IGNORECASE,
)
"""Words that announce the choice, and the letter after them."""
_OPTION = re.compile(r"(?:option|choice|alternative|letter)\W*[A-Z]", re.IGNORECASE)
"""An announcement that may also be a mere mention: "option B"."""
_LINE = re.compile(
    r"""^[^\w\n+#]*(?P<letter>[A-Z])
        (?:[)\]}]+["'.:,]*(?=\W|\w\w|$)|["']+[.:,]?(?=\s|$)|\s*[.:](?=\s|$|["'(]|[^\W\d_]{2})|,(?=\s)|\s+-(?=\s)|\s+\((?=\w)|\s*$|(?=[^\x00-\x7F]))""",
    re.VERBOSE | re.MULTILINE,
)
"""A letter at the start of a line, set off from what follows: "B.", "(B) training", "B: training", "B" alone."""
_LOWER = re.compile(r"""^[\s"'(\[{]*(?P<letter>[a-z])(?:[)\]}"']+[.:,]?|[.:]|[,;!?](?=\s*$))?(?:\s*$|\s+(?=\S))""")
"""The same in lower case, at the start of the answer only, and with a sign: "b", "b) training"."""
_ENCLOSED = re.compile(r"[(\[](?P<letter>[A-Z])[)\]]")
_ALONE = re.compile(
    r"""(?P<before>\w+(?:'\w+)?)?[\s"',:]*(?<![\w'.+/-])(?P<letter>[A-Z])(?![\w'+#&/-]|\.[A-Za-z])
        (?=(?P<after>\s+\w+|,\s*\w+)?)""",
    re.VERBOSE,
)
"""A capital letter that stands alone, and the words beside it."""
_LEADS = frozenset(
    (
        "but",
        "is",
        "be",
        "its",
        "it's",
        "so",
        "say",
        "think",
        "guess",
        "believe",
        "choose",
        "pick",
        "select",
        "with",
        "for",
    )
    + (
        "option",
        "answer",
        "choice",
        "letter",
        "therefore",
        "thus",
        "hence",
        "probably",
        "maybe",
        "likely",
        "definitely",
    )
)
"""Words before a bare letter that names an option. "Plan B" and "vitamin C" name none."""
_AFTER_A = frozenset(("is", "because", "since", "as", "seems", "was", "would", "it", "i", "due", "for"))
"""Words after an "A" that is the letter, not the article, or an "I" that is the letter."""
_JOINED = re.compile(
    r"""^[)\]}"'.:]*(?:\s*(?:,|;|/|&|\+|\bor\b|\band\b|或|和)\s*(?:option\s+)?["'(\[{]*[A-Za-z]
        |\s+["'(\[{]*(?-i:[A-Z]))(?![\w'+#&-]|\.\w|\s*\w{2})""",
    re.IGNORECASE | re.VERBOSE,
)
"""What follows a letter if a second letter is named beside it: "B or C"."""
_DENIED = re.compile(r"\s+(?:(?:is|was)\s+(?:not|wrong|incorrect|false)|isn't|wasn't)\b", re.IGNORECASE)
"""What follows a letter that is not chosen: "A is wrong"."""
_PLACE = re.compile(
    r"\b(first|second|third|fourth|fifth)\s+(?:option|choice|answer)\b|\boption\s+#?(\d)\b", re.IGNORECASE
)
"""An option named by its place: "the second option", "option 2"."""
_LEAD_IN = re.compile(
    r"""^\W*(?:(?:so|well|okay|ok|therefore|thus)\s*,?\s+)?
        (?:i\s+(?:think|believe|guess)\s+(?:that\s+)?)?
        (?:(?:the\s+)?(?:(?:correct|best|right|final|most\s+likely)\s+)?(?:answer|option|choice)\s*(?:is\b|:)\s*
          |(?:it\s+is|it's|this\s+is|that\s+is|that's|there\s+is|there's|there\s+are)\s+)""",
    re.VERBOSE | re.IGNORECASE,
)
"""Words before the answer itself: "I think it is"."""
_LETTERED = re.compile(r"^\s*[(\[]?([A-Z])(?:[)\]][.:]?|[.:])\s*(?=\S)")
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|\n|\bbecause\b", re.IGNORECASE)
_SUBJECTS = frozenset(("he", "she", "it", "they", "there", "i", "we", "you", "this", "that", "these", "those"))
_NEGATED = frozenset(("not", "never", "isn't", "wasn't", "aren't", "neither", "nor"))


def parse_choice(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer chooses, or None if it chooses none or several.

    `options` are the texts without letters. The answer may be a letter in any dress ("(B)", "Answer: b", "**B**."), a
    letter with its text ("B. training."), or the text of an option.
    """
    text, letters = plain(answer), string.ascii_uppercase[: len(options)]
    texts = [words(option) for option in options]
    if not _is_letter(text) and (same := [i for i, option in enumerate(texts) if option and option == words(text)]):
        return letters[same[0]]
    for find in (_announced, _leading):
        found, certain = find(text, letters)
        if certain:
            return found
    if same := [i for i, option in enumerate(texts) if option and option == _core(text)]:
        return letters[same[0]]
    named = _named(words(text), texts)
    if len(named) == 1:
        return letters[named.pop()]
    return None if named else _bare(text, letters) or _placed(text, letters)


def judge(answer: str, gold: str, options: Sequence[str] = ()) -> bool:
    """Return True if a person would call the answer right.

    With options, `gold` is the right one's letter, its text, or both ("B. training."), and the answer is what
    `parse_choice` finds. Without, the answer must have the words of `gold`, before any explanation.
    """
    if options:
        right = find_gold(gold, options)
        return right is not None and parse_choice(answer, options) == string.ascii_uppercase[right]
    wanted, text = words(gold), plain(answer)
    if not wanted:
        return text.strip() == plain(gold).strip()
    if wanted in (words(text), words(_first_line(text)), _core(text)):
        return True
    if lettered := _LETTERED.match(plain(gold)):
        return _letter(text) == lettered[1] or _core(text) == words(_LETTERED.sub("", plain(gold)))
    if _is_letter(plain(gold)):
        return _letter(text) == plain(gold).strip(string.punctuation + string.whitespace).upper()
    return wanted in (("yes",), ("no",)) and _yes_or_no(text) == wanted


def find_gold(gold: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that `gold` names: its text, its letter or both. None if it names none."""
    if gold in options:
        return options.index(gold)
    found = parse_choice(gold, options)
    return string.ascii_uppercase.index(found) if found else None


def _yes_or_no(text: str) -> Words:
    """Return the word before a comma or a clause: "Yes, he does", "No he does not"."""
    first, *following = words(re.split(r"[,.;:!\n]", text.strip())[0]) or ("",)
    return (first,) if not following or following[0] in _SUBJECTS else ()


def _core(text: str) -> Words:
    """Return the words of the first sentence, without a lead-in ("The answer is") and without the option's letter."""
    text = _LEAD_IN.sub("", text.strip())
    text = _LETTERED.sub("", text)
    return words(_first_sentence(text))


def _first_sentence(text: str) -> str:
    return next((piece for piece in _SENTENCE.split(text) if words(piece)), "")


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if words(line)), "")


def _is_letter(text: str) -> bool:
    return len(text.strip(string.punctuation + string.whitespace)) == 1 and len(words(text)) == 1


def _letter(text: str) -> str | None:
    """Return the letter that an answer to an unknown list of options names."""
    for find in (_announced, _leading):
        found, certain = find(text, string.ascii_uppercase)
        if certain:
            return found
    return _bare(text, string.ascii_uppercase)


def _announced(text: str, letters: str) -> tuple[str | None, bool]:
    """Return the letter that is announced, and True if one is: the last one after "the answer is".

    Without such words, an "option B" counts, unless there is an "option C" too.
    """
    chosen: list[str | None] = []
    mentioned = set[str | None]()
    beside = 0  # where the second letter of "option A or option B" ends
    for match in _CHOSEN.finditer(text):
        letter, after = match["letter"].upper(), text[match.end() : match.end() + _NEAR]
        denied, joined = match["before"] or _DENIED.match(after), _JOINED.match(after)
        option = _OPTION.fullmatch(match[0]) and match["letter"].isupper()
        word = not joined and not option and _is_word(match["letter"], after)
        if match.end() <= beside or denied or word or letter not in letters:
            continue
        (mentioned.add if option else chosen.append)(None if joined else letter)
        beside = match.end() + joined.end() if joined else 0
    if chosen:
        return chosen[-1], True
    return (mentioned.pop() if len(mentioned) == 1 else None, True) if mentioned else (None, False)


def _leading(text: str, letters: str) -> tuple[str | None, bool]:
    """Return the letter that the answer starts with. Lines that start with different letters choose nothing."""
    starts = [match for match in _LINE.finditer(text) if match["letter"] in letters]
    if len({match["letter"] for match in starts}) > 1:
        return None, True
    if starts and not text[: starts[0].start()].strip():
        inside = {match["letter"] for match in _ENCLOSED.finditer(text)}
        if _JOINED.match(text[starts[0].end("letter") :][:_NEAR]) or len(inside) > 1:
            return None, True
        return starts[0]["letter"], True
    lower = _LOWER.match(text)
    if lower and lower["letter"].upper() in letters:
        dressed = lower[0].strip().strip("\"'") != lower["letter"]
        if dressed or not text[lower.end() :].strip():
            return lower["letter"].upper(), True
    return None, False


def _placed(text: str, letters: str) -> str | None:
    """Return the letter of the one option that is named by its place."""
    ordinals = ("first", "second", "third", "fourth", "fifth")
    named = {ordinals.index(m[1].lower()) if m[1] else int(m[2]) - 1 for m in _PLACE.finditer(text)}
    place = named.pop() if len(named) == 1 else -1
    return letters[place] if 0 <= place < len(letters) else None


def _is_word(letter: str, after: str) -> bool:
    """Return True if a letter is the article "a", the pronoun "I", or a lower-case letter within a sentence."""
    following = re.match(r"\s+([\w']+)", after)
    if not following:
        return False
    return following[1].lower() not in _AFTER_A if letter in "AI" or letter.islower() else False


def _named(found: Words, texts: Sequence[Words]) -> set[int]:
    """Return the options whose text the answer contains, but not as a part of another option's text, nor denied."""
    spans = [
        (at, at + len(text), i)
        for i, text in enumerate(texts)
        for at in places_of(text, found)
        if not _NEGATED & {*found[max(0, at - 2) : at]} and (at == 0 or text not in (("yes",), ("no",)))
    ]
    return {
        i for start, end, i in spans if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }


def _bare(text: str, letters: str) -> str | None:
    """Return the one capital letter that stands alone where a sentence names an option."""
    found = {match["letter"] for match in _ENCLOSED.finditer(text)}
    for match in _ALONE.finditer(text):
        before, after = (match["before"] or "").lower(), (match["after"] or "")
        first = not before and text[: match.start("letter")][-_NEAR:].rstrip(" \"'(\n")[-1:] in ("", ".", "!", "?")
        if not (first or before in _LEADS or (before in ("or", "and") and found)):
            continue
        if _JOINED.match(text[match.end("letter") :][:_NEAR]):
            return None
        if _is_word(match["letter"], after) or _DENIED.match(text[match.end("letter") :][:_NEAR]):
            continue
        found.add(match["letter"])
    found &= {*letters}
    return found.pop() if len(found) == 1 else None

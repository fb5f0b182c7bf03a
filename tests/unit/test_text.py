"""YAML and JSON from others: a value, or one line that says what is wrong."""

import pytest

from ma2mba.errors import UserError
from ma2mba.text import parse_json, parse_yaml, read_json, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "bomb": (LAUGHS, "aliases"),
    "loop": ("a: &a [*a]", "contains itself"),
    "twice": ("a: 1\nb: {c: 1, c: 2}", "line 2: the key c is given twice"),
    "date": ("run: 2026-02-30", "day is out of range"),
    "digits": ("seed: " + "9" * 5000, "digits"),
    "deep": ("[" * 5000, "too deeply"),
    "tag": ("!!python/object/apply:os.system [id]", "constructor"),
    "bool": ("!!bool x", "does not fit its tag"),
    "stamp": ("!!timestamp x", "does not fit its tag"),
    "zero": ("a: \0", "character"),
    "bytes": (b"\xff\xfe\xff", "unacceptable"),
    "open": ("a: [", "expected"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml_is_one_line(name):
    text, reason = BAD_YAML[name]
    with pytest.raises(ValueError, match=reason) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)


def test_aliases_and_merges_of_ordinary_size_are_read():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "too deeply"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("9" * 5000, "digits"),
        ("{", "property name"),
        (b'"\xff"', "decode"),
    ],
)
def test_bad_json_is_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as error:
        parse_json(text)
    assert "\n" not in str(error.value)


def test_a_file_is_named_with_its_fault(tmp_path):
    (tmp_path / "a").write_text("a: [")
    for read in (read_yaml, read_json):
        with pytest.raises(UserError, match=rf"^{tmp_path}/a: not (YAML|JSON) \(.*\)\. \w"):
            read(tmp_path / "a")
        with pytest.raises(UserError, match="larger than 3 bytes"):
            read(tmp_path / "a", 3)

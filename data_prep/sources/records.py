"""Files of records (JSON, JSON lines, CSV), fields that must be there, and media files by name."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject
from ma2mba.errors import UserError
from ma2mba.files import reading

Files = list[tuple[str, Path]]
"""Annotation files: the name in the recipe, the path."""
Records = Iterator[tuple[str, Any]]
"""Where a record stands in its file, and what it is: a RecordError where it cannot be read."""
VIDEO_SUFFIX = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm|wmv)", re.IGNORECASE)
"""Of what may be meant by a name without suffix: not of a sidecar (.json, .vtt, .jpg)."""
_BLANK = re.compile(r"[ \t\r\n]*")
_ID_KEYS = ("id", "question_id", "videoid", "qid")
_MEDIA_KEYS = ("video", "image", "video_name", "videoid", "url")


def each(records_of: Callable[[Path], Records], read_record: Callable[[Any, Path, str], Clip]):
    """A reader of files in which every record stands for itself: (files, media folder) -> clips and rejects."""

    def read(files: Files, media: Path) -> Iterator[Clip | Reject]:
        for name, path in files:
            for where, record in records_of(path):
                yield attempt(read_record, record, media, f"{name} {where}")

    return read


def attempt(read_record: Callable[[Any, Path, str], Clip], record: Any, media: Path, where: str) -> Clip | Reject:
    """The record's clip, or why there is none."""
    try:
        if isinstance(record, RecordError):
            raise record
        return read_record(record, media, where)
    except RecordError as error:
        return malformed(record, where, str(error))


def malformed(record: Any, where: str, reason: str) -> Reject:
    """A reject that names the record and its medium as far as they can be known."""
    fields = record if isinstance(record, dict) else {}

    def first(keys: tuple[str, ...]) -> str:
        return next((str(fields[key]) for key in keys if fields.get(key)), "")

    return Reject(first(_ID_KEYS), first(_MEDIA_KEYS), where, f"malformed record: {reason}")


def writable(item: Clip | Reject) -> Clip | Reject:
    r"""The item if UTF-8 can hold its texts; a clip with half a character ("\ud83d" alone) is rejected by its name."""
    if isinstance(item, Clip):
        texts = [item.sample_id, item.name, *(t.text for t in item.turns), *(s.caption for s in item.scenes)]
        if all(text.isascii() or text == _written_out(text) for text in texts):
            return item
        item = Reject(item.sample_id, item.name, item.where, "malformed record: a text of it holds half a character")
    return Reject(*(_written_out(text) for text in (item.sample_id, item.media, item.where, item.reason)))


def _written_out(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_list(path: Path) -> Records:
    """("line 7, record 1", value), ... of a file that holds one JSON list. Raises UserError when it does not."""
    for i, (line, _, value) in enumerate(_members(path, "[]", "list of records"), 1):
        yield f"line {line}, record {i}", value


def json_object(path: Path) -> Iterator[tuple[str, str, Any]]:
    """("line 7, abc", "abc", value), ... of a file that holds one JSON object. Raises UserError when it does not."""
    for line, key, value in _members(path, "{}", "object"):
        yield f"line {line}, {key}", key, value


def _members(path: Path, brackets: str, kind: str) -> Iterator[tuple[int, str, Any]]:
    """(line, key or "", value) of each member, one at a time."""
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); this format is one JSON {kind}") from error
    decoder, keyed = json.JSONDecoder(), brackets == "{}"
    line, counted = 1, 0

    def expect(sign: str, at: int) -> int:
        if text[at : at + 1] not in tuple(sign):
            place = f"line {text.count(chr(10), 0, at) + 1}"
            raise UserError(f"{path}: {place}: expected {' or '.join(sign)}; this format is one JSON {kind}")
        return _BLANK.match(text, at + 1).end()  # type: ignore[union-attr]

    def value_at(at: int) -> tuple[Any, int]:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); this format is one JSON {kind}") from error
        return value, _BLANK.match(text, end).end()  # type: ignore[union-attr]

    at = expect(brackets[0], _BLANK.match(text).end())  # type: ignore[union-attr]
    more = text[at : at + 1] != brackets[1]
    while more:
        line, counted = line + text.count("\n", counted, at), at
        key = ""
        if keyed:
            key, at = value_at(at)
            at = expect(":", at)
        value, at = value_at(at)
        yield line, key, value
        more = text[at : at + 1] == ","
        at = expect("," + brackets[1], at) if more else at
    if (end := expect(brackets[1], at)) != len(text):
        raise UserError(f"{path}: goes on after its JSON {kind}: {text[end : end + 20]!r}; remove the rest")


def json_lines(path: Path) -> Records:
    """("line 1", value), ... of a file with a JSON value a line; a RecordError stands for a line that is no JSON."""
    with reading(path), open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {i}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {i}", RecordError(f"not JSON ({error})")


def csv_rows(*columns: str) -> Callable[[Path], Records]:
    """A reader of CSV files with these columns: ("line 2", {column: text}), ...; more columns are allowed."""

    def read(path: Path) -> Records:
        with reading(path), open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            try:
                header = next(rows, [])
            except csv.Error as error:
                raise UserError(f"{path}: its first line is not CSV ({error}); it names the columns") from error
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
            while True:
                where = f"line {rows.line_num + 1}"
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, RecordError(f"not CSV ({error})")
                    continue
                yield where, _named(header, row)

    return read


def _named(header: list[str], row: list[str]) -> dict[str, str] | RecordError:
    if len(row) != len(header):
        return RecordError(f"has {len(row)} fields, not {len(header)}")
    if any("\udc80" <= letter <= "\udcff" for text in row for letter in text):
        return RecordError("is not UTF-8")
    return dict(zip(header, row, strict=True))


def need(record: Any, key: str, kind: type) -> Any:
    """record[key], which must be a non-empty `kind`. Raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"is a {type(record).__name__}, not an object")
    if key not in record:
        raise RecordError(f"has no {key}")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        raise RecordError(f"{key} is a {type(record[key]).__name__}, not a {kind.__name__}")
    if kind in (str, list) and not record[key]:
        raise RecordError(f"{key} is empty")
    return record[key]


def need_text(record: Any, key: str) -> str:
    """record[key] as text that is not blank, without blanks around it. Raises RecordError."""
    if not (text := need(record, key, str).strip()):
        raise RecordError(f"{key} is blank")
    return text


def need_number(record: Any, key: str, below: int) -> int:
    """record[key] as a whole number in 0..below-1, which CSV holds as text. Raises RecordError."""
    text = record[key] if isinstance(record, dict) and isinstance(record.get(key), int) else need(record, key, str)
    if isinstance(text, bool) or not re.fullmatch("[0-9]{1,18}", str(text)) or int(text) >= below:
        raise RecordError(f"{key} is {text}, not a number from 0 to {below - 1}")
    return int(text)


def record_id(record: Any) -> str:
    """The id as text; some files hold numbers."""
    if isinstance(record, dict) and isinstance(record.get("id"), int):
        return str(record["id"])
    return need(record, "id", str)


def media_path(root: Path, name: str) -> Path:
    """The medium below `root`. Raises RecordError for a path that leaves it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RecordError(f"the path {name} does not stay below the media folder")
    return root / name


class VideoFinder:
    """Video files that annotations name without their suffix; each folder is listed once."""

    def __init__(self, root: Path):
        self.root = root
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def name(self, stem: str) -> str:
        """`stem` with the suffix of the file that there is; .mp4 when there is none. Raises RecordError for two."""
        path = media_path(self.root, stem)
        found = self._listed(path.parent).get(path.name, [])
        if len(found) > 1:
            raise RecordError(f"{' and '.join(sorted(found))} both fit {stem}; keep one")
        return stem + (Path(found[0]).suffix if found else ".mp4")

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._folders:
            listed: dict[str, list[str]] = {}
            try:
                for path in folder.iterdir() if folder.is_dir() else ():
                    if VIDEO_SUFFIX.fullmatch(path.suffix):
                        listed.setdefault(path.stem, []).append(path.name)
            except OSError as error:
                raise RecordError(f"its folder {folder} cannot be listed ({error.strerror})") from error
            self._folders[folder] = listed
        return self._folders[folder]

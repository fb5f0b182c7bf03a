"""A file of answers that survives any kill: one JSON object a line, appended as it comes, and locked meanwhile."""

import fcntl
import glob
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ma2mba.errors import UserError
from ma2mba.files import fits_utf8
from ma2mba.text import parse_json

Record = dict[str, Any]
LINE_BYTES = 64 << 20
"""Bytes of the longest accepted line: a prompt may hold the subtitles of hours."""
UNKEPT = ("prompt",)
"""Fields of a record that stay in the file and are not held in memory: with subtitles, they are most of it."""


class AnswersFile:
    """The records of one part of a run, each with its `number` and the id of its `run`. A context manager.

    `records` maps a question's number to its last record. Opening the file removes a last line that was not written to
    its end. Raise UserError if another process writes the file, and for records of another run.
    """

    def __init__(self, path: Path, run: str, *, fresh: bool = False):
        self.path, self._run = path, run
        self._file = _open_locked(path)
        try:
            if fresh:
                self._file.truncate(0)
            self.records = {record["number"]: record for record in _parse(self._file, path, run)}
            self._file.truncate(_whole_lines(self._file))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "AnswersFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sync(self) -> None:
        """Flush the file to the disk: a power failure then loses no record of it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def add(self, record: Record) -> None:
        """Append a record. It stays whatever happens to this process afterwards."""
        rest = memoryview(_line(record | {"run": self._run}))
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
        self.records[record["number"]] = {key: value for key, value in record.items() if key not in UNKEPT}


def _line(record: Record) -> bytes:
    text = json.dumps(record, allow_nan=False, ensure_ascii=False)
    if not fits_utf8(text):  # a file name that is not UTF-8
        text = json.dumps(record, allow_nan=False)
    return text.encode() + b"\n"


def read_answers(path: Path, run: str) -> dict[int, Record]:
    """Return the records of a file that another process may be writing; {} if it does not exist.

    Raise UserError for records of another run.
    """
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        return {record["number"]: record for record in _parse(file, path, run)}


def remove_answers(folder: Path, name: str, keep: set[str]) -> None:
    """Remove the files of answers in a folder ("answers.jsonl" and those of parts), but for the names in `keep`.

    Raise UserError if another process writes one of them.
    """
    stem, dot, suffix = name.rpartition(".")
    for path in sorted([folder / name, *folder.glob(f"{glob.escape(stem)}-*-of-*{dot}{suffix}")]):
        if path.name not in keep and path.is_file():
            with _open_locked(path):
                path.unlink()


def _open_locked(path: Path) -> BinaryIO:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Name another --out") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a regular file. Remove it, or name another --out")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{path}: another process is writing it. Wait for that process, or name another --out"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "r+b", buffering=0)


def places_of_answers(file: BinaryIO, path: Path, run: str) -> Iterator[tuple[int, int, int]]:
    """Yield (number, where its line begins, the line's bytes) of the records of a file, in its order."""
    begin = 0
    for line, record in _lines(file, path, run):
        yield record["number"], begin, len(line)
        begin += len(line)


def _parse(file: BinaryIO, path: Path, run: str) -> Iterator[Record]:
    """Yield the records of all lines that end with a line feed, without UNKEPT."""
    for _, record in _lines(file, path, run):
        yield {key: value for key, value in record.items() if key not in UNKEPT}


def _lines(file: BinaryIO, path: Path, run: str) -> Iterator[tuple[bytes, Record]]:
    """Yield all lines that end with a line feed, and their records."""
    file.seek(0)
    with open(file.fileno(), "rb", closefd=False) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LINE_BYTES + 1), b""), 1):
            if not line.endswith(b"\n") and len(line) <= LINE_BYTES:
                return
            try:
                if len(line) > LINE_BYTES:
                    raise ValueError(f"longer than {LINE_BYTES:,} bytes")
                record = parse_json(line.decode())
                if not (isinstance(record, dict) and isinstance(record.get("number"), int)):
                    raise ValueError("not a record of an answer")
            except ValueError as error:
                remedy = "Remove the line, or start over with --fresh"
                raise UserError(f"{path}, line {number}: {error}. {remedy}") from error
            if record.get("run") != run:
                raise UserError(
                    f"{path}, line {number}: an answer of a run with other options. Start over with --fresh"
                )
            yield line, record


def _whole_lines(file: BinaryIO) -> int:
    """Return the number of bytes up to the last line feed."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - (1 << 16))
        file.seek(begin)
        block = file.read(end - begin)
        if b"\n" in block:
            return begin + block.rindex(b"\n") + 1
        end = begin
    return 0

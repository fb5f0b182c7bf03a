r"""The one door to the terminal: no text moves the cursor, changes a colour, makes a link or reverses its letters.

Names, answers, records and messages of libraries come from strangers. Each control character in them is shown as an
escape (`\x1b`, `\u202e`), and rich's markup and emoji codes are plain text. Only styles that our code sets are obeyed.
"""

import argparse
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from ma2mba.text import shorten

CONTROLS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1, without the tab and the line feed
    "\u061c\u180e\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction, and without a width
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of pairs (a file name that is not UTF-8), and tags
)
LINE_LETTERS, LINES = 2000, 100
"""Most letters of a line, and most lines, of an error."""


def visible(text: str) -> str:
    """Return a text with its control characters as escapes; tabs and line feeds stay."""
    return CONTROLS.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return a name as it may be shown within a line: its control characters, tabs and line feeds as escapes."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def error_text(text: str) -> str:
    """Return an error as it is printed: bounded, and a line feed stays only before two spaces, as our lists have it.

    A name that holds a line feed cannot begin a line of its own.
    """
    lines = re.split(r"\n(?=  )", visible(text))
    more = [f"  and {len(lines) - LINES:,} more lines"] if len(lines) > LINES else []
    return "\n".join([shorten(line.replace("\n", r"\n"), LINE_LETTERS) for line in lines[:LINES]] + more)


class Terminal(Console):
    """rich's console without markup and emoji codes, which shows the control characters of every text as escapes."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False):
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **(options | {"markup": False, "emoji": False, "highlight": False}))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Show a status with a spinner. rich alone reads markup here."""
        return super().status(Text(one_line(status)) if isinstance(status, str) else status, **options)

    def error(self, text: str) -> None:
        """Print an error, with a red heading."""
        self.print(Text.assemble(("error:", "bold red"), " ", error_text(text)), soft_wrap=True)


def write_error(text: str) -> None:
    """Write text to stderr at once. Use this where many processes write to one stderr, and in an emergency."""
    sys.stderr.write(visible(text))
    sys.stderr.flush()


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Print the log messages of all libraries on stderr, from `level` on, unless somebody has set that up before."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Format("%(message)s"))
    logging.basicConfig(handlers=[handler], level=level)


class Arguments(argparse.ArgumentParser):
    """argparse, whose errors show control characters as escapes."""

    def error(self, message: str) -> Any:
        super().error(error_text(message))


def guard_reports() -> None:
    """Let Python's own reports, of unexpected errors and of warnings, show control characters as escapes."""
    sys.excepthook = _report
    threading.excepthook = _report_thread
    warnings.formatwarning = _warning


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    write_error("".join(traceback.format_exception(kind, error, trace)))


def _report_thread(facts: threading.ExceptHookArgs) -> None:
    if facts.exc_value:
        _report(facts.exc_type, facts.exc_value, facts.exc_traceback)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return visible(f"{filename}:{lineno}: {category.__name__}: {message}\n")

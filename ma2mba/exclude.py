"""The key `exclude` of both kinds of recipe: ids of samples that are left out."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from ma2mba.errors import UserError
from ma2mba.files import read_bounded
from ma2mba.text import JSON_BYTES, shorten

SHOWN = 5
"""Most unknown ids that a message lists."""


def _as_given(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and all(isinstance(one, str | int) and not isinstance(one, bool) for one in value):
        return [str(one) for one in value]
    raise ValueError("give a list of sample ids, or the path of a file with one id per line")


Excluded = Annotated[list[str] | str, BeforeValidator(_as_given)]
"""A list of sample ids, or the path of a text file with one id per line."""


def read_ids(given: list[str] | str, base: Path) -> frozenset[str]:
    """Return the ids of the samples to leave out. A path counts from `base`. Raise UserError if it is no text file."""
    if isinstance(given, list):
        return frozenset(given)
    path = base / given
    try:
        lines = io.TextIOWrapper(io.BytesIO(read_bounded(path, JSON_BYTES)), encoding="utf-8-sig")
        return frozenset(line.strip() for line in lines) - {""}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}). Write one sample id per line") from error


def check_known(excluded: frozenset[str], known: Iterable[str], where: object) -> None:
    """Raise UserError if an excluded id is not in `known`: a typing error would keep the sample."""
    unknown = sorted(excluded.difference(known))
    if unknown:
        listed = ", ".join(shorten(one) for one in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        raise UserError(f"{where}: exclude names ids that no sample has: {listed}{more}. Correct or remove them")

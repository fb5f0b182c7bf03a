"""Annotation formats: how the records of each become clips.

For a data set of your own, write a reader and call `register`; docs/extending.md shows how.
"""

from data_prep.sources import datasets  # noqa: F401 (registers the formats)
from data_prep.sources.registry import Format, find_format, format_names, register

__all__ = ["Format", "find_format", "format_names", "register"]

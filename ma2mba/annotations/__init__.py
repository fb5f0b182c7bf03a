"""Parsers of published annotation files: files in, typed records and bad records out.

A module per format has one frozen dataclass for its records and `read(files, media_folder)`, which yields each record
or a `BadRecord`. docs/data.md and docs/benchmarks.md describe every format.
These helpers are what a parser of a new format needs:
"""

from ma2mba.annotations.csv_files import csv_rows
from ma2mba.annotations.fields import RecordError, need, need_id, need_number, need_text
from ma2mba.annotations.files import Files, Records, json_lines, json_list, json_object
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import BadRecord, Record, each

__all__ = [
    "BadRecord",
    "Files",
    "MediaFolder",
    "Record",
    "RecordError",
    "Records",
    "csv_rows",
    "each",
    "json_lines",
    "json_list",
    "json_object",
    "need",
    "need_id",
    "need_number",
    "need_text",
]

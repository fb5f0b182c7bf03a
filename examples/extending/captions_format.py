"""A format of your own: JSON lines {"clip": path, "caption": text} (docs/extending.md).

Run `python examples/extending/captions_format.py build RECIPE.yaml --out SHARDS`, where a source of RECIPE.yaml has
`format: captions`.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_prep.clips import Clip
from data_prep.sources import register
from data_prep.sources.turns import caption_turns
from ma2mba.annotations import MediaFolder, each, json_lines, need_text
from ma2mba.cli.app import main


def read_caption(record: Any, folder: MediaFolder, where: str) -> Clip:
    """Return the clip of one line. Raise RecordError when a field is missing or the path leaves the media folder."""
    name, caption = need_text(record, "clip"), need_text(record, "caption")
    return Clip(name, folder.path(name), name, where, caption_turns(name, caption))


register("captions", each(json_lines, read_caption))

if __name__ == "__main__":
    main(["data", *sys.argv[1:]])

"""Find the files of published weights. Imports no torch."""

import os
from pathlib import Path

from ma2mba.files import inside


def published_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder of published weights. Raise OutsideFolder if it leads out.

    The files of a snapshot in the cache of the Hugging Face hub are links to the folder `blobs` of the same repository.
    """
    path = folder / name
    snapshots = Path(os.path.realpath(folder)).parent
    blobs = snapshots.with_name("blobs")
    if snapshots.name == "snapshots" and path.is_symlink() and Path(os.path.realpath(path)).parent == blobs:
        return path
    return inside(folder, name, folder)

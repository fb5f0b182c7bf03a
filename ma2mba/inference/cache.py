"""A folder of state files: a video that this model has watched in the same way is not watched again.

Processes may share the folder: an entry appears as a whole. Entries may be deleted at any time.
"""

import json
import logging
from pathlib import Path

import xxhash

from ma2mba import __version__
from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.inference.state_file import Facts, load_state, save_state
from ma2mba.video.decode import decoder_version

log = logging.getLogger(__name__)


def find_entry(folder: Path, wanted: Facts, like: Session) -> tuple[Session, Facts] | None:
    """Return the state after the first video of `wanted`, and its facts; None if it is absent or damaged.

    Of the video in `wanted`, only `content` and `sampling` count. `like` gives the model.
    """
    path = _path(folder, wanted)
    if not path.exists():
        return None
    try:
        session, facts = load_state(path, like.model, like.tokenizer, wanted.fingerprint)
    except UserError as error:
        log.warning("%s", error)
        return None
    return (session, facts) if _key(facts) == _key(wanted) else None


def keep_entry(folder: Path, session: Session, facts: Facts) -> None:
    """Write an entry. A folder that cannot be written, or a full disk, costs a warning only."""
    path = _path(folder, facts)
    try:
        save_state(path, session, facts)
    except (OSError, UserError) as error:
        log.warning("%s: not kept (%s)", path, error)


def _path(folder: Path, facts: Facts) -> Path:
    return folder / f"{xxhash.xxh3_128_hexdigest(_key(facts).encode())}.state"


def _key(facts: Facts) -> str:
    """Return what decides the bits of a state after one video."""
    decided_by = [(video.content, video.sampling, video.damage) for video in facts.watched]
    versions = (__version__, decoder_version("pyav"))
    return json.dumps([facts.fingerprint, facts.chunk_tokens, decided_by, len(facts.turns), versions])

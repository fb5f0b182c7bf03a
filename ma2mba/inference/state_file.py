"""Write and read state files: all that is needed to ask about a video, or to watch on, without watching it again.

A state file is one safetensors file. Its tensors are the recurrent states after everything that was read. Its metadata
says by which model, what was watched and what was said. Its checksum covers every byte of the file.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import torch
import xxhash
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba import __version__
from ma2mba.errors import UserError
from ma2mba.files import BLOCK_BYTES, atomic_path, open_regular
from ma2mba.inference.fingerprint import dtype_name
from ma2mba.inference.session import Session, blank_states
from ma2mba.limits import limits, raise_limit
from ma2mba.model.base_config import StrictConfig, problem
from ma2mba.model.layer import State
from ma2mba.model.tensor_file import DTYPES, HEADER_BYTES, Stored, TensorFile, reason_of
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.weights import is_finite
from ma2mba.text import parse_json, shorten

FORMAT, VERSION = "ma2mba state", "1"
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{32})"')
BLANK = "0" * 32
"""The checksum is computed with these digits in its place."""
LAST = "last"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Watched(StrictConfig):
    """A video that was watched: its file name, the XXH3-128 of its bytes (None: not computed), its seconds and frames.

    A `live` source was watched as it came, so its bytes have no hash.
    `sampling` is "1fps" or the number of frames that was asked for; `frames` were seen. Of a damaged video, `partial`
    seconds were watched, and `damage` says what is wrong; `partial` is None for a whole video.
    """

    name: str
    content: Hash | None
    seconds: float = Field(ge=0, allow_inf_nan=False)
    frames: int = Field(ge=0)
    sampling: str
    partial: Annotated[float, Field(ge=0)] | None = None
    damage: str = ""
    live: bool = False


class Said(StrictConfig):
    """A turn of the conversation."""

    role: Literal["user", "assistant"]
    text: str


class Facts(StrictConfig):
    """What a state file says about its states.

    `fingerprint` and `dtype` are the model's. `chunk_tokens`: tokens of a chunk, which decide the last bits of the
    states. `turn_open`: the user's turn has begun and waits for a question.
    """

    written_by: str = f"ma2mba {__version__}"
    fingerprint: Hash
    dtype: str
    chunk_tokens: int = Field(ge=1, le=1 << 30)
    turn_open: bool
    watched: tuple[Watched, ...] = ()
    turns: tuple[Said, ...] = ()


def save_state(path: Path, session: Session, facts: Facts) -> None:
    """Write a state file: whole and synced, or not at all. Raise OSError if the disk is full."""
    tensors = dict(_named(session.require_states()))
    if session.last_1D is not None:
        tensors[LAST] = session.last_1D
    metadata = {"format": FORMAT, "version": VERSION, "checksum": BLANK, "facts": facts.model_dump_json()}
    content = bytearray(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))
    if int.from_bytes(content[:8], "little") > HEADER_BYTES:
        raise UserError(f"{path}: the conversation is too long for a state file. Begin a new one")
    place = CHECKSUM.search(content)
    assert place, "safetensors writes the metadata as compact JSON"
    content[place.start(1) : place.end(1)] = xxhash.xxh3_128_hexdigest(content).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_state(path: Path, model: VideoMa2mba, tokenizer: Tokenizer, model_fingerprint: str) -> tuple[Session, Facts]:
    """Return the session of a state file, on the model's device, and what the file says about it.

    Raise UserError in one line if the file is damaged, is no state file, has another version, or belongs to another
    model than the one with `model_fingerprint`.
    """
    verify_state(path)
    file = TensorFile.open(path)
    facts = _facts(path, file.handle.metadata() or {})
    if facts.fingerprint != model_fingerprint:
        dtypes = {facts.dtype, dtype_name(model)}
        other = f" or dtype ({facts.dtype}, not {dtype_name(model)})" if len(dtypes) > 1 else ""
        raise UserError(
            f"{path}: belongs to another model{shorten(other)}. Use the model that wrote it, or watch the video again"
        )
    session = Session(model, tokenizer, facts.chunk_tokens)
    session.jump(*_states(path, file, session))
    return session, facts


def _named(states: list[State]) -> list[tuple[str, Tensor]]:
    return [(f"layers.{i}.{j}", tensor) for i, state in enumerate(states) for j, tensor in enumerate(state)]


def verify_state(path: Path) -> None:
    """Raise UserError unless the file is whole: each of its bytes counts in the checksum."""
    damaged = UserError(f"{path}: damaged, or not a state file. Copy it again, or write it again with `ma2mba ingest`")
    most = limits().state_gb * 1e9
    with open_regular(path) as file:
        if file.seek(0, 2) > most:
            raise UserError(f"{path}: larger than {limits().state_gb:g} GB. {raise_limit('state_gb')}")
        file.seek(0)
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > HEADER_BYTES:
            raise damaged
        head += file.read(length)
        places = list(CHECKSUM.finditer(head))
        if len(places) != 1:
            raise damaged
        start, end = places[0].span(1)
        digest = xxhash.xxh3_128(head[:start] + BLANK.encode() + head[end:])
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest().encode() != places[0][1]:
        raise damaged


def _facts(path: Path, metadata: dict[str, str]) -> Facts:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a state file. Write one with `ma2mba ingest`")
    if metadata.get("version") != VERSION:
        raise UserError(
            f"{path}: has version {shorten(str(metadata.get('version')))} of the format, and this ma2mba reads version "
            f"{VERSION}. Use the ma2mba that wrote it, or watch the video again"
        )
    try:
        return Facts.model_validate(parse_json(metadata.get("facts", "")))
    except ValidationError as error:
        raise UserError(f"{path}: not a state file ({problem(error)}). Write it again") from error
    except ValueError as error:
        raise UserError(f"{path}: not a state file ({error}). Write it again") from error


def state_bytes(model: VideoMa2mba) -> int:
    """Return about how many bytes a state file of this model takes, its conversation left out."""
    return sum(tensor.nbytes for state in blank_states(model)[0] for tensor in state) + (1 << 16)


@torch.no_grad()
def _states(path: Path, file: TensorFile, session: Session) -> tuple[list[State], Tensor | None]:
    """Return the states and the last token's residual. Compare shapes and types before memory is taken, then values."""
    like, last_1D = blank_states(session.model)
    wanted = dict(_named(like)) | {LAST: last_1D}
    stored = file.tensors
    if odd := sorted(stored.keys() ^ (wanted.keys() - ({LAST} - stored.keys()))):
        raise UserError(f"{path}: {_what(odd[0])} is {'unknown' if odd[0] in stored else 'missing'}. Write it again")
    found = {name: _tensor(path, stored[name], wanted[name]) for name in sorted(stored)}
    numbers = iter(found[name] for name, _ in _named(like))
    return [tuple(next(numbers) for _ in state) for state in like], found.get(LAST)


def _tensor(path: Path, stored: Stored, like: Tensor) -> Tensor:
    """Read a tensor into `like`, which has the device and the memory layout that the kernels need. Return `like`."""
    kind, expected = (DTYPES.get(stored.dtype), stored.shape), (like.dtype, tuple(like.shape))
    if kind != expected:
        found = f"{list(stored.shape)} of {stored.dtype}"
        raise UserError(
            f"{path}: {_what(stored.name)} is {shorten(found)}, not {list(like.shape)} of {like.dtype}. Write it again"
        )
    try:
        values = stored.read()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: {_what(stored.name)} cannot be read ({reason_of(error)}). Copy the file again"
        ) from error
    if not is_finite(values):
        raise UserError(f"{path}: {_what(stored.name)} has NaN or infinite values. Write the file again")
    return like.copy_(values)


def _what(name: str) -> str:
    return f"the tensor {shorten(name)!r}"

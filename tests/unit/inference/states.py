"""Write state files as somebody else might: with a right checksum, and anything else."""

import json
from collections.abc import Callable
from pathlib import Path

import xxhash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ma2mba.inference.state_file import BLANK, CHECKSUM

Parts = tuple[dict[str, str], dict, dict[str, Tensor]]


def forge(path: Path, change: Callable[[dict[str, str], dict, dict[str, Tensor]], None], target: Path) -> Path:
    """Copy a state file. `change(metadata, facts, tensors)` edits its parts; the checksum is computed anew."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata["facts"])
    change(metadata, facts, tensors)
    facts_text = json.dumps(facts) if metadata.get("facts") != "" else "{"
    target.write_bytes(seal(bytearray(save(tensors, metadata | {"checksum": BLANK, "facts": facts_text}))))
    return target


def seal(content: bytearray) -> bytearray:
    """Put the right checksum into a file's bytes."""
    place = CHECKSUM.search(content)
    assert place
    content[place.start(1) : place.end(1)] = BLANK.encode()
    content[place.start(1) : place.end(1)] = xxhash.xxh3_128_hexdigest(content).encode()
    return content

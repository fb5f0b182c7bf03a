"""What a model folder of format 2 holds: every file and its size, known before the first byte is written."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import xxhash
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.model.checksums import CARD, TOKENIZER, checksums_text
from ma2mba.model.config import ModelConfig
from ma2mba.model.hf.bundle import code_files
from ma2mba.model.hf.config import has_code, hf_config
from ma2mba.model.hf.files import processor_files, video_token_id
from ma2mba.model.plain_text import END
from ma2mba.model.run_folder import CHECKSUMS, CONFIG
from ma2mba.model.tensor_file import DTYPES
from ma2mba.model.tensor_writer import Shard, TensorSpec, index_text, plan_shards, write_shards
from ma2mba.model.weights import INDEX

EMBEDDING = "language_model.backbone.embedding.weight"
"""The tensor whose type config.json names."""
SHA256_DIGITS = "0" * 64
AUTO_MAP = '"auto_map"'


@dataclass(frozen=True)
class FolderContent:
    """The files of a model folder: small ones by name, and the files of tensors. checksums.json is not among them."""

    small: Mapping[str, bytes]
    shards: list[Shard]

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of every file, checksums.json included."""
        sizes = {name: len(content) for name, content in self.small.items()}
        sizes |= {shard.name: shard.bytes for shard in self.shards}
        if len(self.shards) > 1:
            sizes[INDEX] = len(index_text(self.shards))
        sizes[CHECKSUMS] = len(checksums_text(dict.fromkeys(sizes, SHA256_DIGITS)))
        return dict(sorted(sizes.items()))

    def write(self, read: Callable[[str], Tensor], folder: Path) -> dict[str, str]:
        """Write all files, and return the XXH3-128 of the files of tensors.

        `read(name)` returns a tensor; each is read once.
        """
        digests = {shard.name: xxhash.xxh3_128() for shard in self.shards}
        sums = write_shards(self.shards, read, folder, digests)
        for name, content in self.small.items():
            (folder / name).write_bytes(content)
            sums[name] = hashlib.sha256(content).hexdigest()
        (folder / CHECKSUMS).write_text(checksums_text(sums), encoding="utf-8")
        return {name: digest.hexdigest() for name, digest in digests.items()}


def folder_content(
    config: ModelConfig, tokenizer: bytes, specs: Mapping[str, TensorSpec], card: str, most: int | None = None
) -> FolderContent:
    """Return the content of the folder of a model with these tensors.

    `tokenizer` is the content of a tokenizer.json that `load_tokenizer` has accepted, `card` the content of README.md,
    `most` the bytes of a shard.
    """
    dtype = str(DTYPES[specs[EMBEDDING].dtype]).removeprefix("torch.")
    end, video, small = fixed_files(config.model_dump_json(), tokenizer)
    values = json.dumps(hf_config(config, end, video, dtype), indent=2) + "\n"
    return FolderContent(
        {**small, CONFIG: values.encode(), TOKENIZER: tokenizer, CARD: card.encode()}, plan_shards(specs, most)
    )


@lru_cache(maxsize=2)
def fixed_files(config_json: str, tokenizer_json: bytes) -> tuple[int, int, Mapping[str, bytes]]:
    """Return the ids of `<|endoftext|>` and `<|video|>`, and the files that all checkpoints of a run share.

    They take half a second, once.
    """
    config, tokenizer = ModelConfig.model_validate_json(config_json), Tokenizer.from_buffer(tokenizer_json)
    end = tokenizer.token_to_id(END)
    assert end is not None, "load_tokenizer refuses a tokenizer without it"
    texts = processor_files(config, tokenizer)
    if has_code(config):
        texts |= code_files()
    else:  # nothing that names classes of the code
        texts = {name: text for name, text in texts.items() if AUTO_MAP not in text}
    return end, video_token_id(tokenizer), {name: text.encode() for name, text in texts.items()}

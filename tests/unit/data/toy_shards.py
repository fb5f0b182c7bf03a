"""A shard folder of noise, written by hand: what the tests of data and training run on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from tokenizers import Tokenizer, models, pre_tokenizers

from ma2mba.model.conversation import END, Turn, encode_conversation
from ma2mba.shards.format import INDEX_FILE, TOKENIZER_FILE, IndexRow
from ma2mba.shards.integrity import sha256_file
from ma2mba.shards.manifest import Manifest, SourceEntry, file_entry, write_manifest
from ma2mba.shards.writer import PartWriter, PayloadFrame, write_index

WORDS = [END, "<|padding|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unknown|>", *(f"w{i}" for i in range(26))]


def tokenizer() -> Tokenizer:
    """32 words; anything else is unknown."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|unknown|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(WORDS[:6])
    return made


def write_shards(folder: Path, samples: Sequence[tuple[int, int]], image_size: int = 28, seed: int = 0) -> Path:
    """One sample for each (frames, words of the answer)."""
    folder.mkdir(parents=True)
    words = tokenizer()
    words.save(str(folder / TOKENIZER_FILE))
    random = np.random.default_rng(seed)
    rows = []
    with PartWriter(folder, 0) as part:
        for i, (frames, answer) in enumerate(samples):
            turns = [
                Turn("user", f"w{i % 20} w3"),
                Turn("assistant", " ".join(f"w{random.integers(26)}" for _ in range(answer))),
            ]
            encoded = encode_conversation(words, turns, frames)
            pictures = [random.integers(0, 256, (image_size, image_size, 3), np.uint8) for _ in range(frames)]
            jpegs = [simplejpeg.encode_jpeg(picture, quality=90) for picture in pictures]
            first = part.add(f"s{i}", [PayloadFrame(float(t), float(t), jpeg) for t, jpeg in enumerate(jpegs)])
            rows.append(
                IndexRow(
                    sample_id=f"s{i}",
                    token_ids=np.array(encoded.token_ids, np.int32),
                    supervised=np.array(encoded.supervised, np.bool_),
                    frame_positions=np.array(encoded.frame_positions, np.int32),
                    timestamps=np.arange(frames, dtype=np.float64),
                    file=part.name if frames else "",
                    first_row_group=first,
                    frames=frames,
                    duration=float(frames),
                    dataset="noise",
                    source="noise",
                    source_bytes=0,
                    source_sha256="",
                    payload_xxh3="",
                    decoder="none",
                    decoder_version="0",
                    recipe_hash="toy",
                    status="ok",
                    reason="",
                )
            )
    _finish(folder, rows, image_size)
    return folder


def _finish(folder: Path, rows: list[IndexRow], image_size: int) -> None:
    write_index(folder / INDEX_FILE, rows)
    names = [INDEX_FILE, TOKENIZER_FILE, *sorted({row.file for row in rows if row.file})]
    write_manifest(
        folder,
        Manifest(
            image_size=image_size,
            fps=1.0,
            recipe={},
            recipe_hash="toy",
            tokenizer_sha256=sha256_file(folder / TOKENIZER_FILE),
            decoder="none",
            decoder_version="0",
            sources=[SourceEntry(name="noise", format="noise", weight=1.0, samples=len(rows))],
            files=[file_entry(folder, name) for name in names],
            samples=len(rows),
            frames=sum(row.frames for row in rows),
            tokens=sum(len(row.token_ids) for row in rows),
        ),
    )

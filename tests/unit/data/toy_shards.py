"""Write small shard folders of random frames, for tests of data loading and training."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from ma2mba.files import sha256_file
from ma2mba.model.conversation import END, Turn, encode_conversation
from ma2mba.shards.format import INDEX_FILE, TOKENIZER_FILE, IndexRow
from ma2mba.shards.manifest import FeatureInfo, Manifest, SourceEntry, file_entry, write_manifest
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import PayloadFrame, PayloadWriter, payload_hash, payload_name, write_index

WORDS = [END, "<|padding|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unknown|>", *(f"w{i}" for i in range(26))]


def tokenizer() -> Tokenizer:
    """Return a tokenizer of 32 words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|unknown|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(WORDS[:6])
    return made


def write_shards(
    folder: Path,
    samples: Sequence[tuple[int, int]],
    image_size: int = 28,
    seed: int = 0,
    features: FeatureInfo | None = None,
    weights: Sequence[float] = (1.0,),
    prefix: str = "s",
) -> Path:
    """Write a shard folder with one sample for each pair (number of frames, words of the answer). Return the folder.

    `weights` has one weight for each data set. The data sets are noise0, noise1, ...; samples belong to them in turn.
    """
    folder.mkdir(parents=True)
    words = tokenizer()
    words.save(str(folder / TOKENIZER_FILE))
    random = np.random.default_rng(seed)
    rows = []
    kind = {"kind": "features", "frame_bytes": features.frame_bytes} if features else {}
    with PayloadWriter(folder, 0, **kind) as writer:
        for i, (frames, answer) in enumerate(samples):
            turns = [
                Turn("user", f"w{i % 20} w3"),
                Turn("assistant", " ".join(f"w{random.integers(26)}" for _ in range(answer))),
            ]
            encoded = encode_conversation(words, turns, frames)
            if features:
                values = torch.from_numpy(random.standard_normal((frames, features.tokens, features.width)))
                stored = [value.to(torch.bfloat16).view(torch.int16).numpy().tobytes() for value in values]
            else:
                stored = noise_jpegs(random, frames, image_size)
            first = writer.add(
                f"{prefix}{i}", [PayloadFrame(float(t), float(t), jpeg) for t, jpeg in enumerate(stored)]
            )
            rows.append(
                IndexRow(
                    sample_id=f"{prefix}{i}",
                    token_ids=np.array(encoded.token_ids, np.int32),
                    supervised=np.array(encoded.supervised, np.bool_),
                    frame_positions=np.array(encoded.frame_positions, np.int32),
                    timestamps=np.arange(frames, dtype=np.float64),
                    file=writer.name if frames else "",
                    first_row_group=first,
                    frames=frames,
                    duration=float(frames),
                    dataset=f"noise{i % len(weights)}",
                    source="noise",
                    source_bytes=0,
                    source_sha256="",
                    payload_xxh3=payload_hash(stored),
                    decoder="none",
                    decoder_version="0",
                    recipe_hash="toy",
                    status="ok",
                    reason="",
                )
            )
    _finish(folder, rows, image_size, features, weights)
    return folder


def noise_jpegs(random: np.random.Generator, frames: int, image_size: int) -> list[bytes]:
    pictures = [random.integers(0, 256, (image_size, image_size, 3), np.uint8) for _ in range(frames)]
    return [simplejpeg.encode_jpeg(picture, quality=90) for picture in pictures]


def _finish(
    folder: Path, rows: list[IndexRow], image_size: int, features: FeatureInfo | None, weights: Sequence[float]
) -> None:
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
            kind="features" if features else "jpeg",
            features=features,
            sources=[
                SourceEntry(name=f"noise{i}", format="noise", weight=weight, samples=len(rows[i :: len(weights)]))
                for i, weight in enumerate(weights)
            ],
            files=[file_entry(folder, name) for name in names],
            samples=len(rows),
            frames=sum(row.frames for row in rows),
            tokens=sum(len(row.token_ids) for row in rows),
        ),
    )


def join_shards(folder: Path, shards: Sequence[Path]) -> Path:
    """Join folders of `write_shards` into `folder`, each as one of its shards. Return `folder`."""
    rows, image_size = [], 0
    for number, shard in enumerate(shards):
        reader = ShardReader(shard)
        image_size = reader.manifest.image_size
        name = payload_name(number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if any(row.frames for row in reader.rows):
            shutil.copyfile(shard / payload_name(0), folder / name)
        shutil.copyfile(shard / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        rows += [replace(r, file=name if r.frames else "") for r in reader.rows]
    _finish(folder, rows, image_size, None, (1.0,))
    return folder

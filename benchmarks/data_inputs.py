"""Generate the inputs of `benchmarks/data.py`: a video and a shard folder."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from ma2mba.files import sha256_file
from ma2mba.model.conversation import END, Turn, encode_conversation
from ma2mba.shards.format import INDEX_FILE, TOKENIZER_FILE, IndexRow
from ma2mba.shards.manifest import Manifest, SourceEntry, file_entry, write_manifest
from ma2mba.shards.writer import PayloadFrame, PayloadHash, PayloadWriter, write_index

SIZE = 336


def make_video(path: Path, seconds: int) -> Path:
    """Write a video of shapes that drift over a grainy gradient: 640 x 360, 30 fps, a key frame every 250 frames."""
    import av  # shards are also written where no decoder of videos is installed

    random = np.random.default_rng(0)
    grain = random.normal(0, 6, (8, 360, 640, 1))
    across, down = np.meshgrid(np.linspace(0, 160, 640), np.linspace(0, 90, 360))
    ground = np.stack([across, down, across[:, ::-1]], axis=2) + 40
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for n in range(30 * seconds):
            picture = ground + grain[n % 8]
            for shape in range(6):
                left, top = int((shape * 97 + n * (1 + shape)) % 560), int((shape * 53 + n * shape // 2) % 300)
                picture[top : top + 60, left : left + 80] = [(shape * 40 + 60) % 255, 200 - shape * 20, n % 255]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_shards(folder: Path, samples: list[list[bytes]]) -> Path:
    """Write a shard folder of these JPEG samples, four per shard, each with a question and an answer."""
    folder.mkdir(parents=True)
    words = [END, "<|padding|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unknown|>", "yes"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:6])
    tokenizer.save(str(folder / TOKENIZER_FILE))
    rows, names = [], []
    for number in range(0, len(samples), 4):
        with PayloadWriter(folder, number // 4) as writer:
            names.append(writer.name)
            for i, jpegs in enumerate(samples[number : number + 4], number):
                first = writer.add(f"s{i}", [PayloadFrame(float(t), float(t), data) for t, data in enumerate(jpegs)])
                rows.append(row(f"s{i}", writer.name, first, jpegs, tokenizer))
    write_index(folder / INDEX_FILE, rows)
    files = [file_entry(folder, name) for name in (INDEX_FILE, TOKENIZER_FILE, *names)]
    about = {"recipe": {}, "recipe_hash": "", "decoder": "none", "decoder_version": ""}
    counts = {"samples": len(rows), "frames": sum(r.frames for r in rows)}
    counts["tokens"] = sum(len(r.token_ids) for r in rows)
    sources = [SourceEntry(name="made", format="made", weight=1.0, samples=len(rows))]
    about |= {"tokenizer_sha256": sha256_file(folder / TOKENIZER_FILE), "files": files, "sources": sources}
    write_manifest(folder, Manifest(image_size=SIZE, fps=1.0, **about, **counts))
    return folder


def row(sample_id: str, file: str, first: int, jpegs: list[bytes], tokenizer: Tokenizer) -> IndexRow:
    """Return the index row of a sample whose frames start at row group `first` of a payload file."""
    encoded = encode_conversation(tokenizer, [Turn("user", "what"), Turn("assistant", "yes")], len(jpegs))
    digest = PayloadHash()
    for data in jpegs:
        digest.add(data)
    return IndexRow(
        sample_id=sample_id,
        token_ids=np.array(encoded.token_ids, np.int32),
        supervised=np.array(encoded.supervised, bool),
        frame_positions=np.array(encoded.frame_positions, np.int32),
        timestamps=np.arange(len(jpegs), dtype=np.float64),
        file=file,
        first_row_group=first,
        frames=len(jpegs),
        duration=float(len(jpegs)),
        dataset="made",
        source="made",
        source_bytes=0,
        source_sha256="",
        payload_xxh3=digest.hexdigest(),
        decoder="none",
        decoder_version="",
        recipe_hash="",
        status="ok",
        reason="",
    )

"""Measure data preparation and data loading in one run, as medians of several rounds.

    python benchmarks/data.py [--json] [--rounds 5] [--seconds 60] [--video FILE] [--device cuda]

Times are CPU seconds of one process, which hardly depend on what else the machine does. Features and the loader are
measured in wall-clock seconds. The plain decoder is PyAV: it decodes every frame in one thread and drops it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.data_inputs import SIZE, make_video, write_shards  # noqa: E402
from data_prep.features import encode_shards, rows_by_shard  # noqa: E402
from ma2mba.data.dataset import Dataset, StoredFrames  # noqa: E402
from ma2mba.data.loader import Loader  # noqa: E402
from ma2mba.data.sampler import Sampler  # noqa: E402
from ma2mba.evaluation.report import cpu_model  # noqa: E402
from ma2mba.magc import Plan  # noqa: E402
from ma2mba.model.clip import ClipEncoder  # noqa: E402
from ma2mba.model.clip_config import ClipConfig  # noqa: E402
from ma2mba.shards.format import IndexRow  # noqa: E402
from ma2mba.shards.manifest import FeatureInfo  # noqa: E402
from ma2mba.shards.reader import ShardReader  # noqa: E402
from ma2mba.shards.writer import PayloadFrame, PayloadWriter, payload_hash  # noqa: E402
from ma2mba.training.streaming import Chunks  # noqa: E402
from ma2mba.video.decode import decode_video  # noqa: E402
from ma2mba.video.jpeg import to_jpeg  # noqa: E402
from ma2mba.video.pictures import clip_view  # noqa: E402

QUALITY, RANGE = 95, 32
TOKENS_PER_FRAME, CHUNK_TOKENS = 144, 4096
Rates = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; the median is shown (default: 5)")
    parser.add_argument(
        "--seconds", type=int, default=60, help="length of the generated video (360p, 30 fps, H.264; default: 60)"
    )
    parser.add_argument("--video", type=Path, help="measure with this video instead of a generated one")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the encoder"
    )
    parser.add_argument("--frames", type=int, help="frames to encode (default: 4,096 on a GPU, else 16)")
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        default=20_000,
        help="speed of the simulated trainer that the loader feeds (default: 20,000; the paper: 7,914)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    print(json.dumps(result)) if options.json else show(result)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    video = options.video or make_video(folder / "made.mp4", options.seconds)
    pictures = decode_sampled(video)
    jpegs = [to_jpeg(clip_view(picture, SIZE), QUALITY) for picture in pictures]
    lengths = [30, 64, 30, 300] * 4
    shards = write_shards(
        folder / "jpeg", [[jpegs[(i + k) % len(jpegs)] for k in range(n)] for i, n in enumerate(lengths)]
    )
    return {
        "machine": machine(options.device),
        "preparation": preparation(folder, video, pictures, jpegs, options.rounds),
        "reading": reading(shards, options.rounds),
        "features": features(folder, jpegs, options),
        "loader": loading(shards, options.rounds, options.tokens_per_second),
        "bytes_per_hour": bytes_per_hour(shards, folder / "features"),
    }


def machine(device: str) -> dict[str, Any]:
    """Return the hardware, its load, and the versions of the libraries."""
    names = ("av", "simplejpeg", "pyarrow", "numpy", "torch", "transformers", "xxhash")
    about = {"processor": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "device": device}
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name()
    return about | {"python": platform.python_version(), "versions": {name: version(name) for name in names}}


def decode_sampled(video: Path) -> list[np.ndarray]:
    """Return the frames of the video at 1 FPS."""
    return [sample.value for sample in decode_video(video, lambda picture: picture).samples]


def decode_all(video: Path) -> int:
    """Decode every frame, drop it, and return the number of frames."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "SLICE"
        return sum(1 for _ in container.decode(stream))


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def wall_seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def preparation(
    folder: Path, video: Path, pictures: list[np.ndarray], jpegs: list[bytes], rounds: int
) -> dict[str, dict[str, float]]:
    """Return sampled frames (at 1 FPS) per CPU second, and their ratio to the plain decoder's rate."""
    frames = [PayloadFrame(float(t), float(t), jpeg) for t, jpeg in enumerate(jpegs)]

    def write(number: int, some: list[PayloadFrame]) -> None:
        payload_hash(frame.data for frame in some)
        with PayloadWriter(folder, number) as writer:
            writer.add("a", some)

    def whole() -> None:
        made = decode_video(video, lambda picture: to_jpeg(clip_view(picture, SIZE), QUALITY)).samples
        write(1, [PayloadFrame(sample.t, sample.pts, sample.value) for sample in made])

    stages: dict[str, Callable[[], Any]] = {
        "plain decoder, all frames": lambda: decode_all(video),
        "decode": lambda: decode_sampled(video),
        "encode (resize, crop, JPEG)": lambda: [to_jpeg(clip_view(p, SIZE), QUALITY) for p in pictures],
        "write": lambda: write(0, frames),
        "decode + encode + write": whole,
    }
    taken: Rates = {name: [] for name in stages}
    for _ in range(rounds):
        for name, work in stages.items():
            taken[name].append(len(pictures) / max(cpu_seconds(work), 1e-9))
    limit = statistics.median(taken["plain decoder, all frames"])
    return {
        name: {"frames_per_second": statistics.median(rates), "ratio": statistics.median(rates) / limit}
        for name, rates in taken.items()
    }


def reading(shards: Path, rounds: int) -> dict[str, float]:
    """Return frames per CPU second when random ranges of 32 frames are read: as bytes, and decoded to pixels."""
    reader, random = ShardReader(shards), np.random.default_rng(1)
    rows = [row for row in reader.rows if row.frames >= RANGE]
    ways: dict[str, Callable[[IndexRow, int], Any]] = {
        "read": lambda row, start: reader.frames(row, start, start + RANGE),
        "read + decode to pixels": lambda row, start: StoredFrames(reader, row, SIZE)[start : start + RANGE],
    }
    rates: Rates = {name: [] for name in ways}
    for _ in range(rounds):
        places = [(row, int(random.integers(0, row.frames - RANGE + 1))) for row in rows]
        for name, way in ways.items():
            rates[name].append(
                RANGE * len(places) / max(cpu_seconds(lambda w=way, p=places: [w(*at) for at in p]), 1e-9)
            )
    return {name: statistics.median(values) for name, values in rates.items()}


def features(folder: Path, jpegs: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Return frames per second of CLIP ViT-L/14-336 (random weights): alone on ready pictures, and from shard to shard.

    On a CPU the encoder runs only one layer, of the same width, so the features have the same size.
    """
    on_gpu = options.device.startswith("cuda")
    frames, batch, layers = options.frames or (4096 if on_gpu else 16), 64 if on_gpu else 8, 24 if on_gpu else 2
    count = max(1, frames // 64)
    samples = [[jpegs[(i + k) % len(jpegs)] for k in range(frames // count)] for i in range(count)]
    pictures = ShardReader(write_shards(folder / "to_encode", samples))
    encoder = ClipEncoder(ClipConfig(num_hidden_layers=layers)).to(options.device, torch.bfloat16).eval()
    encoder.requires_grad_(False)
    info = FeatureInfo(tokens=TOKENS_PER_FRAME, width=encoder.config.hidden_size, encoder="0" * 32)
    ready = torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, device=options.device)

    def alone() -> None:
        with torch.inference_mode():
            for _ in range(max(1, frames // batch)):
                encoder(ready)
        if on_gpu:
            torch.cuda.synchronize()

    def through() -> None:
        shards = set(rows_by_shard(pictures.rows))
        encode_shards(pictures, encoder, info, folder / "features", shards, batch=batch, threads=os.cpu_count() or 1)

    if on_gpu:
        alone()
    encoded = frames // batch * batch
    rates: Rates = {"encoder alone": [], "shard to shard": []}
    for _ in range(min(options.rounds, 5 if on_gpu else 2)):
        rates["encoder alone"].append(encoded / wall_seconds(alone))
        rates["shard to shard"].append(encoded / wall_seconds(through))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return medians | {"ratio": medians["shard to shard"] / medians["encoder alone"]}


def loading(shards: Path, rounds: int, tokens_per_second: float) -> dict[str, float]:
    """Return samples per second without a trainer, and the share of its time that a trainer waits for data."""
    dataset = Dataset([shards], SIZE, TOKENS_PER_FRAME)
    rates = [consume(dataset, float("inf")) for _ in range(rounds)]
    fed = [consume(dataset, tokens_per_second) for _ in range(rounds)]
    return {
        "frames_per_sample": float(dataset.frames_N.mean()),
        "samples_per_second": statistics.median(rate for rate, _ in rates),
        "trainer_tokens_per_second": tokens_per_second,
        "waiting_share": statistics.median(share for _, share in fed),
    }


def consume(dataset: Dataset, tokens_per_second: float, steps: int = 4) -> tuple[float, float]:
    """Simulate a trainer that reads chunks as the real one does; return samples per second and its share of waiting."""
    sampler = Sampler(dataset.length_N, dataset.targets_N, dataset.frames_N, global_batch=4, micro_batch=1)
    with Loader(dataset, sampler, TOKENS_PER_FRAME) as loader:
        time.sleep(0.5 if tokens_per_second < float("inf") else 0)  # in this time a real trainer builds its engine
        started = time.perf_counter()
        for loaded, _ in zip(loader, range(steps), strict=False):
            for batch in loaded.batches:
                chunks = Chunks(batch, Plan(chunk_tokens=CHUNK_TOKENS), TOKENS_PER_FRAME, torch.device("cpu"))
                for i in (*range(len(chunks)), *reversed(range(len(chunks)))):  # forward, backward
                    time.sleep(chunks[i][0].numel() / tokens_per_second / 2)
        taken = time.perf_counter() - started
        return 4 * steps / taken, loader.waited / taken


def bytes_per_hour(shards: Path, features_folder: Path) -> dict[str, float]:
    """Return the size of the payload files for 3,600 frames."""
    frames = ShardReader(shards).manifest.frames
    stored = sum(path.stat().st_size for path in (shards / "payload").iterdir())
    per_frame = TOKENS_PER_FRAME * ClipConfig().hidden_size * 2
    features_stored = sum(path.stat().st_size for path in (features_folder / "payload").iterdir())
    rows = features_stored // per_frame
    return {
        f"jpeg (quality {QUALITY}, 4:4:4)": stored / frames * 3600,
        "features (bf16)": features_stored / rows * 3600,
    }


def show(result: dict[str, Any]) -> None:
    console, about = Console(), result["machine"]
    load, gpu = about["load"], about.get("gpu", "no GPU")
    console.print(f"{about['processor']}, {about['cores']} cores, load {load:.1f}, {gpu}")
    console.print(", ".join(f"{name} {number}" for name, number in about["versions"].items()))
    table = Table("one core", "frames/s", "ratio to the plain decoder", title="preparation: frames at 1 FPS")
    for name, stage in result["preparation"].items():
        table.add_row(name, f"{stage['frames_per_second']:,.0f}", f"{stage['ratio']:.2f}")
    for name, rate in result["reading"].items():
        limit = result["preparation"]["plain decoder, all frames"]["frames_per_second"]
        table.add_row(f"{name}, ranges of {RANGE}", f"{rate:,.0f}", f"{rate / limit:.2f}")
    console.print(table)
    made, fed = result["features"], result["loader"]
    console.print(
        f"features: {made['shard to shard']:,.1f} frames/s from shard to shard, "
        f"encoder alone {made['encoder alone']:,.1f} frames/s: ratio {made['ratio']:.2f}"
    )
    console.print(
        f"loader: {fed['samples_per_second']:,.1f} samples/s with {fed['frames_per_sample']:.0f} frames each; "
        f"a trainer of {fed['trainer_tokens_per_second']:,.0f} tokens/s waits {fed['waiting_share']:.2%} of its time"
    )
    for name, size in result["bytes_per_hour"].items():
        console.print(f"one hour of video as {name}: {size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()

"""Write a toy corpus: media, annotations in the real formats, recipes, a tokenizer and an evaluation."""

import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from data_prep.toy import words
from ma2mba.errors import UserError
from ma2mba.files import atomic_path, atomic_write
from ma2mba.progress import Reporter
from ma2mba.video.synthetic.movie import FPS, Movie, draw_frame, plan_movie, scene_count, write_movie
from ma2mba.video.synthetic.scenes import NEEDLES

SHORT_LENGTHS = (2, 4, 8, 16, 32)
"""Lengths of the short training videos in seconds: a curriculum before the long videos."""
CLIP_LENGTHS = (2, 3, 4, 6, 8, 12, 16, 20)
"""Lengths of the captioned clips in seconds."""
BUCKETS = ((30, "0_30_s"), (60, "30_60_s"), (120, "1_2_m"), (180, "2_3_m"), (600, "3_10_m"))
"""LLaVA-Video-178K's ranges of video length: (longest in seconds, name)."""
IMAGE_SIZE = 56
MARATHON_FPS = 2
"""Frames a second of marathons: a quarter of the work, and the same pictures at whole seconds."""


@dataclass(frozen=True)
class Amounts:
    """The number of videos, images, clips and marathons (videos of many minutes) to write."""

    videos: int
    short: int
    stills: int
    clips: int
    held_out: int
    marathons: int = 0

    @classmethod
    def derived(
        cls,
        videos: int,
        short: int | None,
        stills: int | None,
        clips: int | None,
        held_out: int | None,
        marathons: int = 0,
    ):
        """Return the given numbers; derive a number that is None from `videos`."""

        def pick(value: int | None, default: int) -> int:
            return default if value is None else value

        held = pick(held_out, max(len(NEEDLES), videos // 5))
        return cls(videos, pick(short, 2 * videos), pick(stills, 4 * videos), pick(clips, videos), held, marathons)


def bucket(seconds: int) -> str:
    """Return LLaVA-Video-178K's name for a duration."""
    return next((name for limit, name in BUCKETS if seconds <= limit), "10_m_up")


def plan_series(
    name: str, lengths: Iterable[tuple[int, int]], seed: int, needles: Callable[[int], bool]
) -> list[Movie]:
    """Plan one movie per (shortest, longest) seconds. Movie i has a needle if `needles(i)`; the kinds are balanced."""
    movies: list[Movie] = []
    kinds: list[str] = []
    shuffler = random.Random(f"{seed}/{name}/kinds")
    for i, (low, high) in enumerate(lengths):
        rng = random.Random(f"{seed}/{name}/{i}")
        kind = None
        if needles(i):
            kinds = kinds or shuffler.sample(list(NEEDLES), len(NEEDLES))
            kind = kinds.pop()
        seconds = rng.randint(low, high)
        movies.append(plan_movie(f"{name}/{i:05d}", seconds, kind, scene_count(seconds, rng), rng))
    return movies


def marathon_lengths(count: int, seconds: tuple[int, int], seed: int) -> list[tuple[int, int]]:
    """Return the lengths of `count` marathons, log-uniform in `seconds`: an hour is as rare as its neighbours."""
    rng = random.Random(f"{seed}/marathon/lengths")
    logs = [rng.uniform(math.log(seconds[0]), math.log(seconds[1])) for _ in range(count)]
    return [(round(math.exp(log)), round(math.exp(log))) for log in logs]


def generate(
    out: Path,
    amounts: Amounts,
    seconds: tuple[int, int],
    seed: int,
    workers: int,
    marathon_seconds: tuple[int, int] = (200, 1000),
) -> dict[str, int]:
    """Write a corpus into `out`, which must be new or empty; return the number of movies of each series."""
    _require_new(out)
    around = [(round(0.9 * s), round(1.1 * s)) for s in SHORT_LENGTHS if s < seconds[0]] or [seconds]
    everything = {
        "stills": plan_series("stills", [(2, 2)] * amounts.stills, seed, lambda i: i % 8 != 7),
        "clips": plan_series(
            "clips", [(s, s) for s in islice(cycle(CLIP_LENGTHS), amounts.clips)], seed, lambda i: i % 8 != 7
        ),
        "short": plan_series("short", islice(cycle(around), amounts.short), seed, lambda i: True),
        "long": plan_series("long", [seconds] * amounts.videos, seed, lambda i: True),
        "heldout": plan_series("heldout", [seconds] * amounts.held_out, seed + 1_000_003, lambda i: True),
    }
    if amounts.marathons:
        lengths = marathon_lengths(amounts.marathons, marathon_seconds, seed)
        everything["marathon"] = plan_series("marathon", lengths, seed, lambda i: True)
    _write_annotations(out, everything, seed)
    write_eval(out / "eval.jsonl", everything["heldout"])
    jobs = [
        (movie, out / "media")
        for name in ("marathon", "long", "heldout", "short", "clips", "stills")
        for movie in everything.get(name, [])
    ]
    write_media(jobs, workers)
    words.save_tokenizer(out / "tokenizer.json")
    _write_recipes(out)
    return {name: len(movies) for name, movies in everything.items()}


def generate_eval(out: Path, videos: int, seconds: tuple[int, int], seed: int, workers: int) -> int:
    """Write only needle videos and their questions (eval.jsonl) into `out`; return the number of videos."""
    _require_new(out)
    movies = plan_series("needles", [seconds] * videos, seed + 2_000_003, lambda i: True)
    write_media([(movie, out / "media") for movie in movies], workers)
    words.save_tokenizer(out / "tokenizer.json")
    write_eval(out / "eval.jsonl", movies, tasks=("needle",))
    return len(movies)


def _require_new(out: Path) -> None:
    """Raise UserError if `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists and is not empty. Choose a new folder or remove this one")


def write_media(jobs: list[tuple[Movie, Path]], workers: int) -> None:
    """Write each movie below its folder, with `workers` processes; a movie of the series `stills` as one PNG.

    Raise UserError if a process is killed.
    """
    pool = ProcessPoolExecutor(min(workers, len(jobs) or 1), multiprocessing.get_context("spawn"))
    try:
        with Reporter("writing toy media", len(jobs)) as reporter, pool:
            for _ in pool.map(_write_one, jobs, chunksize=2):
                reporter.advance()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that writes toy media was killed, perhaps because the machine ran out of memory. "
            "Remove the --out folder, then run the command again with fewer --workers"
        ) from error


def _write_one(job: tuple[Movie, Path]) -> None:
    """Write one movie below its folder. An image shows the first frame with the needle."""
    movie, media = job
    if not is_still(movie):
        fps = MARATHON_FPS if movie.name.startswith("marathon/") else FPS
        return write_movie(movie, media / f"{movie.name}.mp4", fps)
    index = movie.needle.first if movie.needle else 0
    with atomic_path(media / f"{movie.name}.png", sync=False) as temporary:
        Image.fromarray(draw_frame(movie, index)).save(temporary, format="PNG")
    return None


def is_still(movie: Movie) -> bool:
    """Return True if the movie is written as one image."""
    return movie.name.startswith("stills/")


def _write_annotations(out: Path, everything: dict[str, list[Movie]], seed: int) -> None:
    """Write the annotation files of all stages, each in the format of the stage's real data."""
    folder = out / "annotations"
    rng = random.Random(f"{seed}/talk")
    pairs = [_llava_record(movie, rng) for movie in everything["stills"] + everything["clips"]]
    _write_json(folder / "stage1.json", pairs)
    walks = [_scenewalk_record(movie) for movie in everything["short"] + everything["long"]]
    with atomic_write(folder / "stage1_5.jsonl") as file:
        file.writelines(json.dumps(record) + "\n" for record in walks)
    _write_questions(folder, everything["short"] + everything["long"], rng)
    _write_questions(folder / "marathon", everything.get("marathon", []), rng)


def _write_questions(folder: Path, movies: list[Movie], rng: random.Random) -> None:
    """Write the questions about some movies into a file for each range of lengths."""
    buckets: dict[str, list[dict]] = {}
    for movie in movies:
        buckets.setdefault(bucket(movie.seconds), []).extend(_video_records(movie, rng))
    for name, records in buckets.items():
        _write_json(folder / f"{name}_toy_oe.json", records)


def _write_json(path: Path, records: list[dict]) -> None:
    with atomic_write(path) as file:
        json.dump(records, file, indent=1)


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _llava_record(movie: Movie, rng: random.Random) -> dict:
    question = rng.choice(words.DESCRIBE)
    question = f"<image>\n{question}" if rng.random() < 0.5 else f"{question}\n<image>"
    medium = {"image": f"{movie.name}.png"} if is_still(movie) else {"video": f"{movie.name}.mp4"}
    return {"id": movie.name} | medium | {"conversations": _turns(question, words.caption(movie))}


def _scenewalk_record(movie: Movie) -> dict:
    scenes = [
        {"start_frame": s.start * FPS, "end_frame": s.stop * FPS, "start_fps": FPS, "end_fps": FPS}
        for s in movie.scenes
    ]
    talk = [turn for text in words.scene_captions(movie) for turn in _turns(words.DESCRIBE_SCENE, text)]
    return {
        "id": movie.name,
        "video": f"{movie.name}.mp4",
        "total_time": movie.seconds,
        "clip_num": len(scenes),
        "scenes": scenes,
        "conversations": talk,
    }


def _video_records(movie: Movie, rng: random.Random) -> list[dict]:
    """Return one record per question, as LLaVA-Video-178K does. In over half of the videos the needle comes first."""
    asked = words.questions(movie)
    first, rest = asked[:1], asked[1:]
    rng.shuffle(rest)
    asked = first + rest if rng.random() < 0.5 else rng.sample(asked, len(asked))
    source = f"{bucket(movie.seconds)}_toy"
    return [
        {
            "id": f"{movie.name}-{i}",
            "conversations": _turns(f"<image>\n{question}", answer),
            "data_source": source,
            "video": f"{movie.name}.mp4",
        }
        for i, (_, question, answer) in enumerate(asked)
    ]


def write_eval(path: Path, movies: list[Movie], tasks: tuple[str, ...] = ("needle", "order", "count")) -> None:
    """Write one line per question of the given tasks, with at most one order question per video."""
    lines = []
    for movie in movies:
        asked = {task: (question, answer) for task, question, answer in words.questions(movie)}
        for task in (task for task in tasks if task in asked):
            question, answer = asked[task]
            record: dict[str, Any] = {
                "id": f"{movie.name}-{task}",
                "video": f"media/{movie.name}.mp4",
                "question": question,
                "answer": answer,
            }
            record |= {"options": words.options(task), "show_options": False}  # the toy model learns open questions
            record |= {"task": task, "seconds": float(movie.seconds)}
            lines.append(json.dumps(record) + "\n")
    with atomic_write(path) as file:
        file.writelines(lines)


def _write_recipes(out: Path) -> None:
    """Write a build recipe for each stage, and stage2_long.yaml if there are marathons."""
    sources = {
        "stage1": [{"format": "llava", "annotations": ["annotations/stage1.json"], "media": "media"}],
        "stage1_5": [{"format": "scenewalk", "annotations": ["annotations/stage1_5.jsonl"], "media": "media"}],
        "stage2": _question_sources(out, "annotations"),
        "stage2_long": _question_sources(out, "annotations/marathon"),
    }
    for name, listed in sources.items():
        if not listed:
            continue
        stage = name.removesuffix("_long")
        recipe = {"stage": stage, "image_size": IMAGE_SIZE, "tokenizer": "tokenizer.json", "jpeg_quality": 95}
        with atomic_write(out / f"{name}.yaml") as file:
            yaml.safe_dump(recipe | {"sources": listed}, file, sort_keys=False)


def _question_sources(out: Path, folder: str) -> list[dict[str, Any]]:
    """Return the sources of a build recipe for the files that `_write_questions` has written into a folder."""
    return [
        {"format": "llava_video", "annotations": [f"{folder}/{path.name}"], "media": "media"}
        for path in sorted((out / folder).glob("*_toy_oe.json"))
    ]

"""The toy corpus is reproducible and balanced, and every needle is on one or two sampled frames."""

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from data_prep.toy import generate
from data_prep.toy.generate import plan_series
from data_prep.toy.words import NEEDLE_QUESTION
from ma2mba.cli.data import app, parse_seconds
from ma2mba.errors import UserError
from ma2mba.model.conversation import load_tokenizer
from ma2mba.video.blocks import read_frames
from ma2mba.video.synthetic.movie import FPS, plan_movie, write_movie
from ma2mba.video.synthetic.scenes import BACKGROUNDS, COLOURS, NEEDLES

SMALL = [
    "toy",
    "--videos",
    "2",
    "--seconds",
    "6:12",
    "--short",
    "4",
    "--stills",
    "4",
    "--clips",
    "4",
    "--held-out",
    "8",
]


def make(folder: Path, *extra: str) -> Path:
    result = CliRunner().invoke(app, [*SMALL, "--out", str(folder), "--workers", "2", *extra], catch_exceptions=False)
    assert result.exit_code == 0
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make(tmp_path_factory.mktemp("toy") / "a")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_content(corpus, tmp_path):
    assert contents(make(tmp_path / "b")) == contents(corpus)
    other = contents(make(tmp_path / "c", "--seed", "1"))
    assert other.keys() == contents(corpus).keys()
    assert other["annotations/stage1.json"] != contents(corpus)["annotations/stage1.json"]


def test_every_planned_needle_is_seen_once_or_twice_at_one_fps():
    """In plans of every length, a needle is visible for 1 to 2 s, at a whole second, and never at the ends."""
    for seconds in (2, 3, 4, 5, 8, 16, 31, 90, 600):
        for movie in plan_series("x", [(seconds, seconds)] * 200, seed=seconds, needles=lambda _: True):
            needle = movie.needle
            assert FPS <= needle.stop - needle.first <= 2 * FPS
            assert 0 <= needle.first < needle.stop <= seconds * FPS
            assert 1 <= len(needle.seconds) <= 2
            assert needle.seconds[-1] < seconds
            if seconds >= 4:
                assert needle.first >= FPS
                assert needle.stop <= (seconds - 1) * FPS
            assert [scene.start for scene in movie.scenes[1:]] == [scene.stop for scene in movie.scenes[:-1]]
            assert all(scene.start < scene.stop for scene in movie.scenes)
            if seconds >= 30:
                assert 3 <= len(movie.scenes) <= 6


def test_kinds_are_balanced():
    kinds = Counter(movie.needle.kind for movie in plan_series("x", [(9, 9)] * 44, seed=1, needles=lambda _: True))
    assert set(kinds) == set(NEEDLES)
    assert max(kinds.values()) - min(kinds.values()) <= 1


@pytest.mark.parametrize("kind", NEEDLES)
def test_the_needle_is_on_exactly_the_sampled_frames_of_its_plan(kind, tmp_path):
    """Decoded at 56 pixels, the symbol's colour fills part of these frames and of no other frame."""
    movie = plan_movie("n", 20, kind, scenes=3, rng=random.Random(3))
    write_movie(movie, tmp_path / "n.mp4")
    frames = read_frames(tmp_path / "n.mp4", 56).frames_NHWC.astype(int)
    assert len(frames) == 20
    near = (np.abs(frames - np.array(NEEDLES[kind][0])).max(axis=3) < 60).mean(axis=(1, 2))
    seen = [k for k in range(20) if near[k] > 0.08]
    assert seen == movie.needle.seconds
    assert near[[k for k in range(20) if k not in seen]].max() < 0.01


def test_scenes_hold_no_colour_of_a_needle():
    quiet = np.array([*COLOURS.values(), *BACKGROUNDS.values()])
    for colour, _ in NEEDLES.values():
        assert np.abs(quiet - np.array(colour)).max(axis=1).min() > 60 or colour == (255, 255, 255)


def test_annotations_name_files_that_exist_and_heldout_is_apart(corpus):
    trained = set()
    for path in (corpus / "annotations").iterdir():
        text = path.read_text()
        records = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        trained |= {record.get("video") or record["image"] for record in records}
    evaluated = [json.loads(line) for line in (corpus / "eval.jsonl").read_text().splitlines()]
    assert all((corpus / "media" / name).is_file() for name in trained)
    assert all((corpus / line["video"]).is_file() for line in evaluated)
    assert not trained & {line["video"].removeprefix("media/") for line in evaluated}
    needles = [line for line in evaluated if line["task"] == "needle"]
    assert Counter(line["answer"] for line in needles) == Counter(list(NEEDLES))
    assert all(line["question"] == NEEDLE_QUESTION and line["options"] == list(NEEDLES) for line in needles)
    assert all(line["answer"] in line["options"] for line in evaluated)


def test_the_tokenizer_knows_every_word_and_gives_the_text_back(corpus):
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    assert [
        tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|padding|>", "<|system|>", "<|user|>", "<|assistant|>")
    ] == [
        0,
        1,
        2,
        3,
        4,
    ]
    unknown = tokenizer.token_to_id("<|unknown|>")
    for path in (corpus / "annotations").glob("*.json"):
        for record in json.loads(path.read_text()):
            for turn in record["conversations"]:
                text = turn["value"].replace("<image>", "").strip().lower()
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                assert unknown not in ids
                assert tokenizer.decode(ids) == text


def test_needle_videos_of_any_length(tmp_path):
    args = ["toy-eval", "--out", str(tmp_path / "e"), "--videos", "2", "--seconds", "150:150", "--workers", "1"]
    assert CliRunner().invoke(app, args, catch_exceptions=False).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "e/eval.jsonl").read_text().splitlines()]
    assert [(line["task"], line["seconds"]) for line in lines] == [("needle", 150.0)] * 2
    assert len(read_frames(tmp_path / "e" / lines[0]["video"], 56).frames_NHWC) == 150


def test_marathons_are_a_build_recipe_of_their_own(corpus, tmp_path):
    """Their lengths are log-uniform, and the rest of the corpus keeps its bytes."""
    longer = contents(make(tmp_path / "m", "--marathons", "3", "--marathon-seconds", "40:90"))
    assert {name: longer[name] for name in contents(corpus)} == contents(corpus)
    added = {name for name in longer if name not in contents(corpus)}
    media = {name for name in added if name.endswith(".mp4")}
    assert media == {f"media/marathon/0000{i}.mp4" for i in range(3)}
    assert "stage2_long.yaml" in added
    sources = yaml.safe_load(longer["stage2_long.yaml"])["sources"]
    asked = [json.loads(longer[name]) for source in sources for name in source["annotations"]]
    needles = [r for file in asked for r in file if NEEDLE_QUESTION in r["conversations"][0]["value"]]
    assert {f"media/{record['video']}" for record in needles} == media
    for name in media:
        assert 40 <= len(read_frames(tmp_path / "m" / name, 56).frames_NHWC) <= 90
    lengths = [low for low, _ in generate.marathon_lengths(2000, (100, 10000), 0)]
    assert min(lengths) < 105
    assert max(lengths) > 9500
    assert 850 < sorted(lengths)[1000] < 1170  # log-uniform: half of them are below the geometric mean


@pytest.mark.parametrize("text", ["60", "90:60", "1:5", "a:b", "1:2:3"])
def test_bad_lengths_are_refused(text):
    with pytest.raises(UserError, match="--seconds"):
        parse_seconds(text)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        CliRunner().invoke(app, [*SMALL, "--out", str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def be_killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_write_one", be_killed)
    movies = plan_series("stills", [(2, 2)] * 3, 0, lambda i: True)
    with pytest.raises(UserError, match="was killed"):
        generate.write_media([(movie, tmp_path) for movie in movies], 2)

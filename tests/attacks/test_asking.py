"""`ask` and `eval` with files from strangers: no file hangs or kills them, takes all memory or leaves its folder."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.toy.words import build_tokenizer
from ma2mba.limits import limits
from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video import frames
from tests.attacks.fake_readers import ATTACKS, hang
from tests.forked import Outcome, run
from tests.unit.video.numbered_video import write

LINE = {"id": "a", "video": "good.png", "question": "What?", "answer": "one", "options": ["one", "two"], "task": "t"}
MS = Fraction(1, 1000)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model for frames of 336 pixels."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    language = {"d_model": 32, "n_layer": 2, "d_state": 16, "headdim": 16, "ssd_block": 16}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "language_model": language | {"vocab_size": tokenizer.get_vocab_size()},
        "vision": vision | {"image_size": 336, "patch_size": 84},
    }
    torch.manual_seed(0)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_model(VideoMa2mba(ModelConfig.model_validate(config)), folder / "tokenizer.json", folder / "model")
    return folder / "model"


@pytest.fixture
def limited(monkeypatch):
    """A function that sets limits for the command and its worker."""

    def limit(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"MA2MBA_LIMIT_{name.upper()}", str(value))
        limits.cache_clear()

    yield limit
    limits.cache_clear()


def save_picture(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(path)
    return path


def ask(video: Path | str, model: Path, *options: str, cwd: Path | None = None) -> Outcome:
    return run("ask", "--model", model, "--max-tokens", "2", "--device", "cpu", "--json", *options, video, "?", cwd=cwd)


def evaluate(task: Path, model: Path, *options: str | Path) -> Outcome:
    return run("eval", "--model", model, "--task", task, "--device", "cpu", "--json", *options)


def task_of(folder: Path, *lines: dict) -> Path:
    """Write a task file about good.png; each line changes keys."""
    folder.mkdir(exist_ok=True)
    save_picture(folder / "good.png")
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))
    return path


def test_two_frames_hours_apart_take_the_memory_of_two(model, tmp_path):
    write(tmp_path / "hold.mkv", [0, 3 * 3600 * 1000], MS, codec="mpeg4", options={})
    outcome = ask(tmp_path / "hold.mkv", model)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["frames"] == 21_600  # the last is shown as long as the first, as in ffmpeg
    assert outcome.peak_mb < 1000


@pytest.mark.parametrize(("attack", "said"), ATTACKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_decoder_that_fails_ends_ask_in_one_line(model, tmp_path, monkeypatch, limited, attack, said):
    limited(stall_seconds=2, decoder_gb=0.2)
    monkeypatch.setattr(frames, "read_item", attack)
    outcome = ask(save_picture(tmp_path / "bad.png"), model)
    assert outcome.refused, outcome
    assert said in outcome.err
    assert "bad.png" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.peak_mb < 1000


@pytest.mark.parametrize(("attack", "said"), ATTACKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_decoder_that_fails_costs_an_evaluation_only_its_questions(
    model, tmp_path, monkeypatch, limited, attack, said
):
    limited(stall_seconds=2, decoder_gb=0.2)
    monkeypatch.setattr(frames, "read_item", attack)
    task = task_of(tmp_path, {"id": "1", "video": "bad.png"}, {"id": "2"}, {"id": "3", "video": "bad.png"}, {"id": "4"})
    save_picture(tmp_path / "bad.png")
    outcome = evaluate(task, model)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["n"], result["unreadable"]) == (2, 2)
    (video,) = result["unreadable_videos"]
    assert (video["video"], video["questions"]) == (str(tmp_path / "bad.png"), 2)
    assert said in video["reason"]
    assert [record["id"] for record in result["records"] if "error" not in record] == ["2", "4"]
    assert outcome.peak_mb < 1000


def test_an_evaluation_without_a_usable_video_is_refused(model, tmp_path):
    task = task_of(tmp_path, {"video": "bad.png"}, {"video": "worse.mkv"})
    for name in ("bad.png", "worse.mkv"):
        (tmp_path / name).write_bytes(b"no picture")
    outcome = evaluate(task, model, "--out", tmp_path / "out")
    assert outcome.refused, outcome
    assert "no question can be answered" in outcome.err
    assert "bad.png: " in outcome.err
    assert "1 more videos cannot be used" in outcome.err
    assert not (tmp_path / "out/report.json").exists()


def test_frames_that_are_not_held_need_no_room(model, tmp_path, limited):
    """30 frames of 336 pixels take 10 MB: `ask` holds a few of them at a time."""
    write(tmp_path / "long.mkv", [1000 * k for k in range(30)], MS, codec="mpeg4", options={})
    limited(frames_gb=0.000001)
    outcome = ask(tmp_path / "long.mkv", model)
    assert outcome.code == 0, outcome
    assert json.loads(outcome.out)["frames"] == 30


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder of things that are not files."""
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


ODD = ("fifo.mp4", "loop.mp4", "device.mp4", "folder.mp4", "missing.mp4", "x" * 300)


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_a_file_is_refused_as_a_video(model, odd, name):
    outcome = ask(odd / name, model)
    assert outcome.refused, outcome
    assert "Give the path of a video file" in outcome.err
    assert outcome.seconds < 30


@pytest.mark.parametrize("name", ["fifo.mp4", "loop.mp4", "device.mp4", "folder.mp4", "missing.mp4"])
def test_what_is_not_a_file_is_refused_as_a_task_file_and_as_its_video(model, odd, name):
    for outcome in (evaluate(odd / name, model), evaluate(task_of(odd, {"video": name}), model)):
        assert outcome.refused, outcome
        assert outcome.seconds < 30


@pytest.mark.parametrize("name", ["-dash.mkv", "12:30 news.mkv", "concat:a.mkv", "pipe:0.mkv", "http:/127.0.0.1/a.mkv"])
def test_names_that_look_like_options_and_addresses_are_files(model, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path / name, [0, 1000], MS, codec="mpeg4", options={}, format="matroska")
    outcome = ask(name, model, "--", cwd=tmp_path)
    assert outcome.code == 0, outcome.err


def test_a_question_that_is_not_text_is_refused(model, tmp_path):
    outcome = run("ask", save_picture(tmp_path / "a.png"), "what\udcff?", "--model", model)
    assert outcome.refused
    assert "the question is not valid UTF-8" in outcome.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{secret}", "is an absolute path"),
        ("../secret.png", "leads out of its folder"),
        ("sub/../../secret.png", "leads out of its folder"),
        ("link.png", "is a symbolic link that leads out of its folder"),
        ("out/secret.png", "is a symbolic link that leads out of its folder"),
        ("good.png\0", "contains control characters"),
        ("\x1b]0;x\x07.png", "contains control characters"),
        ("", "is an empty name"),
        ("\ud83d.png", "is not valid Unicode"),
        ("x" * 5000, "is longer than 4,096 letters"),
    ],
)
def test_a_task_file_names_no_video_outside_its_folder(model, tmp_path, name, said):
    secret = save_picture(tmp_path / "secret.png")
    folder = tmp_path / "task"
    task = task_of(folder, {}, {"video": name.format(secret=secret)})
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    outcome = evaluate(task, model)
    assert outcome.refused, outcome
    assert f"{task}, line 2: video " in outcome.err
    assert said in outcome.err
    assert "\x1b" not in outcome.err


def test_videos_elsewhere_are_read_with_media(model, tmp_path):
    task = task_of(tmp_path / "task", {"video": "sub/a.png"})
    (tmp_path / "videos/sub").mkdir(parents=True)
    save_picture(tmp_path / "videos/sub/a.png")
    assert evaluate(task, model).refused
    outcome = evaluate(task, model, "--media", tmp_path / "videos")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["records"][0]["video"] == str(tmp_path / "videos/sub/a.png")
    assert evaluate(task, model, "--media", tmp_path / "nowhere").refused


DEEP = '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (DEEP, "nested too deeply"),
        (json.dumps(LINE)[:-1] + ', "answer": "two"}', "the key 'answer' is given twice"),
        (json.dumps(LINE)[:-1] + ', "x": ' + "9" * 5000 + "}", "4300 digits"),
        (json.dumps(LINE | {"task": "a\x1b[31m"}), "task: Value error, contains control characters"),
        (json.dumps(LINE | {"id": "a\0"}), "id: Value error, contains control characters"),
        (json.dumps(LINE | {"answer": "z" * 10_000_000}), "is not among its options"),
        (json.dumps(LINE | {"k" * 200_000: 1})[:-1] + ', "' + "k" * 200_000 + '": 1}', "is given twice"),
        ("[" * 3, "not JSON"),
    ],
    ids=["deep", "twice", "digits", "task", "id", "long answer", "long key", "cut"],
)
def test_a_malformed_line_is_refused_in_one_short_line(model, tmp_path, line, said):
    task = task_of(tmp_path, {})
    task.write_text(task.read_text() + line + "\n")
    outcome = evaluate(task, model)
    assert outcome.refused, outcome
    assert f"{task}, line 2: " in outcome.err
    assert said in outcome.err
    assert len(outcome.err) < 1000
    assert outcome.peak_mb < 1000


@pytest.mark.parametrize("size", [2 << 40, 100_000_000])
def test_a_line_without_an_end_is_refused(model, tmp_path, size):
    with open(tmp_path / "eval.jsonl", "wb") as file:
        file.truncate(size)
    outcome = evaluate(tmp_path / "eval.jsonl", model)
    assert outcome.refused, outcome
    assert "line 1: longer than 64,000,000 bytes. Set MA2MBA_LIMIT_TEXT_MB" in outcome.err
    assert outcome.peak_mb < 1000


def test_lines_and_bytes_are_limited(model, tmp_path, limited):
    task = task_of(tmp_path, *[{}] * 20)
    limited(questions=19)
    assert "more than 19 lines. Set MA2MBA_LIMIT_QUESTIONS" in evaluate(task, model).err
    limited(questions=20, text_mb=0.0004)
    outcome = evaluate(task, model)
    assert outcome.refused
    assert "larger than 800 bytes. Set MA2MBA_LIMIT_TEXT_MB" in outcome.err


def test_a_question_of_megabytes_is_refused(model, tmp_path):
    outcome = evaluate(task_of(tmp_path, {}, {"question": "what " * 6_000_000}), model)
    assert outcome.refused, outcome
    assert outcome.peak_mb < 1000
    assert "line 2: question: " in outcome.err
    assert "MA2MBA_LIMIT_QUESTION_KB" in outcome.err


@pytest.mark.parametrize("value", ["1e300", "nan", "inf", "0", "-1", "", "9" * 5000])
@pytest.mark.parametrize("name", ["text_mb", "streams", "megapixels"])
def test_an_impossible_limit_is_refused(limited, name, value, tmp_path):
    limited(**{name: value})
    outcome = run("eval", "--model", tmp_path, "--task", task_of(tmp_path, {}))
    assert outcome.refused, outcome
    assert f"MA2MBA_LIMIT_{name.upper()}" in outcome.err


def test_escapes_and_markup_in_texts_stay_off_the_terminal(model, tmp_path):
    said = "\x1b]0;pwned\x07[red]x[/red]"
    task = task_of(tmp_path, {"question": said, "answer": said, "options": [said], "task": "[red]t[/red]"})
    outcome = run("eval", "--model", model, "--task", task, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    assert "[red]t[/red]" in outcome.out


def test_a_fake_decoder_does_nothing_to_a_good_file(model, tmp_path, monkeypatch):
    """Else the tests above would show nothing."""
    monkeypatch.setattr(frames, "read_item", hang)
    assert ask(save_picture(tmp_path / "good.png"), model).code == 0

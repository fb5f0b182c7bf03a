"""Builds from real files always give the same bytes, and report everything that could not be used."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml
from PIL import Image

from data_prep.build import build
from data_prep.toy.words import save_tokenizer
from ma2mba.errors import UserError
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.manifest import ShardDamaged
from ma2mba.shards.reader import ShardReader, find_damage
from ma2mba.video import pool
from tests.unit.data_prep.stopped_worker import in_the_background, stop_within_a_clip
from tests.unit.video.numbered_video import expected, write

ROOT = Path(__file__).parents[3]


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """Six videos, an image, broken media, and annotations of all three formats about them."""
    folder = tmp_path_factory.mktemp("material")
    media = folder / "media"
    media.mkdir()
    save_tokenizer(folder / "tokenizer.json")
    for i in range(6):
        write(media / f"{i}.mp4", [k * 1001 for k in range(150 + 40 * i)], Fraction(1, 30000))
    Image.fromarray(np.full((40, 90, 3), 77, np.uint8)).save(media / "still.png")
    (media / "text.mp4").write_text("no video" * 99)
    (media / "empty.mp4").touch()
    (media / "short.png").write_bytes((media / "still.png").read_bytes()[:60])
    write_annotations(folder)
    return folder


def write_annotations(folder: Path) -> None:
    asked = {"Which symbol appeared?": "red star", "How many scenes were there?": "four"}
    video = [
        {"id": f"{i}-{j}", "data_source": "0_30_s", "video": f"{i}.mp4", "conversations": turns(f"<image>\n{q}", a)}
        for i in range(6)
        for j, (q, a) in enumerate(asked.items())
    ]
    video.append({"id": "bad", "video": "text.mp4", "conversations": turns("<image>\nq", "four")})
    pairs = [
        {
            "id": "p0",
            "image": "still.png",
            "conversations": turns("Describe the picture.\n<image>", "a red star appears."),
        },
        {
            "id": "p1",
            "image": "short.png",
            "conversations": turns("<image>\nDescribe the picture.", "a red star appears."),
        },
        {"id": "p2", "video": "empty.mp4", "conversations": turns("<image>\nDescribe the picture.", "four")},
        {"id": "p3", "video": "gone.mp4", "conversations": turns("<image>\nDescribe the picture.", "four")},
        {"id": "p4", "conversations": turns("how many", "four")},
        {"id": "p5", "image": "still.png", "conversations": turns("no mark", "four")},
    ]
    cuts = [(0, 45), (45, 46), (46, 150)]
    scenes = [{"start_frame": a, "end_frame": b, "start_fps": 30, "end_fps": 30} for a, b in cuts]
    talk = [turn for word in ("one.", "two.", "three.") for turn in turns("Describe this scene.", word)]
    walk = {"id": "w", "video": "0.mp4", "total_time": 5, "clip_num": 3, "scenes": scenes, "conversations": talk}
    late = walk | {"id": "late", "scenes": scenes[:2] + [{"start_frame": 150, "end_frame": 999}]}
    (folder / "video.json").write_text(json.dumps(video))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "walk.jsonl").write_text(json.dumps(walk) + "\n" + json.dumps(late) + "\n")


SOURCES = [
    {"format": "llava_video", "annotations": "video.json", "media": "media"},
    {"format": "llava", "annotations": ["pairs.json"], "media": "media"},
    {"format": "scenewalk", "annotations": "walk.jsonl", "media": "media"},
]


def recipe(folder: Path, name: str = "recipe.yaml", **changes) -> Path:
    content = {
        "stage": "stage2",
        "tokenizer": "tokenizer.json",
        "image_size": 32,
        "clips_per_part": 3,
        "sources": SOURCES,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(content | changes))
    return path


def command(*args: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", "build", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(material, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "shards"
    report, rejects = build(recipe(material), out, workers=2)
    return out, report, rejects


def test_two_workers_or_one_give_the_same_bytes(built, material, tmp_path):
    build(recipe(material), tmp_path / "s", workers=1)
    assert contents(tmp_path / "s") == contents(built[0])
    assert {"manifest.json", "index.parquet", "rejects.jsonl", "report.json", "tokenizer.json"} < contents(
        built[0]
    ).keys()
    assert find_damage(built[0]) == []


def test_what_cannot_be_used_is_named_with_the_reason(built):
    out, report, rejects = built
    found = {(reject.sample_id, reject.media): reject.reason for reject in rejects}
    assert len(found) == len(rejects) == report["rejected"] == 6
    assert "not a readable video" in found["text.mp4", "text.mp4"]
    assert "not a readable image" in found["p1", "short.png"]
    assert found["p2", "empty.mp4"] == "the file is empty"
    assert found["p3", "gone.mp4"] == "no such file"
    assert found["p5", "still.png"] == "malformed record: turn 1 has 0 <image> marks, not 1"
    assert found["late", "0.mp4"] == "its last scene starts at frame 150, but it has 150 frames"
    assert [json.loads(line)["reason"] for line in (out / "rejects.jsonl").read_text().splitlines()] == [
        reject.reason for reject in rejects
    ]


def test_counts_before_and_after_grouping(built):
    report = built[1]
    assert (report["records"], report["conversations_before_grouping"], report["conversations_after_grouping"]) == (
        21,
        20,
        14,
    )
    assert report["samples"] == 9
    assert report["scenes_without_a_sampled_frame"] == 1


def test_supervised_tokens_are_exactly_the_answers(built):
    reader = ShardReader(built[0])
    tokenizer = load_tokenizer(reader.tokenizer_path)
    rows = {row.sample_id: row for row in reader.rows}
    answers = {
        "0.mp4": "red star<|endoftext|> four<|endoftext|>",
        "p0": "a red star appears.<|endoftext|>",
        "p4": "four<|endoftext|>",
        "w": "one.<|endoftext|> three.<|endoftext|>",
    }
    for sample_id, text in answers.items():
        row = rows[sample_id]
        assert tokenizer.decode(row.token_ids[row.supervised].tolist(), skip_special_tokens=False) == text
    question = rows["0.mp4"].token_ids[: rows["0.mp4"].frame_positions[0]]
    assert tokenizer.decode(question.tolist(), skip_special_tokens=False).endswith("<|user|>")
    assert (rows["p0"].frames, rows["p4"].frames, rows["p4"].file) == (1, 0, "")


def test_scenes_get_the_frames_that_they_show(built):
    """0.mp4 is sampled at its frames 0, 29, 59, 89, 119 and 149: two of scene one, none of two, four of three."""
    reader = ShardReader(built[0])
    (row,) = [row for row in reader.rows if row.sample_id == "w"]
    first, second = sorted(set(row.frame_positions.tolist()))
    assert row.frame_positions.tolist() == [first] * 2 + [second] * 4


def test_frames_are_those_on_screen_and_carry_their_provenance(built, material):
    reader = ShardReader(built[0])
    (row,) = [row for row in reader.rows if row.sample_id == "5.mp4"]
    assert row.timestamps.tolist() == list(range(12))
    assert (row.source, row.source_bytes) == ("5.mp4", (material / "media/5.mp4").stat().st_size)
    assert (row.status, row.decoder) == ("ok", "pyav")
    # 1/24 s: the writer of the test file gives its last frame the length of one at 24 fps (measured 0.0083)
    assert row.duration == pytest.approx(350 * 1001 / 30000, abs=1 / 24)
    frames = [simplejpeg.decode_jpeg(data) for data in reader.frames(row)]
    assert {frame.shape for frame in frames} == {(32, 32, 3)}
    # the centre 32 of 160 columns shows bits 4 and 5 of the frame's number
    bits = [(int(f[16, 8, 1] > 127), int(f[16, 24, 1] > 127)) for f in frames]
    numbers = expected([Fraction(k * 1001, 30000) for k in range(350)], range(12))
    assert bits == [(n >> 4 & 1, n >> 5 & 1) for n in numbers]


def test_a_killed_build_resumes_to_the_same_bytes(built, material, tmp_path):
    out = tmp_path / "s"
    process = command(str(recipe(material)), "--out", str(out), "--workers", "1", start_new_session=True)
    while process.poll() is None and len(list((out / ".build").glob("part-*.json"))) < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError):
        ShardReader(out)
    first = out / "payload/part-00000.parquet"
    stamp = first.stat().st_mtime_ns
    (out / "payload/.part-00001.parquet.99.tmp").write_bytes(b"left over")
    build(recipe(material), out, workers=2)
    assert contents(out) == contents(built[0])
    assert first.stat().st_mtime_ns == stamp


def test_a_finished_build_is_left_alone(built, material):
    before = {path: path.stat().st_mtime_ns for path in built[0].rglob("*")}
    report, rejects = build(recipe(material), built[0], workers=1)
    assert report == built[1] | {"already_built": True}
    assert rejects == built[2]
    assert {path: path.stat().st_mtime_ns for path in built[0].rglob("*")} == before


def test_another_recipe_in_the_same_folder_is_refused(built, material):
    with pytest.raises(UserError, match="image_size: 32 -> 48"):
        build(recipe(material, "other.yaml", image_size=48), built[0], workers=1)


@pytest.mark.parametrize(
    ("number", "stall", "reason"),
    [(signal.SIGSTOP, 5.0, "no progress for 5 s"), (signal.SIGSEGV, pool.STALL, "crashed (SIGSEGV)")],
)
def test_a_decoder_that_hangs_or_crashes_costs_only_its_clip(number, stall, reason, built, material, tmp_path):
    """A worker stops, or crashes, in the middle of a build, as native code does."""

    def strike():
        pid = stop_within_a_clip(".mp4", (tmp_path / "s/.build/part-00000.json").exists)
        if number != signal.SIGSTOP:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)

    thread = in_the_background(strike)
    report, rejects = build(recipe(material), tmp_path / "s", workers=1, stall=stall)
    thread.join(30)
    lost = [reject for reject in rejects if reason in reject.reason]
    assert len(lost) == 1
    assert report["samples"] + report["rejected"] == built[1]["samples"] + built[1]["rejected"]
    assert find_damage(tmp_path / "s") == []


@pytest.mark.parametrize("finished", [1, 0])
def test_a_worker_that_crashes_between_shards_costs_no_clip(finished, built, material, tmp_path, monkeypatch):
    """A crash of a worker that has not finished any shard is our own fault: the next worker would crash too."""
    give, struck = pool._Worker.give, []

    def strike(worker, task):
        if len(struck) == finished:
            os.kill(worker.process.pid, signal.SIGSEGV)
            worker.process.wait()
        struck.append(worker)
        give(worker, task)

    monkeypatch.setattr(pool._Worker, "give", strike)
    if not finished:
        with pytest.raises(RuntimeError, match=r"crashed \(SIGSEGV\) before its first item"):
            build(recipe(material), tmp_path / "s", workers=1)
        return
    build(recipe(material), tmp_path / "s", workers=1)
    assert struck[0] is struck[1] is not struck[2]
    assert contents(tmp_path / "s") == contents(built[0])


def test_damaged_media_are_kept_in_part_only_by_recipe(material, tmp_path):
    times = write(material / "media/cut.mkv", range(500), Fraction(1, 25))
    whole = (material / "media/cut.mkv").read_bytes()
    (material / "media/cut.mkv").write_bytes(whole[: len(whole) // 2])
    records = [{"id": n, "video": n, "conversations": turns("<image>\nq", "four")} for n in ("cut.mkv", "0.mp4")]
    (material / "cut.json").write_text(json.dumps(records))
    sources = [{"format": "llava", "annotations": "cut.json", "media": "media"}]
    _, rejects = build(recipe(material, "reject.yaml", sources=sources), tmp_path / "reject", workers=1)
    assert "truncated" in rejects[0].reason
    report, _ = build(recipe(material, "keep.yaml", sources=sources, on_damage="keep"), tmp_path / "keep", workers=1)
    row = ShardReader(tmp_path / "keep").rows[0]
    assert (report["partial"], row.status) == (1, "partial")
    assert "truncated" in row.reason
    assert 4 <= row.frames < len(times) // 25


def test_altered_shards_are_refused(built, tmp_path):
    copy = tmp_path / "copy"
    for name, data in contents(built[0]).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    reader = ShardReader(copy)
    row = reader.rows[0]
    data = bytearray((copy / row.file).read_bytes())
    data[data.index(reader.frames(row, 0, 1)[0]) + 50] ^= 4
    (copy / row.file).write_bytes(data)
    with pytest.raises(ShardDamaged, match=row.file):
        ShardReader(copy).frames(row, 0, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "x y", "sze": 3, "sources": [SOURCES[0] | {"media": 1}]}, ["stage:", "sze:", "sources.0.media:"]),
        ({"sources": [SOURCES[0] | {"annotations": "gone.json"}]}, ["sources.0.annotations.0", "gone.json is not"]),
        ({"sources": [SOURCES[0] | {"media": "gone"}]}, ["sources.0.media", "is not a folder"]),
        ({"tokenizer": "gone.json"}, ["gone.json: no such tokenizer file"]),
        ({"tokenizer": "video.json"}, ["video.json: not a tokenizer.json"]),
        ({"sources": []}, ["sources: List should have at least 1 item"]),
    ],
)  # fmt: skip
def test_a_bad_recipe_writes_nothing(changes, said, material, tmp_path):
    with pytest.raises(UserError) as caught:
        build(recipe(material, "bad.yaml", **changes), tmp_path / "s", workers=1)
    assert all(words in str(caught.value) for words in said)
    assert not (tmp_path / "s").exists()


def test_exit_codes_and_messages(material, tmp_path):
    (material / "none.json").write_text(
        json.dumps([{"id": "x", "video": "text.mp4", "conversations": turns("<image>", "four")}])
    )
    sources = [{"format": "llava", "annotations": "none.json", "media": "media"}]
    process = command(
        str(recipe(material, "none.yaml", sources=sources)), "--out", str(tmp_path / "s"), "--workers", "1"
    )
    out, err = process.communicate()
    assert process.returncode == 2
    assert "error:" in err
    assert "none.json line 1, record 1 text.mp4: not a readable video" in err
    assert not (tmp_path / "s").exists()
    process = command(str(tmp_path / "gone.yaml"), "--out", str(tmp_path / "s"))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert "gone.yaml: cannot be read (No such file or directory)" in err


def test_the_command_reports_as_json_or_table(built, material):
    process = command(str(recipe(material)), "--out", str(built[0]), "--json")
    out, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["already_built"] is True
    process = command(str(recipe(material)), "--out", str(built[0]), env=os.environ | {"COLUMNS": "200"})
    out, _ = process.communicate()
    assert "already built by this recipe" in out
    assert "gone.mp4" in out
    assert "no such file" in out


def test_a_folder_with_other_files_is_left_alone(material, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        build(recipe(material), tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

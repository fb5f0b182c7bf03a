"""Benchmarks are asked as they say: with the subtitles of the sampled frames, and about a stretch of a video."""

import json

import pytest

from ma2mba.evaluation.benchmarks import read_benchmark
from ma2mba.evaluation.evaluate import Questions, evaluate
from tests.unit.evaluation.published import MAKERS


def answers(name, folder, model_folder, out, frames="1fps", **options) -> dict[str, dict]:
    items = read_benchmark(name, folder, subtitles=bool(options.pop("subtitles", False)))
    evaluate(model_folder, Questions(items, str(folder), name), out, frames, **options)
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return {record["id"]: record for record in records}


@pytest.fixture
def data(request, tmp_path):
    MAKERS[request.param](tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("data", ["video-mme"], indirect=True)
@pytest.mark.parametrize(
    ("frames", "scoring", "spoken"),
    [
        ("1fps", "letter", "In 1999 we\ncounted apples 42\n"),
        ("1", "letter", "In 1999 we\n"),
        ("1", "likelihood", "In 1999 we\n"),
    ],
)
def test_subtitles_of_the_sampled_frames_are_given(data, model_folder, tmp_path, frames, scoring, spoken):
    options = {"subtitles": True, "scoring": scoring}
    found = answers("video-mme", data, model_folder, tmp_path / "out", frames, **options)
    assert found["001-1"]["prompt"].startswith(f"This video's subtitles are listed below:\n{spoken}Select the best ")
    assert found["002-1"]["prompt"].startswith("Select the best answer"), "this video has no subtitles"


@pytest.mark.parametrize("data", ["mvbench"], indirect=True)
def test_stretches_and_folders_of_pictures_are_watched(data, model_folder, tmp_path):
    (data / "video/clevrer/video_validation/video_10000-11000/video_10002.mp4").unlink()
    found = answers("mvbench", data, model_folder, tmp_path / "out")
    assert found["action_sequence-1"]["frames"] == 3, "seconds 1, 2 and 3 of [1, 3.5)"
    assert found["episodic_reasoning-1"]["frames"] == 2
    assert found["episodic_reasoning-4"]["frames"] == 5
    assert found["moving_count-1"]["frames"] == 2 * 3 // 2
    lost = [id for id, record in found.items() if "error" in record]
    assert lost == ["moving_count-3"]
    assert "video_10002.mp4: no such file" in found["moving_count-3"]["error"]


@pytest.mark.parametrize("data", ["nextqa-mc"], indirect=True)
def test_options_are_compared_by_their_likelihood(data, model_folder, tmp_path):
    found = answers("nextqa-mc", data, model_folder, tmp_path / "out", scoring="likelihood")
    assert all(len(record["log_likelihoods"]) == 5 for record in found.values())
    assert {record["parser"] for record in found.values()} == {"likelihood"}

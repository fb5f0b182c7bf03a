"""The whole evaluation with a real (random) model."""

import json

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.evaluate import evaluate
from ma2mba.inference.chat import VideoChat
from ma2mba.model.pretrained import load_model


@pytest.fixture
def answered(task_file, model_folder):
    """The task file with the model's own answers as the right ones, but for the question 2-needle."""
    model, tokenizer = load_model(model_folder)
    records = [json.loads(line) for line in task_file.read_text().splitlines()]
    for record in records:
        chat = VideoChat(model, tokenizer)
        chat.watch(task_file.parent / record["video"])
        said = chat.ask(record["question"], max_tokens=32, repetition_stop=True).text.strip()
        record["options"] = [said + ".", *record["options"]]
        record["answer"] = "a ring" if record["id"] == "2-needle" else said + "."
    task_file.write_text("\n".join(map(json.dumps, records)))
    return task_file


def test_right_and_wrong_answers_are_counted(answered, model_folder):
    ticks = []
    result = evaluate(model_folder, answered, progress=lambda done, total: ticks.append((done, total)))
    wrong = [record for record in result["records"] if not record["correct"]]
    assert [record["id"] for record in wrong] == ["2-needle"]
    assert wrong[0]["prediction"]
    assert result["tasks"]["needle"] == {"n": 3, "accuracy": pytest.approx(2 / 3), "chance": pytest.approx(1 / 4)}
    assert result["tasks"]["count"] == {"n": 3, "accuracy": 1.0, "chance": pytest.approx(1 / 3)}
    assert result["accuracy"] == pytest.approx(5 / 6)
    assert result["unreadable"] == 0
    assert ticks == [(i, 6) for i in range(1, 7)]
    json.dumps(result)


def test_a_video_is_watched_once_for_all_its_questions(answered, model_folder, monkeypatch):
    watched = []
    real = VideoChat.watch
    monkeypatch.setattr(
        VideoChat,
        "watch",
        lambda self, video, *args, **kw: watched.append(video.name) or real(self, video, *args, **kw),
    )
    assert evaluate(model_folder, answered, 8)["n"] == 6
    assert watched == ["0.png", "1.png", "2.png"]


def test_an_unreadable_video_costs_its_own_questions_and_is_named(answered, model_folder):
    (answered.parent / "1.png").write_bytes(b"no picture")
    result = evaluate(model_folder, answered)
    assert result["unreadable"] == 2
    assert result["n"] == 4
    assert result["accuracy"] == pytest.approx(3 / 4), "the two questions are not counted as wrong"
    assert result["tasks"]["needle"]["n"] == 2
    assert all("1.png" in record["error"] for record in result["records"] if record["id"].startswith("1-"))
    (video,) = result["unreadable_videos"]
    assert video["video"] == str(answered.parent / "1.png")
    assert video["questions"] == 2
    assert "not a readable image" in video["reason"]


def test_no_usable_video_is_an_error(answered, model_folder):
    for i in range(3):
        (answered.parent / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no question can be answered\. .*0\.png.*\. 2 more videos"):
        evaluate(model_folder, answered)


def test_a_stopped_evaluation_hands_over_what_it_has(answered, model_folder):
    kept = []

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, answered, progress=stop, keep=kept.append)
    (result,) = kept
    assert not result["complete"]
    assert (result["n"], len(result["records"])) == (3, 3)
    json.dumps(result, allow_nan=False)
    assert evaluate(model_folder, answered, keep=kept.append)["complete"]
    assert len(kept) == 1


def test_bad_input_is_refused_before_the_model_is_loaded(task_file, tmp_path):
    with pytest.raises(UserError, match="--frames 0"):
        evaluate(tmp_path / "no-model", task_file, 0)
    with pytest.raises(UserError, match="no-model"):
        evaluate(tmp_path / "no-model", task_file)

"""The whole evaluation with a real (random) model."""

import json
from pathlib import Path

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.evaluation import asking
from ma2mba.evaluation.evaluate import Questions, evaluate
from ma2mba.evaluation.likelihood import likeliest, score_options
from ma2mba.evaluation.sharing import Part
from ma2mba.evaluation.tasks import read_tasks
from ma2mba.inference.chat import VideoChat
from ma2mba.model.pretrained import load_model, save_model
from ma2mba.video.frames import FrameReader

WALL_CLOCK = {"seconds", "watch_seconds"}


def asked(task_file: Path, **options) -> Questions:
    return Questions([question.item for question in read_tasks(task_file, **options)], str(task_file))


@pytest.fixture
def answered(task_file, model_folder):
    """The task file as open questions, with the model's own answers as the right ones, but for question 2-needle."""
    model, tokenizer = load_model(model_folder)
    records = [json.loads(line) for line in task_file.read_text().splitlines()]
    with FrameReader() as reader:
        for record in records:
            chat = VideoChat(model, tokenizer)
            chat.watch(task_file.parent / record["video"], reader=reader)
            said = chat.ask(record["question"], max_tokens=32, repetition_stop=True).text.strip()
            record["answer"] = "a ring" if record["id"] == "2-needle" else said
            record |= {"options": [record["answer"], *record["options"]], "show_options": False}
    task_file.write_text("\n".join(map(json.dumps, records)))
    return task_file


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def lines(out: Path, name: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def without_clock(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in WALL_CLOCK} for record in records]


def test_right_and_wrong_answers_are_counted(answered, model_folder, out):
    ticks = []
    report = evaluate(model_folder, asked(answered), out, progress=lambda done, total: ticks.append((done, total)))
    assert report == json.loads((out / "report.json").read_text())
    assert [record["id"] for record in report["records"] if not record["correct"]] == ["2-needle"]
    assert report["tasks"]["needle"]["n"] == 3
    assert report["tasks"]["needle"]["accuracy"] == pytest.approx(2 / 3)
    assert report["tasks"]["needle"]["chance"] == pytest.approx(1 / 4)
    assert report["tasks"]["count"]["accuracy"] == 1.0
    assert report["accuracy"] == pytest.approx(5 / 6)
    assert (report["unreadable"], report["complete"]) == (0, True)
    assert ticks == [(i, 6) for i in range(1, 7)]


def test_a_record_holds_all_that_its_score_came_from(task_file, model_folder, out):
    evaluate(model_folder, asked(task_file), out, 8)
    record = lines(out)[0]
    model, tokenizer = load_model(model_folder)
    chat = VideoChat(model, tokenizer)
    chat.watch(task_file.parent / "0.png", 8)
    prompt = (
        "What needle?\nOptions:\nA. a red star.\nB. a ring.\nC. a cross.\n"
        "Please provide your answer by stating the letter followed by the full option."
    )
    said = chat.ask(prompt, max_tokens=32, repetition_stop=True).text.strip()
    known = {"number": 0, "id": "0-needle", "task": "needle", "duration_group": "", "sampling": "8", "frames": 1}
    known |= {"video": str(task_file.parent / "0.png"), "prompt": prompt, "prediction": said, "parser": "letter"}
    known |= {"answer": "a red star", "options": ["a red star", "a ring", "a cross"], "video_seconds": 0.0}
    assert record | known == record
    assert record["score"] == float(record["correct"]) == float(record["choice"] == "A")
    assert record["seconds"] > 0
    assert record["watch_seconds"] > 0


def test_a_video_is_watched_once_for_all_its_questions(answered, model_folder, out, monkeypatch):
    watched = []
    real = VideoChat.watch
    monkeypatch.setattr(
        VideoChat,
        "watch",
        lambda self, video, *args, **kw: watched.append(video.name) or real(self, video, *args, **kw),
    )
    mixed = answered.read_text().splitlines()
    answered.write_text("\n".join(mixed[::2] + mixed[1::2]))
    report = evaluate(model_folder, asked(answered), out, 8)
    assert watched == ["0.png", "1.png", "2.png"]
    assert [record["id"] for record in report["records"]][:3] == ["0-needle", "1-needle", "2-needle"]


def damaged(answered: Path) -> None:
    (answered.parent / "1.png").write_bytes(b"no picture")


def raising(error: Exception):
    def install(monkeypatch) -> None:
        real = FrameReader.stream

        def stream(self, path, *args, **options):
            if path.name == "1.png":
                raise error
            return real(self, path, *args, **options)

        monkeypatch.setattr(FrameReader, "stream", stream)

    return install


@pytest.mark.parametrize(
    "error", [None, ValueError("odd"), OSError(5, "Input/output error"), MemoryError(), KeyError()]
)
def test_a_medium_that_cannot_be_read_costs_its_own_questions_and_is_named(
    answered, model_folder, out, monkeypatch, error
):
    if error is None:
        damaged(answered)
    else:
        raising(error)(monkeypatch)
    report = evaluate(model_folder, asked(answered), out)
    assert (report["n"], report["unreadable"]) == (4, 2)
    assert report["accuracy"] == pytest.approx(3 / 4), "the two questions are not counted as wrong"
    assert report["accuracy_if_unreadable_wrong"] == pytest.approx(3 / 6)
    assert report["tasks"]["needle"]["n"] == 2
    assert all("1.png" in record["error"] for record in report["records"] if record["id"].startswith("1-"))
    (video,) = report["unreadable_videos"]
    assert (video["video"], video["questions"]) == (str(answered.parent / "1.png"), 2)
    assert "not a readable image" in video["reason"] or type(error).__name__ in video["reason"]


def test_a_gpu_without_memory_is_no_mediums_fault(answered, model_folder, out, monkeypatch):
    raising(torch.OutOfMemoryError("no memory"))(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model_folder, asked(answered), out)
    assert len(lines(out)) == 2


def test_no_usable_video_is_an_error(answered, model_folder, out):
    for i in range(3):
        (answered.parent / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no question can be answered\. .*0\.png.*\. 2 more videos"):
        evaluate(model_folder, asked(answered), out)


def test_a_repaired_file_is_read_when_the_command_runs_again(answered, model_folder, out):
    whole = (answered.parent / "1.png").read_bytes()
    damaged(answered)
    before = evaluate(model_folder, asked(answered), out)
    assert len(lines(out)) == 6
    assert evaluate(model_folder, asked(answered), out) == before
    assert len(lines(out)) == 6, "the same error is not written again"
    (answered.parent / "1.png").write_bytes(whole)
    report = evaluate(model_folder, asked(answered), out)
    assert (report["n"], report["unreadable"]) == (6, 0)


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_stopped_evaluation_resumes_and_equals_an_undisturbed_one(
    answered, model_folder, out, tmp_path, stop_at, monkeypatch
):
    monkeypatch.setattr(asking, "TOGETHER", 2)
    undisturbed = evaluate(model_folder, asked(answered), tmp_path / "undisturbed")

    def stop(done, total):
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, asked(answered), out, progress=stop)
    assert len(lines(out)) == stop_at
    assert not (out / "report.json").exists()
    ticks = []
    assert evaluate(model_folder, asked(answered), out, progress=lambda *count: ticks.append(count)) == undisturbed
    assert ticks[0] == (stop_at, 6)
    assert (out / "report.json").read_bytes() == (tmp_path / "undisturbed/report.json").read_bytes()
    assert without_clock(lines(out)) == without_clock(lines(tmp_path / "undisturbed"))


def test_parts_share_out_the_videos_and_the_last_one_reports(answered, model_folder, out, tmp_path):
    whole = evaluate(model_folder, asked(answered), tmp_path / "whole")
    assert evaluate(model_folder, asked(answered), out, part=Part(1, 2)) is None
    assert {record["video"] for record in lines(out, "answers-1-of-2.jsonl")} == {str(answered.parent / "1.png")}
    assert evaluate(model_folder, asked(answered), out, part=Part(0, 2)) == whole
    assert (out / "report.json").read_bytes() == (tmp_path / "whole/report.json").read_bytes()
    assert evaluate(model_folder, asked(answered), tmp_path / "many", part=Part(4, 5)) is None, "a part without a video"


def test_another_run_in_the_same_folder_is_refused_by_what_differs(
    answered, model_folder, model, out, tmp_path, tokenizer
):
    evaluate(model_folder, asked(answered), out)
    changes = [
        ({"frames": 8}, asked(answered), "frames: 1fps there, 8 now"),
        ({"part": Part(0, 2)}, asked(answered), "parts: 1 there, 2 now"),
        ({"dtype": "bf16"}, asked(answered), "model: .*dtype: float32 there, bfloat16 now"),
        ({}, asked(answered, limit=2), "questions: .*eval.jsonl .* there, .* now; number of questions: 6 there, 2 now"),
    ]
    for options, questions, said in changes:
        with pytest.raises(UserError, match=rf"run\.json: .*{said}.*--fresh"):
            evaluate(model_folder, questions, out, **options)
    other = load_model(model_folder)[0]
    with torch.no_grad():
        other.language_model.backbone.embedding.weight[5] += 1
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_model(other, tmp_path / "tokenizer.json", tmp_path / "other")
    with pytest.raises(UserError, match=r"model: .*model \(\w{8}\) there, .*other \(\w{8}\) now"):
        evaluate(tmp_path / "other", asked(answered), out)
    before = len(lines(out))
    answered.write_text(answered.read_text().replace("What count?", "What number?"))
    with pytest.raises(UserError, match=r"questions: "):
        evaluate(model_folder, asked(answered), out)
    assert len(lines(out)) == before
    report = evaluate(model_folder, asked(answered), out, 8, fresh=True)
    assert report["frames"] == "8"
    assert {record["sampling"] for record in lines(out)} == {"8"}


def test_a_fresh_start_leaves_no_file_of_the_run_before(answered, model_folder, out):
    for number in range(2):
        evaluate(model_folder, asked(answered), out, part=Part(number, 2))
    assert (out / "report.json").exists()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model_folder, asked(answered), out, fresh=True, progress=stop)
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "run.json"]


def test_options_are_scored_by_their_likelihood(task_file, model_folder, out):
    with task_file.open("a") as file:
        file.write(json.dumps({"id": "open", "video": "0.png", "question": "What?", "answer": "a ring"}))
    report = evaluate(model_folder, asked(task_file), out, scoring="likelihood")
    assert (report["n"], report["scoring"]) == (7, "likelihood")
    model, tokenizer = load_model(model_folder)
    chat = VideoChat(model, tokenizer)
    chat.watch(task_file.parent / "0.png")
    record = lines(out)[0]
    scores = score_options(chat, record["prompt"], record["options"])
    assert record["log_likelihoods"] == pytest.approx([score.total for score in scores], abs=1e-4)
    assert record["choice"] == "ABC"[likeliest(scores)]
    assert record["correct"] == (record["choice"] == "A")
    assert [record["parser"] for record in lines(out)] == ["likelihood"] * 2 + ["words"] + ["likelihood"] * 4


def test_bad_input_is_refused_before_the_model_is_loaded(task_file, tmp_path):
    with pytest.raises(UserError, match="--frames 0"):
        evaluate(tmp_path / "no-model", asked(task_file), tmp_path / "out", 0)
    with pytest.raises(UserError, match=r"--scoring guess: unknown\. Use letter or likelihood"):
        evaluate(tmp_path / "no-model", asked(task_file), tmp_path / "out", scoring="guess")
    with pytest.raises(UserError, match="no-model"):
        evaluate(tmp_path / "no-model", asked(task_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()

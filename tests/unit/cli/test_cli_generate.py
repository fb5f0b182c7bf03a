"""`ma2mba generate`: answers in bulk, each as `ask` gives it, through kills, parts and damaged videos."""

import json
from fractions import Fraction

import pytest

from ma2mba.evaluation.answers_file import AnswersFile
from ma2mba.inference.chat import VideoChat
from tests.unit.video.numbered_video import write

WALL_CLOCK = ("seconds", "watch_seconds")


@pytest.fixture
def questions(tmp_path):
    """Six questions about three videos, in turn."""
    lines = []
    for v in range(3):
        write(tmp_path / f"{v}.mkv", [1000 * k + v for k in range(3 + v)], Fraction(1, 1000), codec="mpeg4", options={})
    for q in range(2):
        lines += [{"id": f"{v}-{q}", "video": f"{v}.mkv", "question": f"what color {q}?"} for v in range(3)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def command(questions, model_folder, tmp_path):
    options = ("--model", model_folder, "--device", "cpu", "--max-tokens", 5)
    return ("generate", questions, "--out", tmp_path / "out/answers.jsonl", *options)


def lines(path) -> list[dict]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in WALL_CLOCK} for record in records]


def test_every_answer_is_the_one_of_ask_in_the_order_of_the_questions(ma2mba, command, model_folder, tmp_path):
    code, text, _ = ma2mba(*command)
    assert code == 0
    assert "answers.jsonl: 6 answers" in text
    found = lines(tmp_path / "out/answers.jsonl")
    assert [line["id"] for line in found] == ["0-0", "1-0", "2-0", "0-1", "1-1", "2-1"]
    chat = VideoChat.open(model_folder, "cpu")
    chat.watch(tmp_path / "2.mkv")
    answer = chat.ask("what color 1?", max_tokens=5)
    known = {"answer": answer.text.strip(), "reason": answer.reason, "tokens": len(answer.tokens), "frames": 5}
    assert found[-1] | known | {"video": str(tmp_path / "2.mkv"), "question": "what color 1?"} == found[-1]
    again = (tmp_path / "out/answers.jsonl").read_bytes()
    assert ma2mba(*command)[0] == 0
    assert (tmp_path / "out/answers.jsonl").read_bytes() == again


def test_a_stopped_run_resumes_to_the_same_answers(ma2mba, command, tmp_path, monkeypatch):
    assert ma2mba(*command)[0] == 0
    undisturbed = lines(tmp_path / "out/answers.jsonl")
    real = AnswersFile.add

    def add(self, record):
        real(self, record)
        if len(self.records) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswersFile, "add", add)
    code, _, error = ma2mba(*command, "--fresh")
    assert code == 130
    assert "answers. Run the same command again to resume" in error
    assert len(lines(tmp_path / "out/answers.jsonl")) == 3
    monkeypatch.setattr(AnswersFile, "add", real)
    assert ma2mba(*command)[0] == 0
    assert lines(tmp_path / "out/answers.jsonl") == undisturbed


def test_parts_are_joined_by_the_last_one(ma2mba, command, tmp_path):
    assert ma2mba(*command)[0] == 0
    whole = lines(tmp_path / "out/answers.jsonl")
    code, _, error = ma2mba(*command, "--part", "0/2")
    assert code == 2
    assert "parts: 1 there, 2 now" in error
    code, text, _ = ma2mba(*command, "--part", "0/2", "--fresh", "--json")
    assert code == 0
    facts = json.loads(text)
    assert (facts["answers"], facts["complete"]) == (4, False)
    assert facts["missing"] == ["part 1/2 has 0 of 2 answers"]
    assert not (tmp_path / "out/answers.jsonl").exists()
    code, text, _ = ma2mba(*command, "--part", "1/2")
    assert code == 0
    joined = lines(tmp_path / "out/answers.jsonl")
    assert [line | {"run": 0} for line in joined] == [line | {"run": 0} for line in whole]


def test_a_damaged_or_missing_video_has_a_line_with_its_error(ma2mba, command, tmp_path):
    (tmp_path / "0.mkv").write_bytes(b"no video")
    (tmp_path / "1.mkv").rename(tmp_path / "later.mkv")
    code, text, _ = ma2mba(*command)
    assert code == 1
    assert f"not answered: 2 about {tmp_path / '0.mkv'}: not a readable video" in text
    assert "2 answers, 4 without one" in text
    found = lines(tmp_path / "out/answers.jsonl")
    assert [("error" in line, line["answer"] is None) for line in found] == [
        (True, True),
        (True, True),
        (False, False),
    ] * 2
    (tmp_path / "later.mkv").rename(tmp_path / "1.mkv")
    assert ma2mba(*command)[0] == 1
    found = lines(tmp_path / "out/answers.jsonl")
    assert ["error" in line for line in found] == [True, False, False] * 2
    assert len(found) == 6


def test_a_conversation_is_continued_and_seconds_are_cut(ma2mba, command, model_folder, tmp_path, questions):
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what color?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many?"},
    ]
    asked = [
        {"id": "a", "video": "2.mkv", "messages": messages},
        {"id": "b", "video": "2.mkv", "question": "how many?"},
    ]
    asked.append(asked[1] | {"id": "c", "start": 1, "end": 3})
    questions.write_text("".join(json.dumps(line) + "\n" for line in asked))
    assert ma2mba(*command)[0] == 0
    found = lines(tmp_path / "out/answers.jsonl")
    chat = VideoChat.open(model_folder, "cpu")
    chat.watch(tmp_path / "2.mkv")
    assert found[1]["answer"] == chat.ask("how many?", max_tokens=5).text.strip()
    chat.said("what color?", "red")
    assert found[0]["answer"] == chat.ask("how many?", max_tokens=5).text.strip()
    assert [line["frames"] for line in found] == [5, 5, 2]


def test_a_seed_draws_the_same_answers(ma2mba, command, tmp_path):
    assert ma2mba(*command, "--temperature", 1, "--seed", 7)[0] == 0
    first = lines(tmp_path / "out/answers.jsonl")
    assert {line["seed"] for line in first} == {7}
    assert ma2mba(*command, "--temperature", 1, "--seed", 7, "--fresh")[0] == 0
    assert lines(tmp_path / "out/answers.jsonl") == first
    code, _, error = ma2mba(*command, "--temperature", 1, "--seed", 8)
    assert code == 2
    assert "seed: 7 there, 8 now" in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "give either question or messages"),
        ({"question": "a", "messages": [{"role": "user", "content": "a"}]}, "give either question or messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages alternate user, assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a message is blank"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages.0.role"),
        ({"question": " "}, "is blank"),
        ({"question": "a", "video": "../a.mkv"}, "leads out of its folder"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(ma2mba, command, questions, line, said):
    with questions.open("a") as file:
        file.write(json.dumps({"id": "x", "video": "0.mkv"} | line))
    code, _, error = ma2mba(*command)
    assert code == 2
    assert "questions.jsonl, line 7: " in error
    assert said in error


def test_a_file_that_is_not_its_own_is_not_overwritten(ma2mba, command, questions, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers.jsonl").write_text("mine")
    for part in ((), ("--part", "0/2"), ("--fresh",)):
        code, _, error = ma2mba(*command, *part)
        assert code == 2
        assert "exists, and `ma2mba generate` did not write it" in error
    code, _, error = ma2mba(*command, "--out", questions, "--fresh")
    assert code == 2
    assert "is the file of the questions" in error
    code, _, error = ma2mba(*command, "--out", tmp_path / "answers.txt")
    assert code == 2
    assert "ends in .jsonl" in error

"""A task file is read as it is written, and a wrong line is named."""

import json

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.tasks import read_tasks


def test_questions_are_read_in_order(task_file):
    questions = read_tasks(task_file)
    assert [q.id for q in questions] == ["0-needle", "0-count", "1-needle", "1-count", "2-needle", "2-count"]
    assert questions[0].video == task_file.parent / "0.png"
    assert questions[0].chance == pytest.approx(1 / 3)


def test_task_is_chosen_before_the_limit(task_file):
    assert [q.id for q in read_tasks(task_file, task="count", limit=2)] == ["0-count", "1-count"]


def test_a_task_that_does_not_exist_is_refused_with_those_that_do(task_file):
    with pytest.raises(UserError, match=r"no question of task order. Its tasks are: count, needle"):
        read_tasks(task_file, task="order")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1, 2]", "line 2: line: "),
        ({"question": None}, "line 2: question: Field required"),
        ({"answer": 3}, "line 2: answer: "),
        ({"question": " "}, "line 2: question: .*is blank"),
        ({"answer": "\t"}, "line 2: answer: .*is blank"),
        ({"question": "\ud83d"}, "line 2: question: "),
        ({"options": "one"}, "line 2: options: "),
        ({"answer": "three"}, "line 2: answer 'three' is not among its options"),
        ({"video": "gone.mp4"}, "line 2: video .*gone.mp4 does not exist"),
    ],
)
def test_a_malformed_line_is_refused_with_its_file_and_number(task_file, change, said):
    lines = task_file.read_text().splitlines()
    if isinstance(change, dict):
        record = json.loads(lines[1]) | change
        change = json.dumps({key: value for key, value in record.items() if value is not None})
    lines[1] = change
    task_file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"eval\.jsonl, {said}"):
        read_tasks(task_file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="this task file does not exist"):
        read_tasks(tmp_path / "none.jsonl")


def test_a_file_that_is_not_utf_8_is_refused(task_file):
    task_file.write_bytes(task_file.read_bytes().replace(b"What count", b"What c\xffunt"))
    with pytest.raises(UserError, match=r"eval\.jsonl: not UTF-8 text"):
        read_tasks(task_file)


def test_a_byte_order_mark_and_windows_line_ends_are_read(task_file):
    task_file.write_bytes(b"\xef\xbb\xbf" + task_file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_tasks(task_file)) == 6


def test_videos_count_from_the_media_folder(task_file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    task_file.rename(tmp_path / "elsewhere/eval.jsonl")
    assert len(read_tasks(tmp_path / "elsewhere/eval.jsonl", media=tmp_path)) == 6
    with pytest.raises(UserError, match=r"line 1: video .* does not exist\. .*--media"):
        read_tasks(tmp_path / "elsewhere/eval.jsonl")

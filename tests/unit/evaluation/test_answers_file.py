"""A file of answers loses nothing but a half-written line, and mixes no two runs."""

import json
import os

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.answers_file import AnswersFile, read_answers, remove_answers

RUN = "0123456789abcdef"


@pytest.fixture
def path(tmp_path):
    with AnswersFile(tmp_path / "answers.jsonl", RUN) as file:
        for number in range(3):
            file.add({"number": number, "prediction": "é\n", "prompt": "long"})
    return tmp_path / "answers.jsonl"


def test_every_answer_is_a_line_at_once(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, RUN) as file:
        file.add({"number": 4, "prediction": "a\nb"})
        assert json.loads(path.read_text()) == {"number": 4, "prediction": "a\nb", "run": RUN}
        file.add({"number": 5, "video": "\udcff.mp4"})
        assert len(path.read_bytes().splitlines()) == 2
    assert read_answers(path, RUN)[5]["video"] == "\udcff.mp4"


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_half_written_last_line_is_dropped(path, cut):
    os.truncate(path, path.stat().st_size - cut)
    assert sorted(read_answers(path, RUN)) == [0, 1]
    with AnswersFile(path, RUN) as file:
        assert sorted(file.records) == [0, 1]
        assert len(path.read_bytes().splitlines()) == 2
        file.add({"number": 7})
    assert sorted(read_answers(path, RUN)) == [0, 1, 7]


def test_prompts_stay_in_the_file_and_out_of_memory(path):
    with AnswersFile(path, RUN) as file:
        assert file.records[0] == {"number": 0, "prediction": "é\n", "run": RUN}
    assert json.loads(path.read_text().splitlines()[0])["prompt"] == "long"


def test_the_last_record_of_a_question_counts(path):
    with AnswersFile(path, RUN) as file:
        file.add({"number": 1, "prediction": "later"})
    assert read_answers(path, RUN)[1]["prediction"] == "later"


def test_a_second_process_is_refused(path):
    with AnswersFile(path, RUN), pytest.raises(UserError, match=r"answers\.jsonl: another process is writing it"):
        AnswersFile(path, RUN)
    AnswersFile(path, RUN).close()


def test_answers_of_another_run_are_refused_unless_they_are_removed(path):
    with pytest.raises(UserError, match=r"answers\.jsonl, line 1: an answer of a run with other options.*--fresh"):
        AnswersFile(path, "f" * 16)
    with pytest.raises(UserError, match="other options"):
        read_answers(path, "f" * 16)
    with AnswersFile(path, "f" * 16, fresh=True) as file:
        assert file.records == {}
        assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b'{"number": "1"}\n', b"\xff\n"])
def test_a_damaged_line_is_named(path, line):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + lines[2])
    with pytest.raises(UserError, match=r"answers\.jsonl, line 2: .*--fresh"):
        AnswersFile(path, RUN)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "answers.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be written"):
        AnswersFile(tmp_path / "answers.jsonl", RUN)
    assert not (tmp_path / "elsewhere").exists()


def test_files_of_another_number_of_parts_are_removed_but_not_those_in_use(path):
    for name in ("answers-0-of-2.jsonl", "answers-1-of-2.jsonl", "notes.jsonl"):
        (path.parent / name).touch()
    with (
        AnswersFile(path.parent / "answers-1-of-2.jsonl", RUN),
        pytest.raises(UserError, match="another process is writing"),
    ):
        remove_answers(path.parent, "answers.jsonl", keep={"answers.jsonl"})
    remove_answers(path.parent, "answers.jsonl", keep={"answers.jsonl"})
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "notes.jsonl"]

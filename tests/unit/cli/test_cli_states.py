"""`ingest`, `ask` and `chat` as a user meets them: states in files, several questions, and what goes wrong."""

import errno
import json
import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ma2mba import files
from ma2mba.inference import chat as chats
from ma2mba.inference import state_file
from ma2mba.model import conversation
from tests.forked import run
from tests.unit.inference.test_chat import save_picture
from tests.unit.video.numbered_video import write

MS = Fraction(1, 1000)
SHORT = ("--max-tokens", "5", "--device", "cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Return videos of 6 and 4 seconds, a broken one, and a picture."""
    folder = tmp_path_factory.mktemp("videos")
    paths = {name: folder / f"{name}.mkv" for name in ("first", "second", "broken")}
    write(paths["first"], [1000 * k for k in range(6)], MS, codec="mpeg4", options={})
    write(paths["second"], [1000 * k for k in range(4)], MS, codec="mpeg4", options={})
    write(paths["broken"], [1000 * k for k in range(40)], MS, codec="mpeg4", options={})
    content = paths["broken"].read_bytes()
    paths["broken"].write_bytes(content[: len(content) // 2])
    return paths | {"picture": save_picture(folder / "picture.png")}


@pytest.fixture(scope="module")
def state(videos, model_folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("states") / "first.state"
    outcome = ingest(videos["first"], model_folder, path)
    assert outcome.code == 0, outcome.err
    return path


@pytest.fixture(autouse=True, scope="module")
def trusted_tokenizer():
    """Do not try the tokenizer in a process of its own: that takes most of a command's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conversation, "read_tokenizer", lambda path: Tokenizer.from_file(str(path)))
        yield


def ingest(video, model, out, *options, **how):
    return run("ingest", video, "--model", model, "--out", out, "--device", "cpu", *options, **how)


def ask(*arguments, model, **how):
    return run("ask", *arguments, "--model", model, *SHORT, **how)


def facts_of(outcome) -> dict:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_state_answers_as_the_video_does(videos, state, model_folder):
    of_video = facts_of(ask(videos["first"], "What?", "--json", model=model_folder))
    of_state = facts_of(ask("--state", state, "What?", "--json", model=model_folder))
    assert of_state["answer"] == of_video["answer"] != ""
    assert (of_state["state"], of_video["video"]) == (str(state), str(videos["first"]))
    assert of_state["frames"] == of_video["frames"] == 6
    assert of_state["video_seconds"] == of_video["video_seconds"] == 6


def test_json_keeps_its_keys_and_adds_reason_and_timings(videos, model_folder):
    facts = facts_of(ask(videos["picture"], "What?", "--json", model=model_folder))
    assert facts.keys() >= {"video", "question", "answer", "frames", "video_seconds", "seconds", "reason", "timings"}
    assert facts["timings"].keys() == {"start", "load", "watch", "first_token", "tokens_per_second"}
    assert facts["reason"] in ("end", "length")
    assert facts["answers"][0]["answer"] == facts["answer"]
    assert 0 < facts["timings"]["first_token"] <= facts["seconds"]


def test_several_questions_are_answered_each_by_itself(videos, model_folder):
    questions = ["What?", "How many scenes?", "What?"]
    facts = facts_of(ask(videos["first"], *questions, "--json", model=model_folder))
    alone = [facts_of(ask(videos["first"], question, "--json", model=model_folder))["answer"] for question in questions]
    assert [row["answer"] for row in facts["answers"]] == alone
    assert [row["question"] for row in facts["answers"]] == questions
    assert "answer" not in facts
    text = ask(videos["first"], *questions, model=model_folder)
    assert text.out == "".join(f"> {q}\n{a}\n" for q, a in zip(questions, alone, strict=True))


def test_follow_ups_continue_each_conversation(videos, model_folder, tmp_path):
    follow = ("--follow-up", "What colour?", "--follow-up", "How many?")
    facts = facts_of(ask(videos["first"], "What?", "How many?", *follow, "--json", model=model_folder))
    lines = "What?\nWhat colour?\nHow many?\n"
    talk = run("chat", videos["first"], "--model", model_folder, *SHORT, stdin=lines)
    assert talk.code == 0, talk.err
    first = facts["answers"][0]
    assert [row["question"] for row in first["follow_ups"]] == ["What colour?", "How many?"]
    assert talk.out.splitlines() == [first["answer"], *(row["answer"] for row in first["follow_ups"])]


def test_the_same_seed_gives_the_same_text_and_is_named(videos, model_folder):
    options = ("--temperature", "1.5", "--top-p", "0.95", "--top-k", "50", "--min-p", "0.01", "--json", "--logprobs")
    first = facts_of(ask(videos["picture"], "What?", *options, model=model_folder))
    seed = first["answers"][0]["seed"]
    again = facts_of(ask(videos["picture"], "What?", *options, "--seed", seed, model=model_folder))
    assert again["answers"][0]["logprobs"] == first["answers"][0]["logprobs"]
    assert again["answer"] == first["answer"]
    assert len(first["answers"][0]["logprobs"]) == first["answers"][0]["tokens"]
    other = facts_of(ask(videos["picture"], "What?", *options, "--seed", seed + 1, model=model_folder))
    assert other["answers"][0]["logprobs"] != first["answers"][0]["logprobs"]


def test_a_stop_string_ends_the_answer(videos, model_folder):
    whole = facts_of(ask(videos["picture"], "What?", "--json", model=model_folder))["answer"]
    word = whole.split()[1]
    facts = facts_of(ask(videos["picture"], "What?", "--stop", f" {word}", "--json", model=model_folder))
    assert facts["answer"] == whole.split()[0]
    assert facts["reason"] == "stop"


def test_ingest_appends(videos, state, model_folder, tmp_path):
    out = tmp_path / "both.state"
    facts = facts_of(ingest(videos["second"], model_folder, out, "--from", state, "--json"))
    assert [one["name"] for one in facts["watched"]] == ["first.mkv", "second.mkv"]
    assert facts["video_seconds"] == 10
    assert facts["bytes"] == out.stat().st_size
    asked = facts_of(ask("--state", out, "What?", "--json", model=model_folder))
    assert (asked["frames"], asked["video_seconds"]) == (10, 10)
    again = ingest(videos["second"], model_folder, out, "--from", out)
    assert "4 frames of second.mkv, 0:00:14 watched in all" in again.out


def test_a_video_that_breaks_half_way(videos, model_folder, tmp_path):
    out = tmp_path / "new" / "a.state"
    outcome = ingest(videos["broken"], model_folder, out)
    assert outcome.refused, outcome
    assert "keep the state of its first 17 s with --keep-partial" in outcome.err
    assert not out.parent.exists()
    facts = facts_of(ingest(videos["broken"], model_folder, out, "--keep-partial", "--json"))
    assert facts["partial"] == facts["watched"][0]["partial"] == 17
    assert facts["watched"][0]["frames"] == 18
    assert "truncated or damaged" in facts["watched"][0]["damage"]
    asked = facts_of(ask("--state", out, "What?", "--json", model=model_folder))
    assert asked["watched"][0]["partial"] == 17
    assert "partial: only 17 s of broken.mkv" in ingest(videos["broken"], model_folder, out, "--keep-partial").out
    assert "keep_partial" not in outcome.err


def test_damaged_and_foreign_states_are_refused_in_one_line(state, model_folder, videos, tmp_path):
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    (tmp_path / "cut").write_bytes(content[:-100])
    for name, said in (("flipped", "damaged"), ("cut", "damaged"), ("none", "cannot be read")):
        for command in (
            ("ask", "--state", tmp_path / name, "What?"),
            ("chat", "--state", tmp_path / name),
            ("ingest", videos["second"], "--from", tmp_path / name, "--out", tmp_path / "out"),
        ):
            outcome = run(*command, "--model", model_folder, "--device", "cpu")
            assert outcome.refused, outcome
            assert said in outcome.err
    assert not (tmp_path / "out").exists()


def interrupt(*args, **more):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)


def test_ctrl_c_leaves_nothing(videos, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(chats, "read_video", interrupt)
    outcome = ingest(videos["first"], model_folder, tmp_path / "a.state")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_file(videos, state, model_folder, tmp_path, monkeypatch):
    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "a.state"
    out.write_bytes(state.read_bytes())
    monkeypatch.setattr(state_file.Path, "write_bytes", full)
    outcome = ingest(videos["second"], model_folder, out, "--from", out)
    assert outcome.refused, outcome
    assert f"{out}: cannot be written ([Errno 28] No space left on device)" in outcome.err
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == state.read_bytes()


def test_a_disk_without_room_is_found_before_the_video_is_watched(videos, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(chats, "read_video", interrupt)
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.statvfs_result([0] * 10) and type("", (), {"free": 100}))
    outcome = ingest(videos["first"], model_folder, tmp_path / "a.state")
    assert outcome.refused, outcome
    assert "0.0 MB are free" in outcome.err


def test_a_kill_while_it_is_written_leaves_the_earlier_file(videos, state, model_folder, tmp_path, monkeypatch):
    out = tmp_path / "a.state"
    out.write_bytes(state.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(files, "fsync", lambda path: os.kill(os.getpid(), signal.SIGKILL))
        assert ingest(videos["second"], model_folder, out, "--from", state).code == -signal.SIGKILL
    assert out.read_bytes() == state.read_bytes()
    assert facts_of(ask("--state", out, "What?", "--json", model=model_folder))["frames"] == 6
    assert ingest(videos["second"], model_folder, out, "--from", state).code == 0
    assert facts_of(ask("--state", out, "What?", "--json", model=model_folder))["frames"] == 10


def test_chat_saves_forgets_and_goes_on_from_a_file(state, model_folder, tmp_path):
    saved = tmp_path / "talk.state"
    lines = ["What?", f"/save {saved}", "How many?", "/forget", "What?", "/help", "", "/quit", "never read"]
    outcome = run("chat", "--state", state, "--model", model_folder, *SHORT, stdin="\n".join(lines))
    assert outcome.code == 0, outcome.err
    first, said, second, forgot, again, helped = outcome.out.splitlines()
    assert said == f"saved: {saved}"
    assert forgot == "the conversation is forgotten"
    assert again == first
    assert "/save FILE" in helped
    goes_on = run("chat", "--state", saved, "--model", model_folder, *SHORT, stdin="How many?\n")
    assert goes_on.out.splitlines() == [second]
    assert "first one" not in goes_on.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/unknown", "/unknown: not a command"),
        ("/save", "/save: not a command"),
        ("/save .", "is a folder"),
        ("/save /dev/full/a", "cannot be written"),
        ("/save /dev/full", "exists, and is not a file"),
        ("what\udcff?", "not valid UTF-8"),
    ],
)
def test_a_line_that_cannot_be_obeyed_ends_a_pipe(state, model_folder, tmp_path, line, said):
    outcome = run("chat", "--state", state, "--model", model_folder, *SHORT, stdin=f"{line}\nWhat?\n", cwd=tmp_path)
    assert outcome.refused, outcome
    assert said in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "VIDEO"), "no question"),
        (("ask", "VIDEO", " "), "the question is empty"),
        (("ask", "VIDEO", "What?", "--follow-up", ""), "the question is empty"),
        (("ask", "VIDEO", "What?", "--top-p", "0"), "top_p: 0.0 is out of range"),
        (("ask", "VIDEO", "What?", "--temperature", "nan"), "Invalid value for '--temperature'"),
        (("ask", "VIDEO", "What?", "--stop", ""), "stop: "),
        (("ask", "--state", "STATE", "What?", "--frames", "8"), "--frames: is for a video"),
        (("ask", "--state", "STATE", "VIDEO", "What?"), "--state takes the place of a video"),
        (("chat", "--state", "STATE", "--cache", "x"), "--cache: is for a video"),
        (("chat",), "name either a video or a state file"),
        (("chat", "VIDEO", "--state", "STATE"), "name either a video or a state file"),
        (("ingest", "none.mp4", "--out", "a.state"), "none.mp4: this video does not exist"),
        (("ingest", "VIDEO", "--out", "."), "--out .: is a folder"),
        (("ingest", "VIDEO", "--out", "a.state", "--frames", "0"), "--frames 0"),
    ],
)
def test_wrong_commands_are_refused(videos, state, model_folder, tmp_path, arguments, said):
    named = [{"VIDEO": videos["first"], "STATE": state}.get(word, word) for word in arguments]
    outcome = run(*named, "--model", model_folder, "--device", "cpu", cwd=tmp_path)
    assert outcome.refused, outcome
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_cache_spares_the_second_command_the_video(videos, model_folder, tmp_path, monkeypatch):
    options = ("--cache", tmp_path / "cache", "--json")
    first = facts_of(ask(videos["first"], "What?", *options, model=model_folder))
    monkeypatch.setattr(chats, "read_video", interrupt)
    second = facts_of(ask(videos["first"], "What?", *options, model=model_folder))
    assert second["answer"] == first["answer"]
    assert second["watched"] == first["watched"]


def test_two_commands_may_share_a_cache(videos, model_folder, tmp_path):
    """Both watch, because neither finds an entry; both write it."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            outcome = ask(videos["first"], "What?", "--cache", tmp_path / "cache", model=model_folder)
            os._exit(0 if outcome.code == 0 and outcome.out.strip() else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".state"]

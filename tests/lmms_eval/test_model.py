"""The model class does what a request says, or refuses it by name."""

from pathlib import Path

import numpy as np
import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from ma2mba import VideoChat
from ma2mba.errors import UserError
from ma2mba.evaluation.likelihood import score_options
from ma2mba.video.frames import Window
from tests.lmms_eval.letters import letters
from tests.lmms_eval.published import write_videos


@pytest.fixture(autouse=True)
def by_chance(monkeypatch):
    with letters(monkeypatch):
        yield


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, ["a.mp4"])
    return folder / "a.mp4"


@pytest.fixture(scope="module")
def folder(model_folder):
    return model_folder


def model(folder: Path, docs: list[dict], **arguments):
    made = get_model("ma2mba").create_from_arg_string(f"pretrained={folder}", {"device": "cpu", **arguments})
    made.task_dict = {"task": {"test": docs}}
    return made


def instance(function, doc_id: int = 0, kind: str = "generate_until", **generation) -> Instance:
    arguments = ("context", function, generation, doc_id, "task", "test")
    return Instance(kind, arguments, 0, {"task": "task", "doc_id": doc_id, "repeats": 1})


def request(messages: list[dict], **generation) -> Instance:
    return instance(lambda doc: messages, **generation)


def user(*content: dict | str) -> list[dict]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return [{"role": "user", "content": parts}]


def answer_about(folder: Path, video: Path, window: Window, question: str = "Which?") -> str:
    chat = VideoChat.open(folder, "cpu")
    chat.watch(video, hashed=False, window=window)
    return chat.ask(question, repetition_stop=True).text


RANGES = [(None, None), (1.0, 3.0), (0.5, 2.5), (2.0, None), (None, 2.0), (3, 4)]


@pytest.mark.parametrize("form", ["content", "dict", "document"])
def test_time_ranges_are_honoured(form, folder, video):
    docs = [{"start": start, "end": end} for start, end in RANGES]

    def messages(doc: dict) -> list[dict]:
        start, end = doc["start"], doc["end"]
        part: dict = {"type": "video", "url": str(video)}
        if form == "content":
            part |= {"start_time": start, "end_time": end}
        if form == "dict":
            part["url"] = {"type": "video", "path": str(video), "video_start": start, "video_end": end}
        return user(part, "Which?")

    arguments = {"time_fields": "start:end"} if form == "document" else {}
    results = model(folder, docs, **arguments).generate_until([instance(messages, n) for n in range(len(docs))])
    expected = [answer_about(folder, video, Window(start, end)) for start, end in RANGES]
    assert [result.text for result in results] == expected
    assert len(set(expected)) > 2


def test_fields_of_a_document_are_not_used_unasked(folder, video):
    made = model(folder, [{"start": 1.0, "end": 2.0}])
    (result,) = made.generate_until([request(user({"type": "video", "url": str(video)}, "Which?"))])
    assert result.text == answer_about(folder, video, Window())


def test_a_video_is_watched_once_for_all_its_questions(folder, video, tmp_path, monkeypatch):
    seen = []
    watch = VideoChat.watch
    monkeypatch.setattr(VideoChat, "watch", lambda *a, **k: seen.append(a[1]) or watch(*a, **k))
    write_videos(tmp_path, ["b.mp4"])
    other = tmp_path / "b.mp4"
    paths = [video, other, video, other, video]
    requests = [request(user({"type": "video", "url": str(p)}, f"Part {n}?")) for n, p in enumerate(paths)]
    results = model(folder, [{}], batch_size=4).generate_until(requests)
    assert seen == [video, other]
    assert [r.text for r in results] == [answer_about(folder, p, Window(), f"Part {n}?") for n, p in enumerate(paths)]
    assert all(result.token_counts.output_tokens for result in results)


def test_pictures_and_texts_without_media_are_asked(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    requests = [
        request(user({"type": "image", "url": Image.fromarray(pixels)}, "Which?")),
        request(user({"type": "image", "url": str(tmp_path / "a.png")}, "Which?")),
        request([{"role": "system", "content": "Be brief."}, *user("Which?")]),
    ]
    results = model(folder, [{}]).generate_until(requests)
    expected = answer_about(folder, tmp_path / "a.png", Window())
    alone = VideoChat.open(folder, "cpu").ask("Be brief.\nWhich?", repetition_stop=True).text
    assert [result.text for result in results] == [expected, expected, alone]


def test_what_cannot_be_asked_costs_its_own_request(folder, video, tmp_path):
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    good = user({"type": "video", "url": str(video)}, "Which?")
    bad = [
        user({"type": "video", "url": str(tmp_path / "damaged.mp4")}, "Which?"),
        user({"type": "video", "url": str(tmp_path / "missing.mp4")}, "Which?"),
        user({"type": "audio", "url": "a.wav"}, "Which?"),
        user({"type": "video", "url": "https://example.org/a.mp4"}, "Which?"),
        user({"type": "video", "url": str(video)}, " "),
        [*good, {"role": "assistant", "content": "A"}, *good],
    ]
    results = model(folder, [{}]).generate_until([request(messages) for messages in [good, *bad, good]])
    assert [bool(result.text) for result in results] == [True, *[False] * len(bad), True]


@pytest.mark.parametrize(
    ("generation", "key"),
    [({"num_beams": 4}, "num_beams: 4"), ({"guidance": 2}, "guidance: 2"), ({"top_p": 3, "do_sample": True}, "top_p")],
)
def test_options_that_cannot_be_honoured_are_refused_by_key(generation, key, folder):
    with pytest.raises(UserError, match=key):
        model(folder, [{}]).generate_until([request(user("Which?"), **generation)])


def test_each_round_is_asked(folder, video):
    asked = []

    def messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        turn = user({"type": "video", "url": str(video)}, f"Round {round_idx or 0}?")
        if round_idx is None:
            return turn
        asked.append((round_idx, list(previous_output), previous_round_info))
        return turn, round_idx == 3, previous_output, {"round": round_idx}

    made = model(folder, [{}])
    (answers,) = made.generate_until_multi_round([instance(messages, kind="generate_until_multi_round")])
    assert answers == [answer_about(folder, video, Window(), f"Round {n}?") for n in range(3)]
    infos = [None, {"round": 1}, {"round": 2}]
    assert asked == [(n, answers[:n], info) for n, info in zip((1, 2, 3), infos, strict=True)]


def test_a_continuation_has_the_likelihood_of_the_option(folder, video):
    def arguments(continuation):
        return ("Which?", continuation, lambda doc: [str(video)], 0, "task", "test")

    about = {"task": "task", "doc_id": 0, "repeats": 1}
    requests = [Instance("loglikelihood", arguments(text), 0, about) for text in (" a ring", lambda doc: "a star")]
    found = model(folder, [{}]).loglikelihood(requests)
    chat = VideoChat.open(folder, "cpu")
    chat.watch(video, hashed=False)
    scores = score_options(chat, "Which?", ["a ring", "a star"])
    assert [score for score, _ in found] == pytest.approx([score.total for score in scores])
    assert not any(greedy for _, greedy in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("", "pretrained is missing"), ("frames=0", "frames"), ("time_fields=start", "START:END"), ("seed=-1", "seed")],
)
def test_wrong_arguments_are_refused(arguments, message, folder):
    pretrained = f"pretrained={folder}," if arguments else ""
    with pytest.raises(UserError, match=message):
        get_model("ma2mba").create_from_arg_string(pretrained + arguments, {"device": "cpu"})

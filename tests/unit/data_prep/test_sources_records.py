"""Well-formed records become clips; malformed records are rejected with their place and the reason."""

import json

import pytest

from data_prep.reading import read_sources
from data_prep.recipe import Recipe
from ma2mba.annotations.scenewalk import Scene
from ma2mba.errors import UserError
from ma2mba.model.conversation import Turn


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def read(folder, form, *contents):
    sources = []
    for i, content in enumerate(contents):
        (folder / f"a{i}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        sources.append({"format": form, "annotations": f"a{i}.json", "media": "."})
    recipe = Recipe.model_validate({"stage": "stage2", "tokenizer": "t.json", "sources": sources})
    return read_sources(recipe, folder)


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "What is it? <image>"])
@pytest.mark.parametrize("key", ["image", "video"])
def test_llava_mark_first_or_last(question, key, tmp_path):
    reading = read(tmp_path, "llava", [{"id": "7", key: "x/7.jpg", "conversations": turns(question, "a sofa")}])
    (clip,) = reading.clips
    assert clip.turns == (Turn("user", "What is it?"), Turn("assistant", "a sofa"))
    assert (clip.media, clip.is_image, clip.sample_id) == (tmp_path / "x/7.jpg", key == "image", "7")


def test_llava_without_media_is_text_alone(tmp_path):
    (clip,) = read(tmp_path, "llava", [{"id": 3, "conversations": turns("hi", "hello", "more", "yes")}]).clips
    assert clip.media is None
    assert len(clip.turns) == 4


GOOD = {"id": "a", "image": "a.jpg", "conversations": turns("<image>\nq", "r")}
MALFORMED = [
    (["text"], "is a list, not an object"),
    ({k: v for k, v in GOOD.items() if k != "id"}, "has no id"),
    (GOOD | {"image": 3}, "image is a int, not a str"),
    (GOOD | {"image": ""}, "image is empty"),
    (GOOD | {"image": "../a.jpg"}, "does not stay below"),
    (GOOD | {"video": "a.mp4"}, "both an image and a video"),
    (GOOD | {"conversations": []}, "conversations is empty"),
    (GOOD | {"conversations": turns("q", "r")}, "turn 1 has 0 <image> marks, not 1"),
    (GOOD | {"conversations": turns("<image><image>q", "r")}, "turn 1 has 2 <image> marks, not 1"),
    (GOOD | {"conversations": turns("<image>q", "r", "<image>q", "r")}, "turn 3 has 1 <image> marks, not 0"),
    (GOOD | {"conversations": turns("<image>q", "r", "q")}, "has no answer"),
    (GOOD | {"conversations": turns("<image>q", "  ")}, "turn 2: the answer is empty"),
    (GOOD | {"conversations": turns("<image>q", "r")[::-1]}, "turn 1 is from gpt, not human"),
    (GOOD | {"conversations": [{"from": "human"}]}, "has no value"),
]


@pytest.mark.parametrize(("record", "reason"), MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_malformed_llava_records(record, reason, tmp_path):
    reading = read(tmp_path, "llava", [GOOD, record])
    assert [clip.sample_id for clip in reading.clips] == ["a"]
    (reject,) = reading.rejects
    assert reject.where == "a0.json line 1, record 2"
    assert reason in reject.reason
    assert reading.records == 2


def test_a_repeated_id_is_rejected(tmp_path):
    reading = read(tmp_path, "llava", [GOOD, GOOD])
    assert len(reading.clips) == 1
    assert "its id is already used in a0.json line 1, record 1" in reading.rejects[0].reason


def test_questions_about_one_video_are_grouped_across_files(tmp_path):
    def record(i, video, question):
        return {
            "id": i,
            "data_source": "0_30_s",
            "video": video,
            "conversations": turns(f"<image>\n{question}", f"re {question}"),
        }

    captions = [record("a-0", "a.mp4", "q1"), record("b-0", "b.mp4", "q2")]
    open_ended = [record("a-1", "a.mp4", "q3"), record("a-2", "a.mp4", "q4")]
    reading = read(tmp_path, "llava_video", captions, open_ended)
    assert (reading.records, reading.ungrouped) == (4, 4)
    first, second = reading.clips
    assert [turn.text for turn in first.turns] == ["q1", "re q1", "q3", "re q3", "q4", "re q4"]
    assert (first.sample_id, second.sample_id) == ("a.mp4", "b.mp4")


WALK = {
    "id": "w",
    "video": "w.mp4",
    "total_time": 9,
    "clip_num": 2,
    "scenes": [{"start_frame": 0, "end_frame": 40}, {"start_frame": 40, "end_frame": 72}],
    "conversations": turns("Describe", "one", "Describe", "two"),
}


def test_scenewalk(tmp_path):
    reading = read(
        tmp_path, "scenewalk", json.dumps(WALK) + "\n\n{broken\n" + json.dumps(WALK | {"clip_num": 3}) + "\n"
    )
    (clip,) = reading.clips
    assert clip.scenes == (Scene(0, 40, "one"), Scene(40, 72, "two"))
    broken, miscounted = reading.rejects
    assert broken.where == "a0.json line 3"
    assert "not JSON" in broken.reason
    assert "clip_num is 3, but it has 2 scenes and 2 captions" in miscounted.reason


def test_scenes_out_of_order(tmp_path):
    reading = read(tmp_path, "scenewalk", json.dumps(WALK | {"scenes": WALK["scenes"][::-1]}))
    assert not reading.clips
    assert "scene 2: start_frame 0 must be at least" in reading.rejects[0].reason


@pytest.mark.parametrize("content", ["{not json", '{"id": 1}'])
def test_a_file_that_is_not_one_list(content, tmp_path):
    with pytest.raises(UserError, match=r"a0\.json"):
        read(tmp_path, "llava", content)

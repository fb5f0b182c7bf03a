"""Asking about a real file: a picture, and a video that the toy's writer made."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.toy.generate import plan_series, write_media
from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat, parse_frames
from ma2mba.inference.generate import TextStream, generate
from ma2mba.inference.session import Session
from ma2mba.model.conversation import encode_prompt

QUESTION = "Which symbol appeared?"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_media([(movie, folder) for movie in plan_series("clips", [(4, 4)], 0, lambda i: True)], 1)
    return folder / "clips/00000.mp4"


def test_frames_are_parsed():
    assert parse_frames("1fps") is None
    assert parse_frames("8") == 8


@pytest.mark.parametrize("text", ["0", "-1", "2fps", "", "eight", "1.5", "²"])
def test_other_frames_are_refused_saying_what_is_allowed(text):
    with pytest.raises(UserError, match=r"not a number of frames above 0\. Use 1fps, or a number"):
        parse_frames(text)


@pytest.mark.parametrize(("frames", "seen"), [(None, 4), (2, 2)])
def test_a_video_is_sampled_as_asked(model, tokenizer, video, frames, seen):
    chat = VideoChat(model, tokenizer, video, frames)
    assert chat.frames == seen
    assert chat.duration == pytest.approx(4, abs=0.2)


def test_the_answer_is_that_of_the_whole_prompt_and_stays_the_same(model, tokenizer, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    chat = VideoChat(model, tokenizer, tmp_path / "picture.png")
    first = "".join(chat.ask(QUESTION, 5))

    encoded = encode_prompt(tokenizer, QUESTION, 1)
    at = encoded.frame_positions[0]
    ids = encoded.token_ids[:at] + [0] * 4 + encoded.token_ids[at:]
    visual = [-1] * at + [0, 1, 2, 3] + [-1] * (len(encoded.token_ids) - at)
    session = Session(model, tokenizer)
    frames_NCHW = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    session.feed(torch.tensor(ids), torch.tensor(visual), frames_NCHW)
    stream = TextStream(tokenizer)
    expected = "".join(stream.push(token) for token in generate(session, 5)) + stream.finish()

    assert first == expected
    assert first, "the random model said nothing: choose another picture"
    "".join(chat.ask("How many scenes were there?", 5))
    assert "".join(chat.ask(QUESTION, 5)) == first


def test_an_empty_question_is_refused(model, tokenizer, video):
    with pytest.raises(UserError, match="question is empty"):
        list(VideoChat(model, tokenizer, video, 1).ask("  "))


def test_a_broken_video_is_refused_by_name(model, tokenizer, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        VideoChat(model, tokenizer, tmp_path / "broken.mp4")

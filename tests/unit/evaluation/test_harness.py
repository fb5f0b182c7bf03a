"""The options and media of a foreign harness are honoured, or refused by name."""

import numpy as np
import pytest
from PIL import Image

from ma2mba.errors import UserError
from ma2mba.evaluation.harness import Pictures, local_file, sampling_of, seconds_window
from ma2mba.evaluation.lmms_eval.messages import prompt_of
from ma2mba.inference.sampling import Sampling
from ma2mba.video.frames import Window

DEFAULTS = Sampling(max_tokens=100, repetition_stop=True, seed=7)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"temperature": 0.0}),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
            {"max_tokens": 16},
        ),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": None, "top_k": 5, "seed": 3}, {"temperature": 1.0, "top_k": 5, "seed": 3}),
        ({"until": ["\n\n"]}, {"stop": ("\n\n",)}),
        ({"until": "ASSISTANT:", "image_aspect_ratio": "original"}, {"stop": ("ASSISTANT:",)}),
        ({"until": None}, {}),
    ],
)
def test_generation_options_are_honoured(given, expected):
    common = {"temperature": 0.0, "max_tokens": 100, "repetition_stop": True, "seed": 7}
    assert sampling_of(given, DEFAULTS) == Sampling(**(common | expected))


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 4},
        {"repetition_penalty": 1.2},
        {"max_new_tokens": "16"},
        {"max_new_tokens": 1.5},
        {"temperature": "hot"},
        {"do_sample": "yes"},
        {"until": [3]},
        {"visual_cot": True},
    ],
)
def test_other_generation_options_are_refused_by_key(given):
    (key,) = given
    with pytest.raises(UserError, match=f"generation_kwargs: {key}: .* is unsupported"):
        sampling_of(given, DEFAULTS)


def test_a_window_is_two_numbers_of_seconds():
    assert seconds_window(None, 2, "here") == Window(None, 2.0)
    for start, stop in (("1", 2), (-1, 2), (3, 2), (True, None), (float("nan"), None)):
        with pytest.raises(UserError, match="here: "):
            seconds_window(start, stop, "here")


def test_files_are_local():
    assert str(local_file("file:///a%20b.mp4")) == "/a b.mp4"
    assert str(local_file("a b.mp4")) == "a b.mp4"
    with pytest.raises(UserError, match="not a local file"):
        local_file("https://example.org/a.mp4")


def test_media_come_first_and_texts_follow_in_lines():
    pictures = Pictures()
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    content = [
        {"type": "text", "text": "Before."},
        {"type": "image", "url": picture},
        {"type": "text", "text": "Between."},
        {"type": "video", "url": "a.mp4", "start_time": 1, "end_time": 2.5},
        {"type": "image", "url": picture},
        {"type": "text", "text": "After?"},
    ]
    prompt = prompt_of([{"role": "system", "content": "System."}, {"role": "user", "content": content}], pictures)
    assert prompt.text == "System.\nBefore.\nBetween.\nAfter?"
    first, video, second = prompt.media
    assert first == second
    assert first.path.is_file()
    assert (str(video.path), video.window) == ("a.mp4", Window(1.0, 2.5))

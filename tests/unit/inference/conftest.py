"""A video with a frame that is shown for a long time, and the prompt around its frames."""

from fractions import Fraction
from pathlib import Path

import pytest

from ma2mba.model.conversation import encode_prompt
from tests.unit.video.numbered_video import write


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A video of 40 s: a frame a second, but the frame of second 20 is shown for 10 s."""
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    write(path, [1000 * k for k in range(40) if not 20 < k < 30], Fraction(1, 1000), codec="mpeg4", options={})
    return path


@pytest.fixture
def prompt(tokenizer):
    return lambda frames: encode_prompt(tokenizer, "?", frames)

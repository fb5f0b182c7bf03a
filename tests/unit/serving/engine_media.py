"""Small media for the engine's tests, and what asks about them."""

import hashlib
from fractions import Fraction
from pathlib import Path

from PIL import Image

from ma2mba.inference.sampling import Sampling
from ma2mba.serving.contract import Medium, Question, Turn
from ma2mba.serving.engine import ServingEngine
from tests.unit.video.numbered_video import picture, write


def video(path: Path, seconds: int, first: int = 0) -> Medium:
    """Write a video of a frame a second that shows the numbers from `first` on."""
    write(path, list(range(first, first + seconds)), Fraction(1), codec="mpeg4", options={})
    return medium(path)


def image(path: Path, number: int) -> Medium:
    Image.fromarray(picture(number)).save(path)
    return Medium(path, hashlib.sha256(path.read_bytes()).hexdigest(), "image", path.name)


def medium(path: Path) -> Medium:
    return Medium(path, hashlib.sha256(path.read_bytes()).hexdigest(), "video", path.name)


def question(*parts: str | Medium, client: str = "a", answers: int = 1, so_far: bool = False, **options) -> Question:
    return Question((Turn("user", parts),), Sampling(**options), client, answers=answers, so_far=so_far)


async def text_of(engine: ServingEngine, asked: Question) -> str:
    """Return the text of a question's first answer."""
    return "".join([piece.text async for piece in engine.ask(asked) if piece.answer == 0])

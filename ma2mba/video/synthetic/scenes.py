"""Draw the toy world: quiet scenes of small pastel shapes, and large symbols in saturated colours (the needles).

Images are uint8 RGB arrays (SIZE, SIZE, 3); masks are bool arrays.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
"""Width and height of every picture in pixels."""
NEEDLE_EXTENT = 46
"""Width and height of a needle in pixels."""
SHAPE_EXTENT = 18
"""Width and height of a scene's shape in pixels."""
OVERSAMPLE = 4
"""Masks are drawn this much larger, then reduced."""

NEEDLES: dict[str, tuple[tuple[int, int, int], str]] = {
    "red star": ((235, 20, 25), "star"),
    "green cross": ((0, 215, 30), "cross"),
    "blue ring": ((30, 70, 255), "ring"),
    "yellow triangle": ((255, 230, 0), "triangle"),
    "magenta diamond": ((245, 0, 220), "diamond"),
    "cyan square": ((0, 240, 245), "square"),
    "white heart": ((255, 255, 255), "heart"),
    "orange house": ((255, 125, 0), "house"),
}
NEEDLE_QUESTION = "Which symbol appeared?"
COLOURS = {
    "pink": (226, 178, 186),
    "mint": (176, 214, 184),
    "lavender": (192, 180, 222),
    "peach": (230, 198, 164),
    "beige": (212, 206, 180),
}
SHAPES = ("circle", "bar", "plank", "pair")
BACKGROUNDS = {
    "gray": (112, 112, 112),
    "brown": (116, 92, 72),
    "olive": (104, 106, 68),
    "slate": (78, 94, 116),
    "plum": (104, 76, 98),
    "teal": (62, 100, 98),
}
PATTERNS = ("plain", "striped", "checked")


@dataclass(frozen=True)
class Scene:
    """A pastel shape that moves over a background in [start, stop) whole seconds; `phase` and `speed` set its path."""

    shape: str
    colour: str
    background: str
    pattern: str
    start: int
    stop: int
    phase: float
    speed: float

    @property
    def subject(self) -> str:
        return f"{self.colour} {self.shape}"


def _star(c: float, r: float) -> list[tuple[float, float]]:
    radii = [r, 0.42 * r] * 5
    return [(c + d * math.sin(i * math.pi / 5), c - d * math.cos(i * math.pi / 5)) for i, d in enumerate(radii)]


def _disc(c: float, r: float) -> list[float]:
    return [c - r, c - r, c + r, c + r]


def _cross(draw: ImageDraw.ImageDraw, c: float, r: float) -> None:
    draw.rectangle([c - r, c - 0.4 * r, c + r, c + 0.4 * r], fill=255)
    draw.rectangle([c - 0.4 * r, c - r, c + 0.4 * r, c + r], fill=255)


def _ring(draw: ImageDraw.ImageDraw, c: float, r: float) -> None:
    draw.ellipse(_disc(c, r), fill=255)
    draw.ellipse(_disc(c, 0.4 * r), fill=0)


def _heart(draw: ImageDraw.ImageDraw, c: float, r: float) -> None:
    for side in (-0.5, 0.5):
        x = c + side * r
        draw.ellipse([x - 0.53 * r, c - 0.95 * r, x + 0.53 * r, c + 0.11 * r], fill=255)
    draw.polygon([(c - r, c - 0.28 * r), (c + r, c - 0.28 * r), (c, c + r)], fill=255)


def _house(draw: ImageDraw.ImageDraw, c: float, r: float) -> None:
    wall = 0.85 * r
    draw.polygon(
        [(c, c - r), (c + wall, c - 0.1 * r), (c + wall, c + r), (c - wall, c + r), (c - wall, c - 0.1 * r)], 255
    )


def _pair(draw: ImageDraw.ImageDraw, c: float, r: float) -> None:
    for side in (-0.55, 0.55):
        draw.ellipse([c + side * r - 0.45 * r, c - 0.45 * r, c + side * r + 0.45 * r, c + 0.45 * r], fill=255)


_FORMS: dict[str, Callable[[ImageDraw.ImageDraw, float, float], None]] = {
    "star": lambda draw, c, r: draw.polygon(_star(c, r), fill=255),
    "cross": _cross,
    "ring": _ring,
    "triangle": lambda draw, c, r: draw.polygon([(c, c - r), (c + r, c + 0.85 * r), (c - r, c + 0.85 * r)], fill=255),
    "diamond": lambda draw, c, r: draw.polygon(
        [(c, c - r), (c + 0.75 * r, c), (c, c + r), (c - 0.75 * r, c)], fill=255
    ),
    "square": lambda draw, c, r: draw.rectangle([c - 0.85 * r, c - 0.85 * r, c + 0.85 * r, c + 0.85 * r], fill=255),
    "heart": _heart,
    "house": _house,
    "circle": lambda draw, c, r: draw.ellipse(_disc(c, r), fill=255),
    "bar": lambda draw, c, r: draw.rectangle([c - 0.3 * r, c - r, c + 0.3 * r, c + r], fill=255),
    "plank": lambda draw, c, r: draw.rectangle([c - r, c - 0.3 * r, c + r, c + 0.3 * r], fill=255),
    "pair": _pair,
}


@functools.cache
def form_mask(form: str, extent: int) -> np.ndarray:
    """Return the mask of a form that fills a square of `extent` pixels: bool (extent, extent)."""
    side = extent * OVERSAMPLE
    canvas = Image.new("L", (side, side), 0)
    _FORMS[form](ImageDraw.Draw(canvas), side / 2, side / 2 - 1)
    return np.asarray(canvas.resize((extent, extent), Image.Resampling.BOX)) >= 128


@functools.cache
def background(name: str, pattern: str) -> np.ndarray:
    """Return a background picture, read-only: uint8 (SIZE, SIZE, 3)."""
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[:] = BACKGROUNDS[name]
    rows, columns = np.indices((SIZE, SIZE)) // 8
    darker = {"plain": np.zeros((SIZE, SIZE), bool), "striped": rows % 2 == 1, "checked": (rows + columns) % 2 == 1}
    picture[darker[pattern]] = (picture[0, 0] * 0.82).astype(np.uint8)
    picture.flags.writeable = False
    return picture


def stamp(picture: np.ndarray, form: str, colour: tuple[int, int, int], extent: int, left: int, top: int) -> None:
    """Draw `form` into `picture`, in place. The form must not leave the picture."""
    picture[top : top + extent, left : left + extent][form_mask(form, extent)] = colour


def draw_scene(scene: Scene, seconds: float) -> np.ndarray:
    """Return the picture of a scene at `seconds` of the video: its shape follows a slow curve over the background."""
    picture = background(scene.background, scene.pattern).copy()
    angle = scene.phase + scene.speed * seconds
    room = (SIZE - SHAPE_EXTENT) / 2
    left, top = round(room * (1 + math.cos(angle))), round(room * (1 + math.sin(1.7 * angle)))
    stamp(picture, scene.shape, COLOURS[scene.colour], SHAPE_EXTENT, left, top)
    return picture


def draw_needle(picture: np.ndarray, kind: str, left: int, top: int) -> None:
    """Draw the symbol `kind` (a key of NEEDLES) over `picture`, in place."""
    colour, form = NEEDLES[kind]
    stamp(picture, form, colour, NEEDLE_EXTENT, left, top)

"""Read image files, and resize and crop pictures as CLIP does."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ma2mba.limits import limits, raise_limit
from ma2mba.video.errors import MediaError, check_picture_size, file_size, reading_memory
from ma2mba.video.jpeg import complete, damage

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


BYTES_OF_A_PIXEL = 24
"""Memory that decoding, rotating and converting a picture may take for each pixel."""
STRIP = 256
"""Rows that are converted together."""
LARGEST_RESIZED = 32_000_000
"""Pixels of a resized picture beyond which only its centre is resized. Thin pictures alone reach this size."""
FORMATS = "JPEG MPO PNG WEBP GIF BMP DIB TIFF AVIF JPEG2000 PPM TGA ICO PCX QOI SGI SUN PSD DDS XBM XPM"
"""Pillow's plugins that decode a picture without any program or other file. EPS would start Ghostscript."""


def clip_view(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize the shortest edge to `size` (bicubic) and crop the centre: uint8 (H, W, 3) -> (size, size, 3)."""
    height, width = picture.shape[:2]
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    top, left = (tall - size) // 2, (wide - size) // 2
    if tall * wide > LARGEST_RESIZED:
        down, right = height / tall, width / wide
        centre = (left * right, top * down, (left + size) * right, (top + size) * down)
        return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, centre))
    if (tall, wide) != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def read_image(path: Path) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3), rotated as its EXIF data says. 16-bit images keep their upper 8 bits.

    The one place that opens a picture. An animation is its first picture. Raise MediaError if the file is missing,
    damaged or truncated, of a format not in FORMATS, or larger than limits() allows.
    """
    if not (size := file_size(path)):
        raise MediaError(path, "not a readable image (the file is empty)")
    if size > limits().picture_mb * 1e6:
        reason = f"its {size / 1e6:,.0f} MB are more than {limits().picture_mb:g} MB"
        raise MediaError(path, reason, raise_limit("picture_mb"))
    try:
        with warnings.catch_warnings(action="ignore"), _limits_of_pillow():
            return _read(path)
    except (MemoryError, MediaError):
        raise
    except Image.DecompressionBombError as error:
        reason = f"it holds a picture of more than {limits().megapixels:g} megapixels"
        raise MediaError(path, reason, raise_limit("megapixels")) from error
    except Exception as error:  # damaged EXIF data alone raises struct.error, TypeError and others
        raise MediaError(path, f"not a readable image ({error})".replace(str(path), path.name)) from error


@contextmanager
def _limits_of_pillow() -> Iterator[None]:
    """Let Pillow use our limits in the block, and its own afterwards: the process may read other pictures."""
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS = math.ceil(limits().megapixels * 1e6 / 2)  # Pillow refuses pictures of twice this size
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # one text or colour profile may take all of it
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def _read(path: Path) -> np.ndarray:
    """Read the header, check the size, and then decode. The limit also holds for the pictures within an ICO file."""
    Image.init()
    known = [name for name in FORMATS.split() if name in Image.OPEN]  # not every Pillow reads AVIF
    with reading_memory(path):
        image = Image.open(path, formats=known)
    with image:
        check_picture_size(path, *image.size)
        with reading_memory(path, BYTES_OF_A_PIXEL * image.width * image.height):
            if image.format in {"JPEG", "MPO"}:
                return _upright(_sound_jpeg(path, image))
            return _upright(image)


def _upright(image: Image.Image) -> np.ndarray:
    """Decode a picture, and turn it as its EXIF data says."""
    ImageOps.exif_transpose(image, in_place=True)
    return _pixels(image)


def _sound_jpeg(path: Path, image: Image.Image) -> Image.Image:
    """Return the opened JPEG file, with an end marker if it lacks one. Raise MediaError if it is damaged."""
    data = path.read_bytes()
    if said := damage(data):
        raise MediaError(path, f"damaged ({said})")
    whole = complete(data)
    return image if whole == data else Image.open(io.BytesIO(whole), formats=["JPEG"])


def _pixels(image: Image.Image) -> np.ndarray:
    """Return RGB pixels. They are converted in strips, so that there are never three copies of a large picture."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        if strip.mode == "I" or strip.mode.startswith("I;16"):  # Pillow would clip all values above 255
            strip = Image.fromarray((np.asarray(strip).clip(0, 65535) >> 8).astype(np.uint8))
        pixels[top : top + STRIP] = np.asarray(strip.convert("RGB"))
    return pixels

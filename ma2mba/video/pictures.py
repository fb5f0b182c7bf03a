"""CLIP's view of a picture, image files, and JPEG bytes."""

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ma2mba.video.errors import MediaError, file_size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def clip_view(picture: np.ndarray, size: int) -> np.ndarray:
    """Shortest edge to `size` (bicubic), then the central square: uint8 (H, W, 3) -> (size, size, 3)."""
    height, width = picture.shape[:2]
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    if (tall, wide) != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (tall - size) // 2, (wide - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3), turned as its EXIF says; of 16 bits the upper 8.

    Raises MediaError when it is missing, broken or cut short.
    """
    file_size(path)
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "I" or upright.mode.startswith("I;16"):  # Pillow would cut off what is over 255
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # damaged EXIF alone brings struct.error, TypeError and others
        raise MediaError(path, f"not a readable image ({error})".replace(str(path), path.name)) from error


def to_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """JPEG bytes (4:4:4, so that colour keeps its detail) of an RGB uint8 (H, W, 3) picture."""
    return simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="444")

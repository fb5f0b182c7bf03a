"""Read image files, resize and crop pictures as CLIP does, and write JPEG."""

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ma2mba.video.errors import MediaError, file_size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def clip_view(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize the shortest edge to `size` (bicubic) and crop the centre: uint8 (H, W, 3) -> (size, size, 3)."""
    height, width = picture.shape[:2]
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    if (tall, wide) != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (tall - size) // 2, (wide - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def read_image(path: Path) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3), rotated as its EXIF data says. 16-bit images keep their upper 8 bits.

    Raise MediaError if the file is missing, damaged or truncated.
    """
    file_size(path)
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "I" or upright.mode.startswith("I;16"):  # Pillow would clip all values above 255
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # damaged EXIF data alone raises struct.error, TypeError and others
        raise MediaError(path, f"not a readable image ({error})".replace(str(path), path.name)) from error


def to_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Encode an RGB uint8 (H, W, 3) picture as JPEG, with chroma at full resolution (4:4:4)."""
    return simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="444")

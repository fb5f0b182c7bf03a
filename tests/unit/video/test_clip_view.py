"""Pictures are resized and cropped as CLIP's own preprocessing does, and image files are read."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ma2mba.video.blocks import read_frames
from ma2mba.video.errors import MediaError
from ma2mba.video.pictures import clip_view, read_image


@pytest.mark.parametrize(("size", "height", "width"), [(336, 480, 854), (56, 64, 64), (224, 333, 217), (336, 100, 337)])
def test_equal_to_transformers(size, height, width):
    """Every pixel equal (measured difference: 0)."""
    from transformers import CLIPImageProcessorPil

    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    processor = CLIPImageProcessorPil(**sizes, do_rescale=False, do_normalize=False)
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(clip_view(picture, size), theirs.astype(np.uint8))


def test_an_image_is_one_frame(tmp_path):
    Image.new("RGB", (90, 40), (10, 200, 30)).save(tmp_path / "a.png")
    found = read_frames(tmp_path / "a.png", 32)
    assert found.frames_NHWC.shape == (1, 32, 32, 3)
    assert found.frames_NHWC[0, 5, 5].tolist() == [10, 200, 30]
    assert found.duration == 0.0


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (90, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (90, 40, 3)


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_broken_images_are_named(data, tmp_path):
    path = tmp_path / "a.png"
    if data is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        data = path.read_bytes()[:2000]
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.png: not a readable image"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_keeps_its_upper_8(suffix, tmp_path):
    """Pillow's own conversion turns everything brighter than 1/257 of white into white."""
    grey = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    for dtype in (np.uint16, np.int32) if suffix == "tiff" else (np.uint16,):
        Image.fromarray(grey.astype(dtype)).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), (grey >> 8)[..., None].repeat(3, -1))


def test_pillow_has_its_own_limits_after_a_picture(tmp_path):
    """The processor of a model folder reads in the user's process."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    read_image(tmp_path / "a.png")
    assert before == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK)

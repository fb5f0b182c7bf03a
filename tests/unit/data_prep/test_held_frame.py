"""A frame that is shown for an hour is decoded, resized and encoded once, and held once."""

from fractions import Fraction

from data_prep import sample
from data_prep.clips import Clip
from data_prep.recipe import Recipe
from data_prep.spool import Spool
from tests.unit.video.numbered_video import write


def test_a_held_frame_costs_one_frame(tmp_path, monkeypatch):
    write(tmp_path / "held.mkv", [0, 36000], Fraction(1, 10))
    encoded, counted = [], []

    def to_jpeg(picture, quality):
        encoded.append(picture)
        return b"x" * 1000

    monkeypatch.setattr(sample, "to_jpeg", to_jpeg)
    source = {"format": "llava", "annotations": "a.json", "media": "."}
    recipe = Recipe(stage="s", tokenizer="t.json", sources=[source], image_size=32)
    clip = Clip("held", tmp_path / "held.mkv", "held.mkv", "a.json line 1")
    with Spool(tmp_path / "spool") as spool:
        watched = sample.watch(clip, recipe, spool, lambda: None, lambda: counted.append(1))
        assert len(watched.frames) in (3600, 3601)
        assert (len(encoded), len(counted)) == (2, 2) if len(watched.frames) == 3601 else (1, 1)
        assert spool._end <= 2000
        assert watched.frames[3000].data == b"x" * 1000

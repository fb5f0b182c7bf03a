"""A damaged video is decoded as far as it is readable, or rejected by name: nothing else is ever raised."""

from fractions import Fraction

import pytest

from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from tests.unit.video.numbered_video import number_in, write

FRAMES = 200


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Return the bytes of a video of 8 seconds in each container."""
    folder = tmp_path_factory.mktemp("intact")
    for name in ("v.mkv", "v.mp4", "v.avi", "v.ts"):
        write(folder / name, range(FRAMES), Fraction(1, 25))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damage(data: bytearray, rng) -> None:
    """Change one to five spots: overwrite, zero, remove or repeat some bytes, or cut the rest."""
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(data))
        span = slice(at, at + rng.choice([1, 4, 40, 2000]))
        how = rng.choice(["overwrite", "overwrite", "zero", "remove", "repeat", "cut"])
        if how == "overwrite":
            data[span] = rng.randbytes(len(data[span]))
        elif how == "zero":
            data[span] = bytes(len(data[span]))
        elif how == "remove":
            del data[span]
        elif how == "repeat":
            data[at:at] = data[span]
        elif at > 100:
            del data[at:]


def test_nothing_but_a_rejection_is_raised(intact, rounds, tmp_path):
    outcomes = {"rejected": 0, "partial": 0, "whole": 0}
    for rng in rounds:
        name = rng.choice(sorted(intact))
        data = bytearray(intact[name])
        damage(data, rng)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            decoded = decode_video(path, number_in, keep_damaged=True, count=50)
        except MediaError:
            outcomes["rejected"] += 1
            continue
        times = [sample.t for sample in decoded.samples]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] < decoded.duration
        outcomes["partial" if decoded.damage else "whole"] += 1
    print(outcomes)

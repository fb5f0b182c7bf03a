"""Video files of random kinds, in which every frame shows its number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.unit.video.ffmpeg import SIDE, ffmpeg, picture

X264 = ["-c:v", "libx264", "-preset", "veryfast", "-threads", 1]
X265 = ["-c:v", "libx265", "-preset", "ultrafast"]
CODECS = {
    "h264": "mp4 mov mkv avi ts mpg flv asf nut pieces.mp4 h264 3gp mp4 mkv ts avi",
    "hevc": "mp4 mkv ts mov hevc flv",
    "mpeg4": "avi mp4 mkv asf ts nut mov mpg",
    "mpeg2video": "ts mpg vob mkv avi mxf nut mp4 m2v",
    "mpeg1video": "mpg avi mkv ts nut",
    "libvpx": "webm mkv avi nut ogv",
    "libvpx-vp9": "webm mkv mp4",
    "libsvtav1": "mp4 webm mkv ivf",
    "ffv1": "mkv avi nut",
    "mjpeg": "avi mov mkv",
    "wmv2": "asf avi mkv",
    "msmpeg4v3": "avi asf",
    "flv1": "flv avi",
    "libtheora": "ogv",
    "gif": "gif",
    "apng": "apng",
}
"""Codec -> containers, the likelier more often."""
B_FRAMES = {"h264": 3, "hevc": 3, "mpeg4": 2, "mpeg2video": 2, "mpeg1video": 2}
SOUNDED = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "wmv2"}
RATES = ["10", "25", "30000/1001", "15", "8"]
JOINABLE = {"ts", "mpg", "vob", "flv"}
NO_SHOWN_TIMES = {"avi", "asf", "mpg", "vob", "h264", "hevc", "m2v", "ogv"}
"""Containers that do not state when each frame is shown, or (a copied part of an Ogg file) state it absurdly."""
ONE_TIME = {"mpg", "vob"}
"""Containers in which ffmpeg writes one time for all frames of a packet: with small frames, dozens share a time."""
HEADLESS = {"ts", "mpg", "vob", "h264", "hevc", "m2v"}
CUTS = ["whole"] * 5 + ["copied"] * 3 + ["remuxed"] * 3 + ["joined"] * 2 + ["cut tail", "cut head"]


@dataclass(frozen=True)
class Kind:
    """What a file is, for messages and for the table of outcomes."""

    codec: str
    container: str
    b_frames: int
    open_gop: bool
    key_every: int
    rate: str
    variable: bool
    start: float
    cut: str
    view: str
    count: int
    sound: float = 0.0
    """Seconds of sound."""

    def faults(self) -> set[str]:
        """Return what a rejection may say of such a file."""
        found = set()
        if self.cut in {"cut tail", "cut head"}:
            found |= {"cannot be opened", "truncated", "damaged"}
        if self.cut == "joined":
            found |= {"no times of shown frames"}  # with variable rates, the second part may begin too early
        if self.container in NO_SHOWN_TIMES and (self.cut in {"remuxed", "copied"} or self.view):
            found |= {"no times of shown frames"}
        if self.container in ONE_TIME and self.variable:
            found |= {"no times of shown frames"}
        return found

    def __str__(self) -> str:
        gop = f"{'open' if self.open_gop else 'closed'} groups of {self.key_every}, {self.b_frames} B-frames"
        rate = f"{self.rate} fps{' variable' if self.variable else ''} from {self.start} s"
        rest = f"{self.cut}, view {self.view or 'plain'}, {self.sound:g} s of sound"
        return f"{self.codec} in {self.container}, {gop}, {rate}, {rest}"


def choose(rng: random.Random) -> Kind:
    """Return a kind of file."""
    codec = rng.choice(list(CODECS) + ["h264"] * 12 + ["hevc"] * 4 + ["mpeg4"] * 3 + ["mpeg2video"] * 3)
    kind = Kind(
        codec=codec,
        container=rng.choice(CODECS[codec].split()),
        b_frames=rng.randint(0, B_FRAMES.get(codec, 0)),
        open_gop=rng.random() < 0.5,
        key_every=rng.choice([6, 10, 25]),
        rate=rng.choice(RATES),
        variable=rng.random() < 0.3,
        start=rng.choice([0, 0, 0, 0.5, 3.7, 1000, 95440]),
        cut=rng.choice(CUTS),
        view=rng.choice(["", "", "", "turned", "cropped", "stretched"]),
        count=rng.randint(20, 70),
        sound=rng.choice([0.0, 0.0, 2.0, 7.0]) if codec in SOUNDED else 0.0,
    )
    if kind.cut == "joined" and kind.container not in JOINABLE:
        kind = replace(kind, cut="whole")
    if kind.cut == "cut head" and kind.container not in HEADLESS:
        kind = replace(kind, cut="cut tail")
    return kind


def make(rng: random.Random, folder: Path) -> tuple[Path, Kind]:
    """Write a random file. Its kind says what was done; ffmpeg refuses some combinations, which are chosen anew."""
    while True:
        kind = choose(rng)
        try:
            return write(rng, kind, folder), kind
        except RuntimeError:
            continue


def write(rng: random.Random, kind: Kind, folder: Path) -> Path:
    path = folder / f"v.{kind.container}"
    encode(kind, path, rng)
    if kind.view:
        path = viewed(rng, kind, path)
    if kind.cut == "copied":
        path = copied(path, folder / f"c.{kind.container}", ["-ss", round(rng.uniform(0.2, 2.0), 2)])
    elif kind.cut == "remuxed":
        path = copied(path, folder / f"r.{rng.choice(['mkv', 'mp4', 'ts', 'avi', 'nut', 'mov'])}")
    elif kind.cut == "joined" and path.suffix[1:] in JOINABLE:
        join(rng, kind, path)
    elif kind.cut == "cut tail":
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * rng.uniform(0.3, 0.99))])
    elif kind.cut == "cut head" and path.suffix[1:] in HEADLESS:
        data, packet = path.read_bytes(), 188 if kind.container == "ts" else 1
        at = int(len(data) * rng.uniform(0.02, 0.5))
        path.write_bytes(data[at - at % packet :])
    return path


def encode(kind: Kind, path: Path, rng: random.Random, first: int = 0, start: float | None = None) -> None:
    """Write the frames first, first + 1, ..."""
    frames = b"".join(picture(number) for number in range(first, first + kind.count))
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIDE}x{SIDE}", "-r", kind.rate, "-i", "-"]
    if kind.sound:
        source += ["-f", "lavfi", "-t", kind.sound, "-i", "sine=sample_rate=44100"]
    source += ["-fps_mode", "passthrough"]
    if kind.variable:
        step = f"(1+floor(random(0)*{rng.choice([3, 12])}))/(FRAME_RATE*TB)"
        source += ["-vf", f"setpts='if(eq(N,0),0*st(0,{rng.randrange(1000)}),PREV_OUTPTS+{step})'"]
    offset = kind.start if start is None else start
    ffmpeg(*source, *coding(kind), *(["-output_ts_offset", offset] if offset else []), *muxing(path), data=frames)


def coding(kind: Kind) -> Sequence[object]:
    """Return ffmpeg's options for the codec."""
    group, pixels = ["-g", kind.key_every, "-bf", kind.b_frames], ["-pix_fmt", "yuv420p"]
    open_gop = int(kind.open_gop)
    if kind.codec == "h264":
        return [*X264, *group, *pixels, "-x264-params", f"b-adapt=0:scenecut=0:open-gop={open_gop}"]
    if kind.codec == "hevc":
        more = f"log-level=none:pools=none:frame-threads=1:b-adapt=0:scenecut=0:open-gop={open_gop}"
        return [*X265, *group, *pixels, "-x265-params", more]
    if kind.codec in {"mpeg4", "mpeg2video", "mpeg1video", "wmv2", "msmpeg4v3", "flv1"}:
        closed = ["-flags", "+cgop"] if kind.b_frames and not kind.open_gop else []
        return ["-c:v", kind.codec, "-q:v", 3, "-sc_threshold", 1000000000, *group, *closed, *pixels]
    if kind.codec in {"libvpx", "libvpx-vp9"}:
        return ["-c:v", kind.codec, "-deadline", "realtime", "-cpu-used", 8, "-g", kind.key_every, *pixels]
    if kind.codec == "libsvtav1":
        return ["-c:v", kind.codec, "-preset", 12, "-g", kind.key_every, *pixels]
    return ["-c:v", kind.codec]


def muxing(path: Path) -> list[object]:
    if path.name.endswith("pieces.mp4"):
        return ["-movflags", "frag_keyframe+empty_moov", path]
    return ["-f", "3gp", path] if path.suffix == ".3gp" else [path]


def copied(source: Path, target: Path, options: Sequence[object] = ()) -> Path:
    """Copy the packets into another file."""
    ffmpeg(*options, "-i", source, "-c", "copy", *muxing(target))
    return target


def viewed(rng: random.Random, kind: Kind, path: Path) -> Path:
    """Turn and mirror, crop or stretch the pictures by what the container says."""
    if kind.view == "turned":
        mirror = rng.choice([[], ["-display_hflip"], ["-display_vflip"]])
        options = ["-display_rotation", rng.choice([0, 90, 180, 270]), *mirror]
        return copied(path, path.with_name("t." + rng.choice(["mp4", "mov", "mkv"])), options)
    if kind.view == "stretched":
        target = path.with_name("s." + rng.choice(["mp4", "mkv"]))
        ffmpeg("-i", path, "-c", "copy", "-aspect", "16:9", target)
        return target
    target = path.with_name("p.mkv")
    colours = ["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]
    ffmpeg("-i", path, "-c", "copy", *colours, target)
    crop(target, [rng.choice([0, 8, 16]) for _ in range(4)])
    return target


def crop(path: Path, sides: Sequence[int]) -> None:
    """Let Matroska crop this many pixels at bottom, top, left and right, in place of what it says of colours."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x55\xb0")
    size = data[at + 2] & 0x7F if at > 0 else 0
    elements = b"".join(
        b"\x54" + bytes([name, 0x81, side]) for name, side in zip(b"\xaa\xbb\xcc\xdd", sides, strict=True)
    )
    fill = size + 3 - len(elements) - 2
    if at < 0 or fill < 0:
        raise RuntimeError("no room for a crop")
    data[at : at + 3 + size] = elements + b"\xec" + bytes([0x80 | fill]) + bytes(fill)
    path.write_bytes(data)


def join(rng: random.Random, kind: Kind, path: Path) -> None:
    """Append a second file, whose frames start at 1000, as `cat` does."""
    second = path.with_name("second" + path.suffix)
    encode(kind, second, rng, first=1000, start=rng.choice([kind.start, kind.start + 2, kind.start + 600]))
    path.write_bytes(path.read_bytes() + second.read_bytes())

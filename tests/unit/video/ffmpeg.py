"""Run the ffmpeg that imageio-ffmpeg brings (7 or later: earlier ones ignore crops and mirrors), and read numbers."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

SIDE, GRID = 64, 4
"""Pixels of a square picture, and blocks in each direction: bit i of its number is block i, row by row."""
TIMEOUT = 120


def ffmpeg(*arguments: object, data: bytes = b"") -> bytes:
    """Run ffmpeg and return what it writes. Raise RuntimeError with its last words if it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *map(str, arguments)]
    if data:
        command.remove("-nostdin")
    done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr.decode(errors='replace')[-600:]}")
    return done.stdout


def picture(number: int) -> bytes:
    """Return the grey picture of a number, SIDE x SIDE bytes."""
    bits = np.array([number >> i & 1 for i in range(GRID * GRID)], np.uint8).reshape(GRID, GRID) * 219 + 16
    return np.kron(bits, np.ones((SIDE // GRID, SIDE // GRID), np.uint8)).tobytes()


def number_in(shown: np.ndarray) -> int:
    """Return the number in a picture, uint8 (H, W, 3)."""
    height, width = shown.shape[:2]
    rows, columns = (np.arange(GRID) * 2 + 1) * height // (2 * GRID), (np.arange(GRID) * 2 + 1) * width // (2 * GRID)
    bits = shown[np.ix_(rows, columns)][..., 1].ravel() > 127
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def numbers_shown(path: Path, fps: int = 1) -> list[int]:
    """Return the number that ffmpeg shows at each multiple of 1/fps seconds."""
    times = f"setpts=PTS-STARTPTS,fps={fps}:round=up:start_time=0"
    try:
        out = ffmpeg("-i", path, "-map", "0:v:0", "-vf", times, "-f", "image2pipe", "-c:v", "ppm", "-")
    except RuntimeError:
        return []
    shown, at = [], 0
    while head := re.match(rb"P6\n(\d+) (\d+)\n255\n", out[at : at + 40]):
        width, height = int(head[1]), int(head[2])
        at += head.end()
        shown.append(number_in(np.frombuffer(out, np.uint8, 3 * width * height, at).reshape(height, width, 3)))
        at += 3 * width * height
    return shown

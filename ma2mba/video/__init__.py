"""Read videos and images, name what is damaged, and survive decoders that hang or crash.

- `probe.py` reads packets: when each frame is shown, whether these times can be trusted, and whether the file is
  truncated (`Probe.damage`). `times.py` joins clocks that restart, and chooses the time of each frame.
- `shown.py` decodes frames in the order in which they are shown; `view.py` crops, turns and mirrors them.
- `decode.py` decodes the sampled frames. `decode_video` is the one place that rejects a damaged video: it raises
  MediaError (`errors.py`) with the reason, or with `keep_damaged` returns the frames before the damage.
- `seek.py` reaches a few frames of a long video by seeking, from packets before which nothing is referred to
  (`entries.py`), in the stretches that `stretches.py` plans. `pieces.py` joins the stretches that several processes
  decode.
- `pictures.py` reads images and crops pictures as CLIP does; `jpeg.py` finds damaged JPEG files and writes JPEG;
  `animation.py` reads animated WebP. `blocks.py` does all of this for one video or image, and `frames.py` in a watched
  process for `ask` and `eval`; `stream.py` gives its pictures block by block, in memory that does not grow.
- `pyav.py` is the one door for videos: FFmpeg opens the given file and no other (`formats.py`).
- `pool.py` runs work in watched processes whose memory `memory.py` limits.
- `synthetic/` renders videos with known content.
"""

"""Damaged and unusual files are decoded correctly or rejected with the reason; none hangs or crashes a build."""

import errno
import importlib.util
import json
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import yaml

from data_prep import sample
from data_prep.build import build
from data_prep.toy.words import save_tokenizer
from ma2mba.errors import UserError
from ma2mba.shards.reader import ShardReader, find_damage
from ma2mba.video import pool, pyav, view
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.probe import missing_tail
from tests.unit.data_prep.stopped_worker import in_the_background, stop_within_a_clip
from tests.unit.video.numbered_video import number_in, picture_types, write
from tests.unit.video.odd_files import ODD, right_numbers, table, upright

GUARDED = {"bomb.mov"}
"""Read only in a worker, under its memory limit."""
HERE = [odd for odd in ODD if odd.name not in GUARDED]
MEMORY = 384 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of all files, and the times of each one's frames."""
    folder = tmp_path_factory.mktemp("odd")
    return folder, {odd.name: odd.make(folder / odd.name) for odd in ODD}


def numbers(path, **options):
    read = upright if path.name.startswith("turned") else number_in
    decoded = decode_video(path, read, **options)
    return [s.value for s in decoded.samples], [s.t for s in decoded.samples], decoded.damage


@pytest.mark.parametrize("odd", HERE, ids=[odd.name for odd in HERE])
def test_decoded_correctly_or_rejected_with_the_reason(odd, files):
    folder, times = files
    path = folder / odd.name
    if odd.reason:
        with pytest.raises(MediaError) as caught:
            numbers(path)
        assert odd.reason in caught.value.reason
    if odd.kept or not odd.reason:
        shown, seconds, damage = numbers(path, keep_damaged=True)
        assert shown == right_numbers(times[odd.name], seconds)
        assert bool(damage) == odd.kept
        assert len(shown) >= (3 if odd.kept else float(times[odd.name][-1]) - odd.unseen)
    else:
        with pytest.raises(MediaError):
            numbers(path, keep_damaged=True)


@pytest.fixture(scope="module", params=["reject", "keep"])
def built(request, files, tmp_path_factory):
    """All files in one build: (on_damage, index rows by source, reasons by medium, report)."""
    work = tmp_path_factory.mktemp("build")
    recipe = {"clips_per_part": 12, "on_damage": request.param}
    report, rejects = small_build(work, files[0], [odd.name for odd in ODD], recipe, memory=MEMORY)
    assert find_damage(work / "shards") == []
    rows = {row.source: row for row in ShardReader(work / "shards").rows}
    return request.param, rows, {reject.media: reject.reason for reject in rejects}, report


def test_a_build_survives_all_of_them_and_counts_each(built):
    on_damage, rows, reasons, report = built
    assert rows.keys() | reasons.keys() == {odd.name for odd in ODD}
    assert not rows.keys() & reasons.keys()
    whole = {odd.name for odd in ODD if not odd.reason}
    kept = {odd.name for odd in ODD if odd.kept and on_damage == "keep"}
    assert rows.keys() == whole | kept
    assert {name for name, row in rows.items() if row.status == "partial"} == kept
    assert (report["partial"], report["rejected"]) == (len(kept), len(ODD) - len(whole | kept))
    for odd in ODD:
        if odd.reason:
            said = rows[odd.name].reason if odd.name in kept else reasons[odd.name]
            assert odd.reason in said
    assert reasons["bomb.mov"] == "needs more than 384 MB of memory"


def test_pixels_are_converted_in_the_calling_thread(files):
    """A thread for each core has a stack for each core, which the memory limit of a worker does not allow."""
    path = files[0] / "interlaced.mp4"
    with pyav.open_video(path) as (container, stream):
        seen, before = view.view_of(path, container, stream), len(os.listdir("/proc/self/task"))
        for frame in container.decode(stream):
            seen.picture(frame)
            assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize("name", ["b_frames.avi", "mpeg4.avi", "variable.mp4", "stream.ts", "hevc.mp4", "hevc_10.mkv"])
def test_the_files_hold_b_frames(name, files):
    assert "BB" in picture_types(files[0] / name)


def test_there_are_enough_and_the_document_lists_them():
    """docs/data.md contains this table. After a change, paste the output of `odd_files.table()`."""
    assert len(ODD) >= 40
    assert len({odd.name for odd in ODD}) == len(ODD)
    document = (Path(__file__).parents[3] / "docs/data.md").read_text()
    assert table() in document


@pytest.mark.parametrize(
    "tail", [b"", b"\0\0\0\x08free", b"garbage that is no box, as some writers leave it", b"\0" * 64]
)
def test_a_whole_mp4_lacks_nothing_whatever_follows_it(tail, files, tmp_path):
    folder, _ = files
    path = tmp_path / "v.mp4"
    path.write_bytes((folder / "one_frame.mp4").read_bytes() + tail)
    assert missing_tail(path) == ""
    path.write_bytes((folder / "one_frame.mp4").read_bytes() + b"\0\0\1\0mdat" + b"\1" * 8)
    assert missing_tail(path) == "truncated: 240 bytes are missing at its end"


def test_workers_are_replaced_after_some_clips(files, tmp_path, monkeypatch):
    """A new worker for each shard gives the same bytes."""
    started = []
    make = pool._Worker.__init__

    def count(self, work, memory, fds):
        started.append(work)
        make(self, work, memory, fds)

    monkeypatch.setattr(pool._Worker, "__init__", count)
    for recycle, out, workers in ((500, "one", 1), (2, "each", 3)):
        monkeypatch.setattr(pool, "RECYCLE", recycle)
        started.clear()
        (tmp_path / out).mkdir()
        small_build(tmp_path / out, files[0], ["one_frame.mp4"] * 6, {"clips_per_part": 2})
        assert len(started) == workers
    for name in ("manifest.json", "payload/part-00002.parquet"):
        assert (tmp_path / "one/shards" / name).read_bytes() == (tmp_path / "each/shards" / name).read_bytes()


@pytest.mark.parametrize(("code", "error"), [(errno.ENOMEM, MemoryError), (errno.EINVAL, MediaError)])
@pytest.mark.parametrize("place", ["reformat", "decode"])
def test_lack_of_memory_is_not_taken_for_damage(place, code, error, files, monkeypatch):
    """The memory limit causes FFmpeg's ENOMEM, wherever it occurs; the file causes its other errors."""

    def fail(*_, **__):
        av.error.err_check(-code)

    if place == "reformat":
        monkeypatch.setattr(view, "VideoReformatter", lambda: SimpleNamespace(reformat=fail))
    else:
        monkeypatch.setattr(pyav.av, "open", fail)
    with pytest.raises(error):
        numbers(files[0] / "pieces.mp4")


def test_a_medium_that_cannot_be_read_to_its_end_is_rejected(tmp_path):
    """/proc/self/mem is a file whose reading fails, as on a bad disk."""
    with pytest.raises(MediaError, match="cannot be read to its end"):
        sample._identity(Path("/proc/self/mem"), lambda: None)


needs_decord = pytest.mark.skipif(
    importlib.util.find_spec("decord") is None, reason="decord is not installed (pip install 'ma2mba[decord]')"
)
DECORD_REJECTS = {
    "edits.mp4": "decord finds 186 frames, the file has 175",
    "b_frames.avi": "away from the file's time",
    "mpeg4.avi": "away from the file's time",
    "mpeg2.mpg": "wrong frames of mpeg files",
    "stream.ts": "wrong frames of mpegts files",
    "cut.ts": "wrong frames of mpegts files",
    "av1.mp4": "decord failed after",
    "moving.gif": "decord failed after",
}
"""Whole files that decord misreads or cannot read."""
WHOLE = [odd for odd in HERE if not odd.reason]


@needs_decord
@pytest.mark.parametrize("odd", WHOLE, ids=[odd.name for odd in WHOLE])
def test_decord_gives_the_same_frames_or_rejects_by_name(odd, files):
    folder, times = files
    path = folder / odd.name
    if odd.name in DECORD_REJECTS:
        with pytest.raises(MediaError, match=DECORD_REJECTS[odd.name]):
            numbers(path, decoder="decord")
        return
    shown, seconds, _ = numbers(path, decoder="decord")
    assert shown == right_numbers(times[odd.name], seconds)
    assert seconds == numbers(path)[1]


def small_build(folder, media, names, recipe, **options):
    """A build of these files, each a sample: (report, rejects)."""
    save_tokenizer(folder / "tokenizer.json")
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "four"}]
    records = [{"id": str(i), "video": name, "conversations": talk} for i, name in enumerate(names)]
    (folder / "r.json").write_text(json.dumps(records))
    source = {"format": "llava", "annotations": "r.json", "media": str(media)}
    content = {"stage": "stage1", "tokenizer": "tokenizer.json", "image_size": 32, "sources": [source]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content | recipe))
    return build(folder / "recipe.yaml", folder / "shards", workers=1, **options)


def test_the_index_names_what_is_not_applied(tmp_path):
    write(tmp_path / "v.mp4", range(50), Fraction(1, 25), aspect=Fraction(4, 3))
    small_build(tmp_path, tmp_path, ["v.mp4"], {})
    row = ShardReader(tmp_path / "shards").rows[0]
    assert (row.status, row.reason) == ("ok", "pixels of 4:3 are taken as square")


@needs_decord
def test_a_build_by_decord_records_its_decoder(files, tmp_path):
    _, rejects = small_build(tmp_path, files[0], ["matroska.mp4", "av1.mp4"], {"decoder": "decord"})
    assert [reject.media for reject in rejects] == ["av1.mp4"]
    reader = ShardReader(tmp_path / "shards")
    assert (reader.rows[0].decoder, reader.manifest.decoder) == ("decord", "decord")
    assert reader.rows[0].decoder_version == reader.manifest.decoder_version
    assert "times by pyav" in reader.manifest.decoder_version


def test_the_file_whose_decoder_hangs_is_the_one_that_is_rejected(tmp_path):
    """The worker is stopped while it has this file open."""
    for name, frames in (("a.mp4", 50), ("hangs.mp4", 2500), ("b.mp4", 50)):
        write(tmp_path / name, range(frames), Fraction(1, 25))

    thread = in_the_background(lambda: stop_within_a_clip("hangs.mp4"))
    _, rejects = small_build(tmp_path, tmp_path, ["a.mp4", "hangs.mp4", "b.mp4"], {"fps": 25.0}, stall=5.0)
    thread.join(30)
    assert [(r.media, r.reason) for r in rejects] == [("hangs.mp4", "the decoder made no progress for 5 s")]
    assert [row.source for row in ShardReader(tmp_path / "shards").rows] == ["a.mp4", "b.mp4"]


def test_without_decord_the_recipe_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match=r"pip install 'ma2mba\[decord\]'` or set decoder: pyav"):
        small_build(tmp_path, tmp_path, ["fine.mp4"], {"decoder": "decord"})
    assert not (tmp_path / "shards").exists()

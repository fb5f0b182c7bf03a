"""What clients send to the server is bounded, checked before it is decoded, and names nothing but itself."""

import asyncio
import json
import os
import resource
import time
from fractions import Fraction
from pathlib import Path

import pytest

from ma2mba.errors import UserError
from ma2mba.limits import limits
from ma2mba.serving import incoming, media_check, room
from ma2mba.serving.errors import Refused
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.settings import Settings
from ma2mba.video.errors import MediaError
from tests.attacks.media_files import alias, box, movie
from tests.unit.serving.media import clip, data_url, files, kinds, photo, sent, settings, with_library
from tests.unit.video.numbered_video import write

SECRET = "the secret of another folder"


def refused(chosen, content: bytes, name: str = "a.mp4") -> Refused:
    """Upload bytes, which must be refused and leave nothing. Return the error."""

    async def use(library):
        with pytest.raises(Refused) as caught:
            await library.store(sent(content), name, "ann")
        assert files(chosen.uploads) == []
        assert library.status()["media_bytes"] == 0
        return caught.value

    return with_library(chosen, use)


def refused_url(chosen, url: str, kind: str = "video") -> Refused:
    async def use(library):
        with pytest.raises(Refused) as caught:
            await library.fetch(url, kind, "ann")
        with pytest.raises(Refused):
            await library.keep(url, "ann")
        return caught.value

    return with_library(chosen, use)


def endless(taken: list[int]):
    """Return 500 MB in chunks, more than any limit here, and count the chunks that are taken."""

    async def chunks():
        for _ in range(500):
            taken.append(1)
            yield bytes(10**6)

    return chunks()


# Uploads: size, disk, quota, time


@pytest.mark.parametrize("length", [None, 100])
def test_an_endless_upload_ends_at_the_limit(tmp_path, length):
    """Also if fewer bytes were announced."""
    taken, chosen = [], settings(tmp_path, max_upload_gb=0.005)

    async def use(library):
        with pytest.raises(Refused, match=r"larger than 0\.005 GB") as caught:
            await library.store(endless(taken), "a.mp4", "ann", length)
        assert caught.value.status == 413
        assert files(chosen.uploads) == []

    with_library(chosen, use)
    assert len(taken) < 10


def test_an_upload_that_announces_too_much_is_refused_before_it_comes(tmp_path):
    taken: list[int] = []

    async def use(library):
        with pytest.raises(Refused) as caught:
            await library.store(endless(taken), "a.mp4", "ann", 10**13)
        assert caught.value.status == 413

    with_library(settings(tmp_path), use)
    assert taken == []


def test_a_data_url_is_never_larger_than_an_upload(tmp_path):
    error = refused_url(settings(tmp_path, max_upload_gb=0.001), data_url(bytes(1_100_000)))
    assert error.status == 413


def test_an_upload_goes_to_the_disk_and_not_to_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = settings(tmp_path, max_upload_gb=0.4)

    async def use(library):
        with pytest.raises(Refused):
            await library.store(endless([]), "a.mp4", "ann")

    with_library(chosen, use)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_uploads_leave_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "FREE_BYTES", 10**18)
    error = refused(settings(tmp_path), clip(tmp_path / "a.mp4"))
    assert (error.status, error.code, error.retry_after) == (503, "no_space", 60)


def test_uploads_watch_the_disk_while_they_come(tmp_path, monkeypatch):
    chosen, taken = settings(tmp_path), []
    looked = []

    def usage(folder):
        looked.append(folder)
        return os.statvfs(folder) and type("Usage", (), {"free": 10**12 if len(looked) == 1 else 0})

    monkeypatch.setattr(room.shutil, "disk_usage", usage)

    async def use(library):
        with pytest.raises(Refused, match="no room"):
            await library.store(endless(taken), "a.mp4", "ann")

    with_library(chosen, use)
    assert len(taken) < 80


@pytest.mark.parametrize(("each", "total", "status"), [(0.01, 100, 429), (100, 0.01, 503)])
def test_quotas_of_one_owner_and_of_all(tmp_path, each, total, status):
    content = clip(tmp_path / "a.mp4")
    chosen = settings(tmp_path, client_upload_gb=each, upload_total_gb=total)

    async def use(library):
        await library.store(sent(content), "a.mp4", "ann")
        await library.store(sent(content), "a.mp4", "ann")
        with pytest.raises(Refused) as caught:
            await library.store(sent(content), "a.mp4", "ann")
        assert caught.value.status == status
        with pytest.raises(Refused) as caught:
            await library.keep(data_url(content), "ann")
        assert caught.value.status == status

    with_library(chosen, use)


@pytest.mark.parametrize("pause", [0.01, 30])
def test_an_upload_that_drips_or_stops_is_given_up(tmp_path, monkeypatch, pause):
    monkeypatch.setattr(incoming, "BLOCK_SECONDS", 0.2)

    async def slow():
        for _ in range(200):
            yield b"x"
            await asyncio.sleep(pause)

    async def use(library):
        with pytest.raises(Refused) as caught:
            await library.store(slow(), "a.mp4", "ann")
        assert caught.value.status == 408

    with_library(settings(tmp_path), use)


# Uploads: what they are, before anything is decoded


def test_a_long_video_is_refused_before_it_is_decoded(tmp_path):
    """Its pictures are damaged, which decoding would find."""
    write(tmp_path / "long.mp4", [0, 1, 3 * 3600], Fraction(1))
    content = (tmp_path / "long.mp4").read_bytes()
    at = content.index(b"mdat") + 4
    size = int.from_bytes(content[at - 8 : at - 4]) - 8
    content = content[:at] + b"\xff" * size + content[at + size :]
    with_library(settings(tmp_path / "8 hours"), lambda library: library.store(sent(content), "a.mp4", "ann"))
    error = refused(settings(tmp_path, max_video_hours=2.5), content, "long.mp4")
    assert (error.status, error.code) == (413, "video_too_long")
    assert str(error).startswith("long.mp4: its frames span 3 hours, more than 2.5. "), "reading it goes on to its end"
    assert "MA2MBA" not in str(error)


@pytest.mark.parametrize("suffix", ["avi", "h264", "ts"])
def test_a_long_video_whose_packets_state_no_times_is_refused(tmp_path, suffix):
    path = tmp_path / f"long.{suffix}"
    codec = "mpeg4" if suffix == "avi" else "libx264"
    write(path, range(1000), Fraction(1, 25), codec=codec, options={}, format="h264" if suffix == "h264" else None)
    error = refused(settings(tmp_path, max_video_hours=30 / 3600), path.read_bytes())
    assert error.code == "video_too_long"


PLAYLISTS = {
    "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile:{SECRET}.mp4\n#EXT-X-ENDLIST\n".encode(),
    "concat": f"ffconcat version 1.0\nfile '{SECRET}.mp4'\n".encode(),
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 32\n",
    "reference": movie(box(b"url ", bytes(4), b"file:///etc/passwd", b"\0")),
    "alias": movie(alias(Path("/etc/passwd"))),
    "text": b"All rights reserved.\n" * 100,
    "html": b"<html><body>no video</body></html>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "zip": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_what_names_other_files_is_refused(tmp_path, kind):
    error = refused(settings(tmp_path), PLAYLISTS[kind], f"a.{kind}")
    assert error.status == 415
    assert str(tmp_path) not in str(error)


def test_an_empty_and_a_damaged_upload_are_explained(tmp_path):
    assert refused(settings(tmp_path), b"").code == "empty_media"
    content = clip(tmp_path / "a.mp4", 30)
    error = refused(settings(tmp_path), content[: len(content) // 2], "half.mp4")
    assert str(error).startswith("half.mp4: not a readable video ")
    write(tmp_path / "a.mkv", range(40), Fraction(1))
    content = (tmp_path / "a.mkv").read_bytes()
    error = refused(settings(tmp_path), content[: len(content) // 2], "half.mkv")
    assert (error.code, str(error).startswith("half.mkv: truncated or damaged")) == ("damaged_media", True)


@pytest.mark.parametrize(("harm", "said"), [("hang", "no progress"), ("crash", "crashed"), ("memory", "memory")])
def test_a_decoder_that_fails_costs_its_medium_alone(tmp_path, monkeypatch, harm, said):
    monkeypatch.setattr(media_check, "measure_item", {"hang": hang, "crash": crash, "memory": hoard}[harm])
    monkeypatch.setattr(media_check, "STALL_SECONDS", 2.0)
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        with pytest.raises(Refused, match=said):
            await library.store(sent(b"bad" + content), "bad.mp4", "ann")
        assert (await library.store(sent(content), "a.mp4", "ann")).duration == pytest.approx(3)

    with_library(settings(tmp_path), use)


real_check = media_check.measure_item


def hang(task, begin, beat):
    return _harm(task, begin, beat, lambda: time.sleep(60))


def crash(task, begin, beat):
    return _harm(task, begin, beat, lambda: os.abort())


def hoard(task, begin, beat):
    def harm():
        try:
            bytes(10**10)
        except MemoryError:
            raise MediaError(task.items[0].path, "takes too much memory") from None

    return _harm(task, begin, beat, harm)


def _harm(task, begin, beat, harm):
    if task.given_up or task.items[0].path.read_bytes()[:3] != b"bad":
        return real_check(task, begin, beat)
    begin(0)
    try:
        harm()
    except UserError as error:
        return error
    finally:
        begin(1)


def test_closing_the_library_ends_a_check(tmp_path, monkeypatch):
    monkeypatch.setattr(media_check, "measure_item", hang)

    async def use(library):
        upload = asyncio.create_task(library.store(sent(b"bad"), "bad.mp4", "ann"))
        while not library._checker._pools:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        await library.close()
        with pytest.raises(Refused, match="Try again"):
            await upload

    with_library(settings(tmp_path), use)


def test_the_limits_of_the_check_hold_for_the_worker_alone(tmp_path):
    with_library(settings(tmp_path), lambda library: library.store(sent(clip(tmp_path / "a.mp4")), "a", "ann"))
    assert limits().video_hours == 24


# Names, ids and owners


@pytest.mark.parametrize(
    "name",
    ["../../evil.mp4", "/etc/cron.d/evil", "..\\..\\evil.mp4", "a\0b.mp4", "x" * 5000, "", ".", "\udcff.mp4", "a\nb"],
)
def test_names_of_clients_are_no_paths(tmp_path, name):
    content, chosen = clip(tmp_path / "a.mp4"), settings(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    async def use(library):
        stored = await library.store(sent(content), name, "ann")
        assert stored.medium.path.parent == chosen.uploads
        assert stored.medium.path.name == f"{stored.medium.content}.video"
        assert (
            not set(stored.medium.name) & set("/\\\0\n") or "\\x" in stored.medium.name or "\\n" in stored.medium.name
        )
        assert len(stored.medium.name) < 200
        made = set(tmp_path.rglob("*")) - set(before)
        assert all(path.is_relative_to(tmp_path / "cache") for path in made)

    with_library(chosen, use)


def test_ids_cannot_be_guessed_and_are_their_owners(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        ids = [(await library.store(sent(content), "a.mp4", "ann")).id for _ in range(3)]
        assert len(set(ids)) == 3
        assert all(len(id.partition("-")[2]) >= 43 for id in ids)
        for attempt in (library.find, library.delete):
            with pytest.raises(Refused) as theirs:
                await result(attempt(ids[0], "ben"))
            with pytest.raises(Refused) as unknown:
                await result(attempt("video-" + "A" * 43, "ben"))
            assert theirs.value.status == unknown.value.status == 404
            assert str(theirs.value).replace(ids[0], "") == str(unknown.value).replace("video-" + "A" * 43, "")
        with pytest.raises(Refused):
            await library.fetch(ids[0], "video", "ben")
        assert library.list("ben") == []
        await library.end("ben")
        assert len(library.list("ann")) == 3

    with_library(settings(tmp_path), use)


async def result(value):
    return await value if asyncio.iscoroutine(value) else value


def test_the_id_of_a_copy_for_a_question_is_of_no_use(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        await library.fetch(data_url(content), "video", "ann")
        (entry,) = library._shelf
        with pytest.raises(Refused):
            library.find(entry.id, "ann")

    with_library(settings(tmp_path), use)


@pytest.mark.parametrize("id", ["video-../../../etc/passwd", "video-" + "A" * 42 + "/", "../x", "video-", "\0"])
def test_ids_are_no_paths(tmp_path, id):
    assert refused_url(settings(tmp_path), id).status in (400, 404)


# Files below the media root


@pytest.fixture
def root(tmp_path):
    folder, outside = tmp_path / "media", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    clip(folder / "a.mp4")
    clip(outside / "secret.mp4")
    (tmp_path / "media-2").mkdir()
    clip(tmp_path / "media-2" / "b.mp4")
    (folder / "link.mp4").symlink_to(outside / "secret.mp4")
    (folder / "folder").symlink_to(outside)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "inner.mp4").symlink_to("a.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\n{outside}/secret.mp4\n#EXT-X-ENDLIST\n")
    (folder / "list.txt").write_text(f"ffconcat version 1.0\nfile {outside}/secret.mp4\n")
    (folder / "sub").mkdir()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../outside/secret.mp4",
        "sub/../../outside/secret.mp4",
        "%2e%2e/outside/secret.mp4",
        "..%2Foutside%2Fsecret.mp4",
        "%252e%252e/outside/secret.mp4",
        "link.mp4",
        "folder/secret.mp4",
        "loop.mp4",
        "pipe.mp4",
        "sub",
        "",
        ".",
        "/etc/passwd",
        "//etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "{tmp}/outside/secret.mp4",
        "{tmp}/media/../outside/secret.mp4",
        "{tmp}/media-2/b.mp4",
        "{tmp}/cache/uploads/.lock",
        "a.mp4%00.txt",
        "a.mp4?x",
        "a.mp4#x",
        "%ff.mp4",
        "list.m3u8",
        "list.txt",
        "absent.mp4",
    ],
)
@pytest.mark.parametrize("start", ["file:", "file://", "file://localhost/", "FILE:///"])
def test_no_file_outside_the_media_root_is_opened(tmp_path, root, name, start):
    url = start + name.replace("{tmp}", str(tmp_path))
    error = refused_url(settings(tmp_path, media_root=root), url)
    assert error.status in (400, 403, 404, 415)
    assert str(tmp_path) not in str(error).replace(url, "")


@pytest.mark.parametrize("url", ["file://other.host/{root}/a.mp4", "file://a.mp4"])
def test_files_of_other_hosts_are_refused(tmp_path, root, url):
    assert refused_url(settings(tmp_path, media_root=root), url.replace("{root}", str(root))).code == "invalid_url"


def test_no_message_tells_whether_a_file_outside_exists(tmp_path, root):
    chosen = settings(tmp_path, media_root=root)
    there = refused_url(chosen, f"file://{tmp_path}/outside/secret.mp4")
    absent = refused_url(chosen, f"file://{tmp_path}/outside/absent.mp4")
    assert str(there).replace("secret", "absent") == str(absent)
    assert there.status == absent.status


def test_links_within_the_media_root_are_followed(tmp_path, root):
    async def use(library):
        return await library.fetch("file:inner.mp4", "video", "ann")

    assert with_library(settings(tmp_path, media_root=root), use).path == root / "inner.mp4"


def test_without_a_media_root_no_file_is_opened(tmp_path, root):
    for url in (f"file://{root}/a.mp4", "file:a.mp4"):
        assert refused_url(settings(tmp_path), url).status == 403


def test_devices_are_not_opened(tmp_path, root, monkeypatch):
    """Opening one may do something: a tape rewinds."""
    opened, real = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **options: opened.append(str(path)) or real(path, *rest, **options)
    )
    assert refused_url(settings(tmp_path, media_root=root), "file:pipe.mp4").status == 403
    assert not [path for path in opened if path.endswith("pipe.mp4")]
    assert refused_url(settings(tmp_path, media_root=Path("/dev")), "file:zero").status == 403


@pytest.mark.parametrize(("cache", "media"), [("x/cache", "x"), ("x", "x"), ("x", "x/cache/uploads"), ("x", "x/cache")])
def test_a_file_url_cannot_name_the_uploads_of_others(tmp_path, cache, media):
    (tmp_path / cache).mkdir(parents=True, exist_ok=True)
    (tmp_path / media).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="--media-root"):
        MediaLibrary(Settings(tmp_path / "m", cache=tmp_path / cache, media_root=tmp_path / media))


# Other URLs


@pytest.mark.parametrize(
    "url",
    [
        "ftp://videos.example/a.mp4",
        "rtsp://videos.example/a",
        "concat:/etc/passwd|/etc/hosts",
        "subfile,,start,0,end,0,,:/etc/passwd",
        "pipe:0",
        "/etc/passwd",
        "a.mp4",
        "javascript:alert(1)",
        "gopher://127.0.0.1/",
        "",
        "data:video/mp4,plain",
        "data:video/mp4;base64",
        "data:video/mp4;base64,%%%",
        "data:video/mp4;base64,QUJD\n",
        "data:;base64,QQ",
    ],
)
def test_other_urls_are_refused(tmp_path, url):
    error = refused_url(settings(tmp_path, domains=("videos.example",)), url)
    assert error.status in (400, 403)


def test_an_image_url_is_an_image_and_a_video_url_a_video(tmp_path):
    chosen = settings(tmp_path)
    video, picture = data_url(clip(tmp_path / "a.mp4")), data_url(photo(tmp_path / "a.png"))
    error = with_library(chosen, lambda library: catch(library.fetch(video, "image", "ann")))
    assert (error.status, "not a readable image" in str(error)) == (415, True)
    error = with_library(chosen, lambda library: catch(library.fetch(picture, "video", "ann")))
    assert (error.status, "still picture" in str(error)) == (415, True)


async def catch(work) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


# Lifetimes


def test_uploads_and_states_go_after_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ma2mba.serving.library.SWEEP_SECONDS", 0.05)
    content, gone = clip(tmp_path / "a.mp4"), []
    chosen = settings(tmp_path, keep_minutes=1.5 / 60)

    async def use(library):
        library.release(await library.fetch(data_url(clip(tmp_path / "b.mp4", 4)), "video", "ben"))
        stored = await library.store(sent(content), "a.mp4", "ann")
        assert stored.medium.path.exists()
        while files(chosen.uploads):
            await asyncio.sleep(0.05)
        with pytest.raises(Refused):
            library.find(stored.id, "ann")
        return stored

    stored = with_library(chosen, use, gone.append)
    assert len(gone) == 2
    assert stored.medium.content in gone


def test_uploads_and_states_go_with_their_session(tmp_path):
    gone: list[str] = []

    async def use(library):
        ann = await library.store(sent(clip(tmp_path / "a.mp4")), "a.mp4", "ann")
        await library.fetch(data_url(clip(tmp_path / "b.mp4", 4)), "video", "ann")
        ben = await library.store(sent(clip(tmp_path / "c.mp4", 5)), "c.mp4", "ben")
        await library.end("ann")
        assert library.list("ann") == []
        assert files(settings(tmp_path).uploads) == sorted([f"{ben.id}.json", ben.medium.path.name])
        return ann

    ann = with_library(settings(tmp_path), use, gone.append)
    assert len(gone) == 2
    assert ann.medium.content in gone


def test_the_next_start_deletes_what_a_killed_server_left(tmp_path):
    chosen, gone = settings(tmp_path), []
    content = clip(tmp_path / "a.mp4")
    with_library(chosen, lambda library: library.store(sent(content), "a.mp4", "ann"))
    left = "0" * 64
    for name in ("abc.part", f"{left}.video", "video-" + "B" * 43 + ".json", ".video-x.json.host.1.tmp"):
        (chosen.uploads / name).write_bytes(b"half")
    (chosen.uploads / "mine.txt").write_text("not ours")

    async def use(library):
        assert len(library.list("ann")) == 1

    with_library(chosen, use, gone.append)
    assert kinds(files(chosen.uploads)) == [".json", ".txt", ".video"]
    assert gone == [left]


def test_what_expired_while_the_server_was_down_goes_at_the_start(tmp_path):
    chosen = settings(tmp_path)
    stored = with_library(chosen, lambda library: library.store(sent(clip(tmp_path / "a.mp4")), "a.mp4", "ann"))
    os.utime(chosen.uploads / f"{stored.id}.json", (1, 1))
    gone: list[str] = []
    with_library(chosen, lambda library: asyncio.sleep(0), gone.append)
    assert files(chosen.uploads) == []
    assert gone == [stored.medium.content]


@pytest.mark.parametrize(
    "change", [{"content": "../../x"}, {"owner": "ann"}, {"bytes": 1}, {"kind": []}, {"created": "x"}]
)
def test_a_record_that_was_changed_leads_nowhere(tmp_path, change):
    chosen = settings(tmp_path)
    (tmp_path / "x.video").write_bytes(clip(tmp_path / "a.mp4"))
    stored = with_library(chosen, lambda library: library.store(sent(clip(tmp_path / "a.mp4")), "a.mp4", "ann"))
    record = chosen.uploads / f"{stored.id}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert (chosen.uploads / "../../x.video").stat().st_size == stored.bytes

    async def use(library):
        with pytest.raises(Refused):
            library.find(stored.id, "ann")

    with_library(chosen, use)


def test_a_record_cannot_name_a_file_outside_the_media_root(tmp_path, root):
    chosen = settings(tmp_path, media_root=root)
    stored = with_library(chosen, lambda library: library.keep("file:a.mp4", "ann"))
    record = chosen.uploads / f"{stored.id}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"url": "file:link.mp4", "path": "/etc/passwd"}))

    async def use(library):
        with pytest.raises(Refused):
            await library.fetch(stored.id, "video", "ann")

    with_library(chosen, use)


def test_the_folder_of_uploads_is_nobody_elses(tmp_path):
    chosen = settings(tmp_path)
    chosen.cache.mkdir()
    chosen.uploads.symlink_to(tmp_path)
    with pytest.raises(UserError, match="symbolic link"):
        MediaLibrary(chosen)

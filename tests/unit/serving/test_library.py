"""The library keeps what owners send: once for equal bytes, counted, across a restart, and no longer than promised."""

import asyncio
import hashlib
import os
import time

import pytest

from ma2mba.errors import UserError
from ma2mba.serving import room, turnstile
from ma2mba.serving.contract import Busy
from ma2mba.serving.errors import Refused
from ma2mba.serving.library import MediaLibrary
from tests.unit.serving.media import clip, data_url, files, kinds, photo, run, sent, settings, with_library


def test_an_upload_is_found_by_its_id(tmp_path):
    content = clip(tmp_path / "a.mp4", 5)

    async def use(library):
        stored = await library.store(sent(content[:100], content[100:]), "holiday.mp4", "ann", len(content))
        assert library.find(stored.id, "ann").medium == stored.medium
        assert library.list("ann") == [library.find(stored.id, "ann")]
        assert await library.fetch(stored.id, "video", "ann") == stored.medium
        return stored

    stored = with_library(settings(tmp_path), use)
    assert stored.medium.path.read_bytes() == content
    assert stored.medium.content == hashlib.sha256(content).hexdigest()
    assert (stored.medium.name, stored.medium.kind, stored.bytes) == ("holiday.mp4", "video", len(content))
    assert stored.duration == pytest.approx(5)
    assert 7190 < stored.expires - time.time() < 7210


def test_an_upload_may_be_a_picture(tmp_path):
    content = photo(tmp_path / "a.webp")

    async def use(library):
        return await library.store(sent(content), "a", "ann")

    stored = with_library(settings(tmp_path), use)
    assert (stored.medium.kind, stored.duration) == ("image", 0)
    assert stored.id.startswith("image-")


def test_urls_with_data_are_stored_once_for_an_owner_and_not_listed(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        media = [await library.fetch(data_url(content), "video", "ann") for _ in range(3)]
        assert len(set(media)) == 1
        assert library.list("ann") == []
        assert library.status()["media"] == 1
        return media[0]

    assert with_library(settings(tmp_path), use).path.read_bytes() == content


def test_equal_bytes_are_one_file_until_the_last_owner_is_gone(tmp_path):
    content, gone = clip(tmp_path / "a.mp4"), []

    async def use(library):
        ann = await library.store(sent(content), "a.mp4", "ann")
        ben = await library.store(sent(content), "b.mp4", "ben")
        assert ann.medium.path == ben.medium.path
        assert ann.id != ben.id
        await library.delete(ann.id, "ann")
        assert ben.medium.path.exists()
        assert not gone
        await library.delete(ben.id, "ben")
        assert not ben.medium.path.exists()
        assert library.status() == {"media": 0, "media_bytes": 0, "media_owners": 0, "media_coming": 0}

    with_library(settings(tmp_path), use, gone.append)
    assert gone == [hashlib.sha256(content).hexdigest()]
    assert files(tmp_path / "cache" / "uploads") == []


def test_a_restart_finds_the_uploads(tmp_path):
    content, chosen = clip(tmp_path / "a.mp4"), settings(tmp_path)

    async def upload(library):
        return await library.store(sent(content), "a.mp4", "ann")

    async def find(library):
        assert library.list("ann") == [library.find(stored.id, "ann")]
        assert library.status()["media_bytes"] > 0
        return library.find(stored.id, "ann")

    stored = with_library(chosen, upload)
    found = with_library(chosen, find)
    assert (found.medium, found.duration, found.created) == (stored.medium, stored.duration, stored.created)
    assert found.expires == pytest.approx(stored.expires, abs=1)


def test_two_servers_do_not_share_a_folder(tmp_path):
    async def use(library):
        with pytest.raises(UserError, match="another server uses this folder"):
            MediaLibrary(settings(tmp_path))

    with_library(settings(tmp_path), use)


def test_a_medium_in_use_stays_when_its_time_is_over(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        medium = await library.fetch(data_url(content), "video", "ann")
        for entry in library._shelf:
            entry.used = 0
        library.sweep()
        assert medium.path.exists()
        library.release(medium)
        library.sweep()
        assert medium.path.exists(), "the time counts from the last use"
        for entry in library._shelf:
            entry.used = 0
        library.sweep()
        assert not medium.path.exists()

    with_library(settings(tmp_path), use)


def test_copies_for_questions_make_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "LEAST_BYTES", 1)
    monkeypatch.setattr("ma2mba.serving.incoming.LEAST_BYTES", 1)
    first, second = clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4", 4)
    chosen = settings(tmp_path, client_upload_gb=(max(len(first), len(second)) + 100) / 1e9)

    async def use(library):
        library.release(await library.fetch(data_url(first), "video", "ann"))
        await library.store(sent(second), "b.mp4", "ann")
        assert library.status()["media"] == 1
        with pytest.raises(Refused, match="Delete videos") as caught:
            await library.store(sent(first), "a.mp4", "ann")
        assert caught.value.status == 429
        await library.store(sent(first), "a.mp4", "ben")

    with_library(chosen, use)


def test_an_upload_that_ends_after_its_session_is_not_kept(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        async def slow():
            yield content[:100]
            await library.end("ann")
            yield content[100:]

        with pytest.raises(Refused, match="the session has ended"):
            await library.store(slow(), "a.mp4", "ann")
        await library.store(sent(content), "a.mp4", "ann")

    with_library(settings(tmp_path), use)


def test_a_client_that_goes_away_leaves_nothing(tmp_path):
    async def use(library):
        async def stops():
            yield b"x" * 3_000_000
            raise ConnectionResetError

        with pytest.raises(Refused):
            await library.store(stops(), "a.mp4", "ann")

        async def hangs():
            yield b"x" * 3_000_000
            await asyncio.sleep(60)

        task = asyncio.create_task(library.store(hangs(), "a.mp4", "ann"))
        while not files(tmp_path / "cache" / "uploads"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert library.status()["media_bytes"] == 0
        assert files(tmp_path / "cache" / "uploads") == []

    with_library(settings(tmp_path), use)


def test_too_many_uploads_wait_and_then_are_busy(monkeypatch):
    monkeypatch.setattr(turnstile, "WAITING_EACH", 6)
    stile, most = turnstile.Turnstile(), 0

    async def upload():
        nonlocal most
        async with stile.turn("ann"):
            running = stile._each["ann"]._value
            most = max(most, turnstile.RUNNING_EACH - running)
            await asyncio.sleep(0.01)

    async def work():
        results = await asyncio.gather(*[upload() for _ in range(8)], return_exceptions=True)
        assert [type(result) for result in results].count(Busy) == 2
        assert not stile.coming
        assert not stile._each

    run(work())
    assert most == turnstile.RUNNING_EACH


def test_files_below_the_media_root_are_opened_where_they_are(tmp_path):
    root = tmp_path / "media"
    (root / "trips").mkdir(parents=True)
    content = clip(root / "trips" / "a #1.mp4")

    async def use(library):
        urls = ("file:trips/a%20%231.mp4", f"file://{root}/trips/a%20%231.mp4", "file:///trips/a%20%231.mp4")
        media = {await library.fetch(url, "video", "ann") for url in urls}
        assert len(media) == 1
        kept = await library.keep(urls[0], "ann")
        assert await library.fetch(kept.id, "video", "ann") in media
        return media.pop()

    medium = with_library(settings(tmp_path, media_root=root), use)
    assert (medium.path, medium.name) == (root / "trips" / "a #1.mp4", "a #1.mp4")
    assert medium.content == hashlib.sha256(content).hexdigest()
    assert medium.path.exists()


def test_a_changed_file_is_another_medium(tmp_path):
    root = tmp_path / "media"
    root.mkdir()
    clip(root / "a.mp4")

    async def use(library):
        before = await library.fetch("file:a.mp4", "video", "ann")
        clip(root / "a.mp4", 4)
        os.utime(root / "a.mp4", (1, 1))
        assert (await library.fetch("file:a.mp4", "video", "ann")).content != before.content

    with_library(settings(tmp_path, media_root=root), use)


def test_the_records_hold_no_secret_of_the_owner(tmp_path):
    content = clip(tmp_path / "a.mp4")

    async def use(library):
        await library.store(sent(content), "a.mp4", "session-secret")

    with_library(settings(tmp_path), use)
    uploads = tmp_path / "cache" / "uploads"
    assert kinds(files(uploads)) == [".json", ".video"]
    assert all(b"session-secret" not in (uploads / name).read_bytes() for name in files(uploads))
    assert all((uploads / name).stat().st_mode & 0o077 == 0 for name in files(uploads) if name.endswith(".video"))
    assert uploads.stat().st_mode & 0o077 == 0

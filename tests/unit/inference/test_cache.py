"""A video that was watched before is not watched again, whatever happened to the folder in between."""

import copy
import errno
import logging

import pytest
import torch

from ma2mba.inference import chat as chats
from ma2mba.inference import state_file
from ma2mba.inference.chat import VideoChat
from tests.unit.inference.test_chat import QUESTION, save_picture


@pytest.fixture
def picture(tmp_path):
    return save_picture(tmp_path / "picture.png")


@pytest.fixture
def watch(model, tokenizer, tmp_path, monkeypatch):
    """A function that watches with the cache; returns the answer to QUESTION and whether the video was read."""

    def run(video, frames="1fps", network=model):
        read = []
        real = chats.read_video
        with monkeypatch.context() as patched:
            patched.setattr(chats, "read_video", lambda *args, **more: read.append(1) or real(*args, **more))
            chat = VideoChat(network, tokenizer)
            chat.watch(video, frames, cache=tmp_path / "cache")
        answer = chat.ask(QUESTION, max_tokens=4, logprobs=True)
        return (answer.tokens, answer.logprobs), bool(read)

    return run


def entries(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_the_second_time_nothing_is_read_and_the_answer_is_the_same(watch, picture, tmp_path):
    first, read = watch(picture)
    assert read
    again, read = watch(picture)
    assert not read
    assert again == first
    assert len(entries(tmp_path)) == 1


def test_the_content_counts_not_the_name(watch, model, tokenizer, picture, tmp_path):
    first, _ = watch(picture)
    copied = tmp_path / "copy.png"
    copied.write_bytes(picture.read_bytes())
    assert watch(copied) == (first, False)
    chat = VideoChat(model, tokenizer)
    assert chat.watch(copied, cache=tmp_path / "cache").name == "copy.png"
    save_picture(picture, seed=1)
    other, read = watch(picture)
    assert read
    assert other != first


def test_sampling_and_model_count(watch, model, picture, tmp_path):
    watch(picture)
    assert watch(picture, 2)[1]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.projector[0].weight[0, 0] += 0.01
    assert watch(picture, network=changed)[1]
    assert len(entries(tmp_path)) == 3
    assert not watch(picture)[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder"])
def test_a_damaged_entry_is_written_again(watch, picture, tmp_path, caplog, damage):
    first, _ = watch(picture)
    (entry,) = entries(tmp_path)
    content = bytearray(entry.read_bytes())
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        content[len(content) // 2] ^= 4
        entry.write_bytes({"flip": content, "cut": content[:-5], "empty": b""}[damage])
    again, read = watch(picture)
    assert (again, read) == (first, True)
    assert str(entry) in caplog.text
    assert watch(picture)[1] == (damage == "folder"), "a folder cannot be replaced by a file"


def test_a_renamed_entry_is_not_believed(watch, picture, tmp_path):
    watch(picture)
    (entry,) = entries(tmp_path)
    save_picture(picture, seed=1)
    watch(picture)
    other = next(path for path in entries(tmp_path) if path != entry)
    entry.replace(other)
    assert watch(picture)[1]


def test_a_full_disk_costs_the_entry_not_the_answer(watch, picture, tmp_path, monkeypatch, caplog):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_file.Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        answer, _ = watch(picture)
    assert answer[0]
    assert "not kept ([Errno 28] No space left on device)" in caplog.text
    assert entries(tmp_path) == []


def test_a_later_video_is_watched_without_the_cache(model, tokenizer, picture, tmp_path):
    chat = VideoChat(model, tokenizer)
    for _ in range(2):
        chat.watch(picture, cache=tmp_path / "cache")
    assert len(entries(tmp_path)) == 1

"""States by tier: the budgets are kept, what was used last stays, and what was written is found again."""

import os
import time
from pathlib import Path

import pytest
import torch

from ma2mba.inference.session import Session
from ma2mba.inference.state_file import Watched, state_bytes
from ma2mba.serving.contract import Medium
from ma2mba.serving.prompt import Prefix, Segment
from ma2mba.serving.state_folder import StateFolder
from ma2mba.serving.states import Budgets, States

SEEN = (Watched(name="video", content=None, seconds=3.0, frames=3, sampling="1fps"),)


def prefix(number: int, *others: int) -> Prefix:
    media = [Medium(Path(f"{n}.mp4"), f"{n:02x}" * 32, "video", "a") for n in (number, *others)]
    return Prefix(tuple(Segment((1, 2), medium) for medium in media))


def bits(states) -> list[torch.Tensor]:
    return [tensor for state in states for tensor in state]


@pytest.fixture
def opened(model, tokenizer, tmp_path):
    like, made = Session(model, tokenizer), []
    size = state_bytes(model)

    def open_states(device: int = 100, host: int = 0, disk: int = 1 << 30) -> States:
        kept_in = StateFolder(tmp_path / "states", like.chunk_tokens)
        made.append(States(like, kept_in, Budgets(device * size, host * size, disk)))
        return made[-1]

    yield open_states
    for one in made:
        one.close()


def state_of(model, tokenizer, number):
    session = Session(model, tokenizer)
    session.feed_text([number + 5, 7])
    return session.require_states()


def settle(states: States) -> None:
    until = time.monotonic() + 20
    while states.status()["states_writes_waiting"] and time.monotonic() < until:
        time.sleep(0.005)


def load(states: States, wanted: Prefix) -> bool:
    done = []
    if not states.load(wanted, lambda: done.append(1)):
        return False
    while not done:
        time.sleep(0.005)
    return states.known(wanted) is not None


def test_a_state_is_found_again_bit_by_bit_also_after_a_restart(model, tokenizer, opened):
    first, right = opened(), state_of(model, tokenizer, 1)
    first.keep(prefix(1), right, SEEN)
    assert all(map(torch.equal, bits(first.find(prefix(1))), bits(right)))
    first.close()
    second = opened()
    assert second.known(prefix(1)) is None
    assert load(second, prefix(1))
    assert second.known(prefix(1)) == SEEN
    assert all(map(torch.equal, bits(second.find(prefix(1))), bits(right)))
    assert not load(second, prefix(2))


def test_the_states_used_least_recently_leave_memory_and_come_back_from_disk(model, tokenizer, opened):
    states = opened(device=2)
    for number in range(3):
        states.keep(prefix(number), state_of(model, tokenizer, number), SEEN)
        settle(states)
        states.find(prefix(0))
    assert [states.known(prefix(n)) is not None for n in range(3)] == [True, False, True]
    assert states.status()["states_device"] == 2
    assert load(states, prefix(1))
    assert all(map(torch.equal, bits(states.find(prefix(1))), bits(state_of(model, tokenizer, 1))))
    assert states.status()["states_device"] == 2


def test_states_spill_to_host_memory_and_come_back(model, tokenizer, opened):
    """As on a GPU: nothing is on disk here."""
    states = opened(device=1, host=2, disk=0)
    for number in range(3):
        states.keep(prefix(number), state_of(model, tokenizer, number), SEEN)
        settle(states)
        time.sleep(0.1)
    assert (states.status()["states_device"], states.status()["states_host"]) == (1, 2)
    for number in (1, 2, 1):
        assert all(map(torch.equal, bits(states.find(prefix(number))), bits(state_of(model, tokenizer, number))))
        time.sleep(0.1)
    assert states.status()["states_returned_total"] >= 2
    assert states.status()["states_device"] == 1
    assert states.known(prefix(0)) is None, "beyond both budgets"


def test_the_disk_keeps_the_states_used_last(model, tokenizer, opened):
    first = opened()
    first.keep(prefix(9), state_of(model, tokenizer, 9), SEEN)
    settle(first)
    file = int(first.status()["states_disk_bytes"])
    first.forget("09" * 32)
    states = opened(device=0, disk=file + state_bytes(model))  # room is made for what a state takes at most
    for number in range(3):
        states.keep(prefix(number), state_of(model, tokenizer, number), SEEN)
        settle(states)
        time.sleep(0.02)  # times of files have a resolution
        load(states, prefix(0))
    assert states.status()["states_disk"] == 2
    assert [states.load(prefix(n), lambda: None) for n in range(3)] == [True, False, True]
    nothing = opened(disk=0)
    nothing.keep(prefix(5), state_of(model, tokenizer, 5), SEEN)
    settle(nothing)
    assert not nothing.load(prefix(5), lambda: None)


def test_a_damaged_file_is_read_again_and_another_model_finds_nothing(model, tokenizer, opened, tmp_path):
    states = opened()
    states.keep(prefix(1), state_of(model, tokenizer, 1), SEEN)
    states.close()
    (path,) = (tmp_path / "states").glob("*.state")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    second = opened()
    assert not load(second, prefix(1))
    assert not path.exists()


def test_a_forgotten_medium_leaves_no_state(model, tokenizer, opened):
    states = opened()
    for wanted in (prefix(1), prefix(2), prefix(2, 1)):
        states.keep(wanted, state_of(model, tokenizer, 1), SEEN)
    states.forget("01" * 32)  # while the first may be written
    settle(states)
    assert [states.known(wanted) is not None for wanted in (prefix(1), prefix(2), prefix(2, 1))] == [False, True, False]
    assert [load(states, wanted) for wanted in (prefix(1), prefix(2), prefix(2, 1))] == [False, True, False]
    assert states.status()["states_disk"] == 1


def test_a_full_disk_costs_a_warning(model, tokenizer, opened, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ma2mba.serving.states.save_state", full)
    states = opened()
    states.keep(prefix(1), state_of(model, tokenizer, 1), SEEN)
    settle(states)
    assert "No space left" in caplog.text
    assert states.find(prefix(1)) is not None


def test_names_say_nothing_of_the_client_and_the_folder_is_private(model, tokenizer, opened, tmp_path):
    states = opened()
    states.keep(prefix(1), state_of(model, tokenizer, 1), SEEN)
    settle(states)
    assert (tmp_path / "states").stat().st_mode & 0o77 == 0
    left = tmp_path / "states" / ".x.state.host.1.tmp"
    left.touch()
    os.utime(left, (1, 1))
    opened()
    assert not left.exists()

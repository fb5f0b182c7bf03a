"""A state that was saved is the state that is loaded, bit for bit; every other file is refused in one line."""

import copy
import os
import random
import struct

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.fingerprint import fingerprint
from ma2mba.inference.state_file import load_state
from tests.forked import IMPORTS_MB, call
from tests.unit.inference.states import forge, seal
from tests.unit.inference.test_chat import QUESTION, save_picture


@pytest.fixture(scope="module")
def chat(model, tokenizer, tmp_path_factory):
    chat = VideoChat(model, tokenizer)
    chat.watch(save_picture(tmp_path_factory.mktemp("media") / "picture.png"))
    return chat


@pytest.fixture(scope="module")
def state(chat, tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "a.state"
    chat.save(path)
    return path


def tensors(chat):
    session = chat._now.session
    return [session.last_1D, *(tensor for of_layer in session.states for tensor in of_layer)]


def refusal(chat, path) -> str:
    with pytest.raises(UserError) as refused:
        chat.load(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("remember", [False, True])
def test_a_loaded_state_has_the_same_bits_and_goes_on_alike(chat, tmp_path, remember):
    saved = chat.fork()
    if remember:
        saved.ask(QUESTION, max_tokens=4, remember=True)
    saved.save(tmp_path / "b.state")
    loaded = chat.load(tmp_path / "b.state")
    assert (loaded.watched, loaded.turns) == (saved.watched, saved.turns)
    for one, other in zip(tensors(loaded), tensors(saved), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    for question in (QUESTION, "How many scenes?"):
        answers = [talk.ask(question, remember=True, max_tokens=5, logprobs=True) for talk in (saved, loaded)]
        assert answers[0].tokens == answers[1].tokens
        assert answers[0].logprobs == answers[1].logprobs
    for one, other in zip(tensors(loaded), tensors(saved), strict=True):
        assert torch.equal(one, other)


def test_a_loaded_state_has_the_memory_layout_that_kernels_need(chat, state):
    like = chat.model.initial_states(torch.zeros(1, 1, 32))
    loaded = chat.load(state)._now.session.states
    assert [t.stride() for pair in loaded for t in pair] == [t.stride() for pair in like for t in pair]


def test_a_session_of_other_chunks_is_loaded_with_its_chunks(model, tokenizer, state, tmp_path):
    path = forge(state, lambda m, facts, t: facts.update(chunk_tokens=7), tmp_path / "b.state")
    session, facts = load_state(path, model, tokenizer, fingerprint(model))
    assert session.chunk_tokens == facts.chunk_tokens == 7


def test_every_byte_counts(chat, state, tmp_path):
    content = state.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    places = [*range(header), *generator.sample(range(header, len(content)), 500), len(content) - 1]
    path = tmp_path / "flipped.state"
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        assert "damaged" in refusal(chat, path), place


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1, -1000])
def test_a_truncated_file_is_refused(chat, state, tmp_path, kept):
    (tmp_path / "cut.state").write_bytes(state.read_bytes()[:kept])
    assert "damaged" in refusal(chat, tmp_path / "cut.state")


def test_a_longer_file_is_refused(chat, state, tmp_path):
    (tmp_path / "longer.state").write_bytes(state.read_bytes() + b"\0")
    assert "damaged" in refusal(chat, tmp_path / "longer.state")


def test_the_state_of_another_model_is_refused(chat, model, tokenizer, state):
    with torch.no_grad():
        changed = copy.deepcopy(model)
        changed.language_model.backbone.layers[1].mixer.dt_bias[3] += 1e-6
    assert "belongs to another model. Use" in refusal(VideoChat(changed, tokenizer), state)
    wider = VideoChat(copy.deepcopy(model).double(), tokenizer)
    assert "belongs to another model or dtype (float32, not float64)" in refusal(wider, state)


def test_the_fingerprint_is_of_values_and_configuration(model):
    same = copy.deepcopy(model)
    assert fingerprint(same) == fingerprint(model)
    config = model.config.language_model.model_copy(update={"norm_eps": 1e-6})
    same.config = model.config.model_copy(update={"language_model": config})
    assert fingerprint(same) != fingerprint(model)
    for name, _ in model.named_parameters():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).flatten()[-1] += 0.25
        assert fingerprint(changed) != fingerprint(model), name


def set_tensor(name, value):
    return lambda metadata, facts, tensors: tensors.__setitem__(name, value(tensors))


HOSTILE = {
    "version": (lambda m, f, t: m.update(version="2"), "has version 2 of the format"),
    "huge version": (lambda m, f, t: m.update(version="9" * 100_000), "of the format"),
    "format": (lambda m, f, t: m.update(format="pt"), "not a state file"),
    "no facts": (lambda m, f, t: m.update(facts=""), "not a state file"),
    "unknown fact": (lambda m, f, t: f.update(x=1), "not a state file (x: Extra inputs"),
    "chunk": (lambda m, f, t: f.update(chunk_tokens=0), "not a state file (chunk_tokens"),
    "huge chunk": (lambda m, f, t: f.update(chunk_tokens=1 << 40), "not a state file (chunk_tokens"),
    "seconds": (lambda m, f, t: f["watched"][0].update(seconds=-1), "not a state file (watched.0.seconds"),
    "nan seconds": (
        lambda m, f, t: f["watched"][0].update(seconds=float("nan")),
        "not a state file (watched.0.seconds",
    ),
    "role": (lambda m, f, t: f["turns"].append({"role": "system", "text": "x"}), "not a state file (turns.0.role"),
    "extra tensor": (set_tensor("layers.9.0", lambda t: torch.zeros(1)), "'layers.9.0' is unknown"),
    "odd name": (set_tensor("\x1b[31m" * 10_000, lambda t: torch.zeros(1)), "is unknown"),
    "missing tensor": (lambda m, f, t: t.pop("layers.2.1"), "'layers.2.1' is missing"),
    "shape": (
        set_tensor("layers.1.0", lambda t: torch.zeros(1, 80, 4)),
        "is [1, 80, 4] of F32, not [1, 80, 3]",
    ),
    "rank": (set_tensor("last", lambda t: torch.zeros(32)), "'last' is [32] of F32, not [1, 32] of"),
    "dtype": (
        set_tensor("layers.1.1", lambda t: t["layers.1.1"].to(torch.int64)),
        "of I64, not [1, 8, 8, 8] of",
    ),
    "nan tensor": (set_tensor("layers.0.1", lambda t: t["layers.0.1"] * torch.nan), "has NaN or infinite values"),
    "inf": (set_tensor("last", lambda t: t["last"] + torch.inf), "has NaN or infinite values"),
}


@pytest.mark.parametrize(("change", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_with_a_right_checksum_may_still_be_wrong(chat, state, tmp_path, change, said):
    assert said in refusal(chat, forge(state, change, tmp_path / "hostile.state"))


def test_a_missing_residual_is_fine_and_the_logits_wait_for_the_next_token(chat, state, tmp_path):
    loaded = chat.load(forge(state, lambda m, f, t: t.pop("last"), tmp_path / "b.state"))
    assert loaded.ask(QUESTION, max_tokens=3).tokens == chat.ask(QUESTION, max_tokens=3).tokens
    with pytest.raises(ValueError, match="a decoder has read the last token"):
        loaded._now.session.logits()


def raw(header: bytes, rest: bytes = b"") -> bytearray:
    return bytearray(struct.pack("<Q", len(header)) + header + rest)


META = b'{"__metadata__":{"checksum":"00000000000000000000000000000000","format":"ma2mba state","version":"1"}'
RAW = {
    "text": bytearray(b"no state at all"),
    "no checksum": raw(b"{}"),
    "two checksums": raw(META + b',"a":{"checksum":"00000000000000000000000000000000"}}'),
    "no json": seal(raw(META)),
    "huge shape": seal(raw(META + b',"last":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}', b"abcd")),
    "holes": seal(raw(META + b',"last":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"abcdefgh")),
    "long header": bytearray(struct.pack("<Q", 1 << 40) + META),
    "negative": bytearray(b"\xff" * 8 + META),
}


@pytest.mark.parametrize("content", RAW.values(), ids=RAW)
def test_a_hostile_header_is_refused(chat, tmp_path, content):
    (tmp_path / "raw.state").write_bytes(content)
    refusal(chat, tmp_path / "raw.state")


def test_other_things_than_files_are_refused(chat, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing", "/dev/zero"):
        assert "cannot be read" in refusal(chat, path)


def test_a_file_with_a_hole_of_terabytes_is_refused_at_once(chat, state, tmp_path):
    path = tmp_path / "hole.state"
    path.write_bytes(state.read_bytes())
    with open(path, "r+b") as file:
        file.truncate(1 << 42)

    outcome = call(lambda: refusal(chat, path), limit_s=20)
    assert outcome.code == 0, outcome.err
    assert outcome.peak_mb < IMPORTS_MB + 200
    assert "MA2MBA_LIMIT_STATE_GB" in refusal(chat, path)

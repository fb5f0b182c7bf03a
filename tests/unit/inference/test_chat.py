"""Asking about a real file: a picture, and a video that the toy's writer made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.toy.generate import plan_series, write_media
from ma2mba.errors import UserError
from ma2mba.inference.chat import Together, VideoChat, parse_frames
from ma2mba.inference.interleaved import with_frames
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.session import Session
from ma2mba.model.conversation import END, Turn, encode_conversation, encode_prompt
from ma2mba.video.blocks import read_frames
from ma2mba.video.errors import MediaError
from tests.unit.inference.scripted import scripted

QUESTION = "Which symbol appeared?"
K = 4
"""Tokens of a frame of the model."""


def save_picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_media([(movie, folder) for movie in plan_series("clips", [(4, 4)], 0, lambda i: True)], 1)
    return folder / "clips/00000.mp4"


@pytest.fixture
def picture(tmp_path):
    return save_picture(tmp_path / "picture.png")


@pytest.fixture
def chat(model, tokenizer):
    return VideoChat(model, tokenizer)


def session_of(model, tokenizer, encoded, frames_NHWC) -> Session:
    """Return a session that has read all this in one call."""
    ids_S, visual_S = with_frames(encoded.token_ids, encoded.frame_positions, K)
    session = Session(model, tokenizer)
    session.feed(ids_S, visual_S, torch.from_numpy(frames_NHWC.transpose(0, 3, 1, 2).copy()))
    return session


def test_frames_are_parsed():
    assert parse_frames("1fps") is None
    assert parse_frames("8") == 8


@pytest.mark.parametrize("text", ["0", "-1", "2fps", "", "eight", "1.5", "²"])
def test_other_frames_are_refused_saying_what_is_allowed(text):
    with pytest.raises(UserError, match=r"not a number of frames above 0\. Use 1fps, or a number"):
        parse_frames(text)


@pytest.mark.parametrize(("frames", "seen"), [("1fps", 4), (2, 2)])
def test_a_video_is_sampled_as_asked(chat, video, frames, seen):
    watched = chat.watch(video, frames)
    assert (watched.name, watched.frames, watched.sampling, watched.partial) == ("00000.mp4", seen, str(frames), None)
    assert watched.seconds == pytest.approx(4, abs=0.2)
    assert chat.watched == (watched,)


def test_the_question_is_read_as_training_has_it_and_every_answer_stays_the_same(chat, model, tokenizer, video):
    chat.watch(video)
    first = chat.ask(QUESTION, max_tokens=5)
    frames_NHWC = read_frames(video, 56).frames_NHWC
    expected = session_of(model, tokenizer, encode_prompt(tokenizer, QUESTION, 4), frames_NHWC)
    # The question's tokens are in a chunk of their own: see test_session.
    torch.testing.assert_close(chat.asked(QUESTION).logits(), expected.logits(), rtol=0, atol=1.5e-6)
    assert first.text, "the random model said nothing: choose another video"
    chat.ask("How many scenes were there?", max_tokens=5)
    assert chat.ask(QUESTION, max_tokens=5).tokens == first.tokens
    assert chat.turns == ()


def test_questions_that_are_answered_together_get_the_same_answers(chat, video):
    chat.watch(video)
    questions = [QUESTION, "How many scenes?", QUESTION, "What?"]
    for options in ({}, {"temperature": 1.0, "seed": 8}):
        together = chat.ask_all(questions, max_tokens=6, **options)
        assert [a.tokens for a in together] == [chat.ask(q, max_tokens=6, **options).tokens for q in questions]


def test_chats_about_several_videos_are_answered_together(chat, video, picture):
    other = chat.fork()
    chat.watch(video)
    other.watch(picture)
    chats, questions = [chat, other, chat], ["What?", "What?", "How many?"]
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=6, logprobs=True)
    together = Together(chats, questions, sampling).finish()
    for talk, question, answer in zip(chats, questions, together, strict=True):
        alone = talk.begin(question, sampling).finish()[0]
        assert answer.tokens == alone.tokens
        # To rounding: log-probabilities are of the order of 4.
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=5e-6)
    assert together[0].logprobs != together[1].logprobs


def test_a_second_video_continues_the_users_turn(chat, model, tokenizer, video, picture):
    """As if the frames of both were of one video: no prompt is repeated."""
    chat.watch(video)
    before = chat.asked(QUESTION).logits()
    chat.watch(picture)
    frames_NHWC = np.concatenate([read_frames(video, 56).frames_NHWC, read_frames(picture, 56).frames_NHWC])
    expected = session_of(model, tokenizer, encode_prompt(tokenizer, QUESTION, 5), frames_NHWC).logits()
    torch.testing.assert_close(chat.asked(QUESTION).logits(), expected, rtol=0, atol=1.5e-6)
    assert (before - expected).abs().max() > 1.5e-5
    assert [one.frames for one in chat.watched] == [4, 1]


def test_remembered_answers_are_read_as_training_has_them(chat, model, tokenizer, video, monkeypatch):
    chat.watch(video)
    questions, answers = [QUESTION, "How many?", "What symbol?"], ["a red star", "three symbol pair"]
    for question, answer in zip(questions, answers, strict=False):
        script = tokenizer.encode(answer, add_special_tokens=False).ids + [tokenizer.token_to_id(END)]
        with scripted(monkeypatch, [script]):
            chat.ask(question, remember=True)
    assert [said.text for said in chat.turns] == [questions[0], answers[0], questions[1], answers[1]]
    turns = [Turn(said.role, said.text) for said in chat.turns]
    turns += [Turn("user", questions[2]), Turn("assistant", "x")]
    encoded = encode_conversation(tokenizer, turns, 4)
    last = len(encoded.token_ids) - encoded.supervised[::-1].index(False)
    encoded.token_ids = encoded.token_ids[:last]
    expected = session_of(model, tokenizer, encoded, read_frames(video, 56).frames_NHWC)
    torch.testing.assert_close(chat.asked(questions[2]).logits(), expected.logits(), rtol=0, atol=1.5e-6)


def test_forget_goes_back_to_the_video(chat, video, tmp_path):
    chat.watch(video)
    first = chat.ask(QUESTION, max_tokens=4, remember=True)
    chat.save(tmp_path / "talk.state")
    assert chat.ask(QUESTION, max_tokens=4).logprobs == []
    chat.forget()
    assert chat.turns == ()
    assert chat.ask(QUESTION, max_tokens=4).tokens == first.tokens
    with pytest.raises(UserError, match="only the state after its conversation"):
        chat.load(tmp_path / "talk.state").forget()


def test_a_fork_is_as_a_new_session_and_changes_nothing(chat, model, tokenizer, video, picture):
    chat.watch(video)
    fork, new = chat.fork(), VideoChat(model, tokenizer)
    new.watch(video)
    for talk in (fork, new):
        talk.ask("How many?", max_tokens=3, remember=True)
        talk.watch(picture)
    for one, other in zip(fork._now.session.states, new._now.session.states, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    first, second = (talk.ask(QUESTION, logprobs=True, max_tokens=4) for talk in (fork, new))
    assert first.logprobs == second.logprobs
    assert len(chat.watched) == 1
    assert chat.turns == ()


def test_an_answer_that_is_not_read_to_its_end_is_not_remembered(chat, video):
    chat.watch(video)
    before = chat.ask(QUESTION, max_tokens=4).tokens
    next(iter(chat.stream("How many?", max_tokens=4, remember=True)))
    assert chat.turns == ()
    assert chat.ask(QUESTION, max_tokens=4).tokens == before


def test_one_may_talk_without_a_video(chat, model, tokenizer):
    session = Session(model, tokenizer)
    session.feed_text(encode_prompt(tokenizer, QUESTION, 0).token_ids)
    assert torch.equal(chat.asked(QUESTION).logits(), session.logits())
    with pytest.raises(UserError, match="nothing has been watched or said"):
        chat.save("a.state")


@pytest.mark.parametrize("question", ["  ", ""])
def test_an_empty_question_is_refused(chat, video, question):
    chat.watch(video, 1)
    with pytest.raises(UserError, match="question is empty"):
        chat.ask(question)


def test_a_broken_video_is_refused_by_name_and_leaves_the_chat_as_it_was(chat, video, tmp_path):
    chat.watch(video)
    before = chat.ask(QUESTION, max_tokens=4).tokens
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    for name in ("broken.mp4", "missing.mp4"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            chat.watch(tmp_path / name)
    assert len(chat.watched) == 1
    assert chat.ask(QUESTION, max_tokens=4).tokens == before


def test_a_video_that_changes_while_it_is_watched_is_refused(chat, picture, tmp_path):
    def change(progress):
        save_picture(picture, seed=1)

    with pytest.raises(MediaError, match="changed while it was watched"):
        chat.watch(picture, report=change)


def test_what_was_not_hashed_cannot_be_saved(chat, picture, tmp_path):
    chat.watch(picture, hashed=False)
    with pytest.raises(UserError, match=r"picture\.png: was watched without its hash"):
        chat.save(tmp_path / "a.state")


def test_an_answer_that_was_given_elsewhere_is_read_as_in_training(model, tokenizer):
    chat = VideoChat(model, tokenizer)
    chat.said("what color?", "red star")
    turns = [Turn("user", "what color?"), Turn("assistant", "red star"), Turn("user", "how many?")]
    whole = encode_conversation(tokenizer, [*turns, Turn("assistant", "one")], 0)
    answer = encode_conversation(tokenizer, [Turn("user", "?"), Turn("assistant", "one")], 0).supervised.count(True)
    session = Session(model, tokenizer)
    session.feed_text(whole.token_ids[:-answer])
    torch.testing.assert_close(chat.asked("how many?").logits(), session.logits(), rtol=1e-5, atol=1e-5)
    assert [said.text for said in chat.turns] == ["what color?", "red star"]

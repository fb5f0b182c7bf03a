"""The processor of a model folder gives the ids of `ma2mba.model.conversation` and the frames of `FrameReader`."""

import random
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.toy.words import build_tokenizer
from ma2mba.errors import UserError
from ma2mba.memory import at_most
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import Turn, encode_conversation, encode_prompt
from ma2mba.model.encoded import SYSTEM, Encoded
from ma2mba.model.hf.code import video_processing_video_ma2mba as video_processing
from ma2mba.model.hf.code.processing_video_ma2mba import VideoMa2mbaProcessor
from ma2mba.model.hf.files import VIDEO, processor_files, video_token_id
from ma2mba.model.plain_text import END
from ma2mba.video import blocks
from ma2mba.video.frames import FrameReader
from tests.tiny import TINY_MODEL
from tests.unit.video.numbered_video import write

SIZE, PER_FRAME = 28, 4
QUESTION = "Which symbol appeared?"
ODD_TEXTS = [
    "?What happens",
    " What happens ",
    "a <|endoftext|> b",
    "<|endoftext|>",
    "<|video|>",
    "x<|video|><|user|> y",
    " <|assistant|>yes<|endoftext|> <|user|>no",
    "<|system|>You are a helpful assistant.<|endoftext|>",
    "|>|> <|",
    "line\nline\n\n",
    "tabs\tand   many    spaces",
    "é中😀",
]


def byte_level() -> Tokenizer:
    """Return a byte-level BPE tokenizer as GPT-NeoX has: runs of spaces are tokens, `<|user|>` is not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SYSTEM, QUESTION, "<|user|>What ?What <|assistant|> happens"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("    ", normalized=True), AddedToken("  ", normalized=True)])
    return tokenizer


@pytest.fixture(scope="module", params=["byte-level", "toy", "gpt-neox"])
def folder(request, tmp_path_factory) -> Path:
    """What a processor reads of a model folder."""
    folder = tmp_path_factory.mktemp("folder")
    if request.param == "gpt-neox":
        path = request.getfixturevalue("shared") / "gpt-neox-tokenizer/20B_tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = byte_level() if request.param == "byte-level" else build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tiny = ModelConfig.model_validate(TINY_MODEL)
    for name, text in processor_files(tiny, tokenizer).items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return VideoMa2mbaProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write(path, range(80), Fraction(1, 10))
    return path


@pytest.fixture(scope="module")
def frames(video) -> torch.Tensor:
    """The eight frames of the video."""
    return read(video)


def read(path: Path, count: int | None = None) -> torch.Tensor:
    with FrameReader() as reader:
        found = reader.read(path, SIZE, count=count)
    return torch.from_numpy(found.pictures_MCHW[found.shown_N])


def asked(text: str, video=None, **more) -> list[dict]:
    parts = [{"type": "video", "path": str(video)}] if video else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ids_of(encoded: Encoded, video_token: int) -> list[int]:
    """Return the ids with visual tokens in their places."""
    ids = list(encoded.token_ids)
    for at in reversed(encoded.frame_positions):
        ids[at:at] = [video_token] * PER_FRAME
    return ids


def test_the_token_of_videos_is_the_first_free_one_and_text_is_not_changed(processor, tokenizer):
    assert processor.video_token_id == len(tokenizer.get_vocab()) == video_token_id(tokenizer)
    assert processor.tokenizer.convert_tokens_to_ids(VIDEO) == processor.video_token_id
    assert processor.tokenizer.convert_ids_to_tokens(processor.video_token_id) == VIDEO
    end = tokenizer.token_to_id(END)
    assert (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id) == (end, end)
    known = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    assert video_token_id(known) == processor.video_token_id
    assert video_token_id(Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))) == 4


@pytest.mark.parametrize("text", [QUESTION, *ODD_TEXTS])
def test_a_question_has_the_ids_of_ask(processor, tokenizer, video, frames, text):
    found = processor.apply_chat_template(
        asked(text, video), tokenize=True, add_generation_prompt=True, return_dict=True
    )
    expected = ids_of(encode_prompt(tokenizer, text, len(frames)), processor.video_token_id)
    assert found["input_ids"].tolist() == [expected]
    assert found["attention_mask"].tolist() == [[1] * len(expected)]
    assert torch.equal(found["pixel_values_videos"], frames)
    assert set(found) == {"input_ids", "attention_mask", "pixel_values_videos"}


def test_random_texts_have_the_ids_of_ask(processor, tokenizer):
    rng = random.Random(0)
    pieces = ["a", "What", " ", "  ", "\n", "?", "|>", "<|", VIDEO, END, "<|user|>", "<|padding|>", "é", "symbol", "."]
    for _ in range(500):
        texts = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(3)]
        if not (texts[0].strip() and texts[2].strip()):
            continue
        turns = [*asked(texts[0]), {"role": "assistant", "content": texts[1]}, *asked(texts[2])]
        found = processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
        said = encode_conversation(tokenizer, [Turn("user", texts[0]), Turn("assistant", texts[1])], 0)
        follow_up = encode_prompt(tokenizer, texts[2], 0).token_ids[len(tokenizer_ids(tokenizer, SYSTEM)) :]
        assert found.tolist() == [said.token_ids + follow_up], texts


def tokenizer_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_a_conversation_for_training_has_the_ids_and_the_mask_of_this_project(processor, tokenizer, video, frames):
    turns = [
        *asked(QUESTION, video),
        {"role": "assistant", "content": "star"},
        *asked("?Why"),
        {"role": "assistant", "content": [{"type": "text", "text": "circle"}]},
    ]
    own = [Turn("user", QUESTION), Turn("assistant", "star"), Turn("user", "?Why"), Turn("assistant", "circle")]
    encoded = encode_conversation(tokenizer, own, len(frames))
    found = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"].tolist() == [ids_of(encoded, processor.video_token_id)]
    text_mask = found["assistant_masks"][found["input_ids"] != processor.video_token_id]
    assert text_mask.bool().tolist() == encoded.supervised


def test_the_text_of_a_conversation_gives_the_same_ids(processor, video):
    turns = [*asked("?What", video), {"role": "assistant", "content": " star."}, *asked("|>why ")]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == (f"{SYSTEM} <|user|>{VIDEO}?What{END} <|assistant|> star.{END} <|user|>|>why {END} <|assistant|>")
    direct = processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)
    by_text = processor(text=text, videos=str(video))
    assert direct.keys() == by_text.keys()
    assert all(torch.equal(direct[name], by_text[name]) for name in direct)


def test_a_system_message_and_an_unfinished_answer(processor, tokenizer):
    default = [{"role": "system", "content": "You are a helpful assistant."}, *asked(QUESTION)]
    assert torch.equal(chat(processor, default), chat(processor, default[1:]))
    other = [{"role": "system", "content": "Be brief."}, *asked(QUESTION)]
    encoded = Encoded()
    encoded.add_template(tokenizer, "<|system|>")
    encoded.add_text(tokenizer, "Be brief.")
    start = encoded.token_ids + tokenizer_ids(tokenizer, END)
    assert chat(processor, other)[0, : len(start)].tolist() == start
    assert processor.apply_chat_template(other).startswith(f"<|system|>Be brief.{END} <|user|>")
    begun = [*asked(QUESTION), {"role": "assistant", "content": "a star"}]
    ids = processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)[0].tolist()
    answer = Encoded()
    answer.add_text(tokenizer, "a star")
    assert ids == chat(processor, begun[:1])[0].tolist() + answer.token_ids


def chat(processor, turns, **options) -> torch.Tensor:
    return processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, **options)


def test_a_batch_is_padded_on_the_left_and_keeps_the_order_of_frames(processor, video, frames):
    conversations = [asked("one"), asked(QUESTION, video), asked("What happens", video)]
    found = processor.apply_chat_template(
        conversations, tokenize=True, add_generation_prompt=True, return_dict=True, num_frames=2
    )
    for row, turns in enumerate(conversations):
        alone = chat(processor, turns, num_frames=2)[0]
        padding = found["input_ids"].shape[1] - len(alone)
        assert found["input_ids"][row].tolist() == [processor.tokenizer.pad_token_id] * padding + alone.tolist()
        assert found["attention_mask"][row].tolist() == [0] * padding + [1] * len(alone)
    assert torch.equal(found["pixel_values_videos"], torch.cat([read(video, 2)] * 2))
    lists = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, padding=False, return_tensors=None, num_frames=2
    )
    assert len({len(ids) for ids in lists["input_ids"]}) == 3


@pytest.mark.parametrize("key", ["path", "url", "video"])
def test_a_part_names_its_video_in_three_ways(processor, video, frames, key):
    turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "video", key: str(video)}]}]
    first = asked(QUESTION, video)
    found = processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert torch.equal(found["input_ids"], chat(processor, first))
    assert torch.equal(found["pixel_values_videos"], frames)


def test_options_choose_the_frames(processor, video):
    for options, expected in (
        ({"num_frames": 3}, read(video, 3)),
        ({"videos_kwargs": {"num_frames": 3}}, read(video, 3)),
        ({"processor_kwargs": {"num_frames": 3}}, read(video, 3)),
        ({"fps": 1}, read(video)),
    ):
        found = processor.apply_chat_template(
            asked(QUESTION, video), tokenize=True, add_generation_prompt=True, return_dict=True, **options
        )
        assert torch.equal(found["pixel_values_videos"], expected)
    assert len(processor(text=QUESTION, videos=str(video), fps=2)["pixel_values_videos"]) == 16
    assert len(processor(text=QUESTION, videos=str(video), fps=0.5)["pixel_values_videos"]) == 4


def test_a_plain_call_takes_a_question(processor, video, frames):
    found = processor(text=[QUESTION, "What happens"], videos=[str(video), video])
    single = processor(text=QUESTION, videos=f"file://{video}")
    assert torch.equal(single["input_ids"], chat(processor, asked(QUESTION, video)))
    assert torch.equal(found["pixel_values_videos"], torch.cat([frames, frames]))
    assert torch.equal(processor(text=QUESTION, video=str(video))["pixel_values_videos"], frames)
    assert processor(text=QUESTION)["input_ids"].shape[0] == 1
    assert set(processor(videos=str(video))) == {"pixel_values_videos"}


def test_a_url_is_downloaded(processor, video, frames):
    handler = partial(SimpleHTTPRequestHandler, directory=str(video.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{video.name}"
        assert torch.equal(processor(text=QUESTION, videos=address)["pixel_values_videos"], frames)
        with pytest.raises(UserError, match=r"missing.mp4: cannot be downloaded \(.*404"):
            processor(text=QUESTION, videos=address.replace(video.name, "missing.mp4"))
        server.shutdown()


@pytest.mark.parametrize("threads", [0, 1])
def test_memory_is_limited_only_without_other_threads(processor, video, monkeypatch, threads):
    """The limit belongs to the process: another thread may need memory at that time."""
    limited = []

    def read_frames(path, size, **options):
        with at_most(1 << 40) as lowest:
            limited.append(lowest)
        return blocks.read_frames(path, size, **options)

    monkeypatch.setattr(video_processing, "read_frames", read_frames)
    monkeypatch.setattr(video_processing.threading, "active_count", lambda: 1 + threads)
    processor(text=QUESTION, videos=str(video))
    assert limited == [threads == 0]


def test_frames_in_memory_are_resized_as_those_of_a_file(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 64, 3), np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    forms = [pixels, torch.from_numpy(pixels), pixels.transpose(0, 3, 1, 2), pictures, list(pixels), tuple(pictures)]
    expected = processor(text=QUESTION, videos=pixels)["pixel_values_videos"]
    assert expected.shape == (5, 3, SIZE, SIZE)
    for form in forms:
        assert torch.equal(processor(text=QUESTION, videos=form)["pixel_values_videos"], expected)
        assert torch.equal(processor(text=[QUESTION], videos=[form])["pixel_values_videos"], expected)
        turns = [{"role": "user", "content": [{"type": "video", "video": form}, {"type": "text", "text": QUESTION}]}]
        found = processor.apply_chat_template(turns, tokenize=True, return_dict=True, num_frames=2)
        assert torch.equal(found["pixel_values_videos"], expected[[0, 4]])
    two = processor(text=[QUESTION, "b"], videos=[pictures, pixels])
    assert torch.equal(two["pixel_values_videos"], torch.cat([expected, expected]))


def test_a_picture_is_a_video_of_one_frame(processor, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    picture.save(tmp_path / "p.png")
    for part in (
        {"type": "image", "image": picture},
        {"type": "image", "path": str(tmp_path / "p.png")},
        {"type": "video", "path": str(tmp_path / "p.png")},
    ):
        turns = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
        found = processor.apply_chat_template(turns, tokenize=True, return_dict=True)
        assert torch.equal(found["pixel_values_videos"], read(tmp_path / "p.png"))


def test_what_it_cannot_use_is_refused_with_a_reason(processor, video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    for name in ("broken.mp4", "missing.mp4"):
        with pytest.raises(UserError, match=name), FrameReader() as reader:
            reader.read(tmp_path / name, SIZE)
        with pytest.raises(UserError, match=name):
            processor(text=QUESTION, videos=str(tmp_path / name))
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    refused = [
        (lambda: chat(processor, asked("  ", video)), "the question is empty"),
        (lambda: processor(text="", videos=str(video)), "the question is empty"),
        (lambda: processor(text=f"{VIDEO}{VIDEO}a", videos=str(video)), "stands 2 times"),
        (lambda: processor(text=f"{VIDEO}a"), "stands 1 times"),
        (lambda: processor(text=["a", "b"], videos=str(video)), "1 videos for 2 texts"),
        (lambda: processor(text=QUESTION, videos=pixels / 255), "float64"),
        (lambda: processor(text=QUESTION, videos=np.zeros((2, 8, 8, 4), np.uint8)), "a frame of shape"),
        (lambda: processor(text=QUESTION, videos=pixels, fps=2), "no times"),
        (lambda: processor(text=QUESTION, videos=str(video), num_frames=0), "num_frames: 0 is not above 0"),
        (lambda: processor(text=QUESTION, videos=str(video), max_length=5), "Choose fewer frames"),
        (lambda: processor(), "Give text, videos, or both"),
        (lambda: chat(processor, [{"role": "assistant", "content": "a"}]), "Alternate user, assistant"),
        (lambda: chat(processor, asked("a") + asked("b")), "Alternate user, assistant"),
        (lambda: chat(processor, [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}]}]), "'audio'"),
        (lambda: chat(processor, []), "Alternate"),
    ]
    for call, reason in refused:
        with pytest.raises(ValueError, match=reason):
            call()


def test_ids_become_text_again(processor, tokenizer, video):
    ids = tokenizer_ids(tokenizer, "which symbol appeared?") + tokenizer_ids(tokenizer, END)
    expected = tokenizer.decode(ids)
    assert processor.batch_decode(torch.tensor([ids]), skip_special_tokens=True) == [expected]
    assert processor.post_process_image_text_to_text(torch.tensor([ids])) == [expected]
    assert processor.post_process_multimodal_output(torch.tensor([ids]), generation_mode="text") == [expected]
    with pytest.raises(ValueError, match="generation_mode"):
        processor.post_process_multimodal_output(torch.tensor([ids]), generation_mode="image")

"""A model folder in an environment with transformers, torch and av, but without this package: the same answers.

A script there loads the folder, reads a video, generates, saves, loads again and trains. What it finds is compared
with `ma2mba ask`.
"""

import hashlib
import re
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import pytest
import torch

from data_prep.toy.words import save_tokenizer
from ma2mba.inference.chat import VideoChat
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import encode_prompt, load_tokenizer
from ma2mba.model.hf.files import video_token_id
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.pretrained import load_model, save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.frames import FrameReader
from tests import isolated
from tests.unit.video.numbered_video import write

PAGE = Path(__file__).resolve().parents[2] / "docs/transformers.md"
SIZE, PER_FRAME = 56, 4
QUESTIONS = ["Which symbol appeared?", "How many scenes were there?", "what <|endoftext|> <|video|> star"]
NEW = 12
TOLERANCE = 1e-5

PRELUDE = """
import hashlib, importlib.util, json, sys
import torch
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

given = json.load(sys.stdin)
torch.manual_seed(0)
assert importlib.util.find_spec("ma2mba") is None and importlib.util.find_spec("simplejpeg") is None

def load(folder, auto=AutoModelForImageTextToText):
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)

def conversation(video, question):
    return [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": question}]}]

def read(processor, conversations, **options):
    return processor.apply_chat_template(
        conversations, tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )

def last(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1].float()

def close(found, expected):
    return float((found - expected).abs().max())
"""

ANSWER = (
    PRELUDE
    + """
model, processor = load(given["folder"])
other, _ = load(given["folder"], AutoModelForMultimodalLM)
asked = [(video, question, options) for video, options in given["videos"] for question in given["questions"]]
found, singles = [], []
for video, question, options in asked:
    inputs = read(processor, conversation(video, question), **options)
    ids = model.generate(**inputs, max_new_tokens=given["new"], do_sample=False)[0, inputs["input_ids"].shape[1] :]
    logits = last(model, inputs)
    assert torch.equal(logits, last(other, inputs))
    found.append({
        "frames": hashlib.sha256(inputs["pixel_values_videos"].numpy().tobytes()).hexdigest(),
        "ids": inputs["input_ids"][0].tolist(),
        "logits": logits[0].tolist(),
        "answer": ids.tolist(),
        "text": processor.decode(ids, skip_special_tokens=True),
    })
    singles.append((logits[0], ids.tolist()))
model.save_pretrained(given["saved"])
processor.save_pretrained(given["saved"])
again, reader = load(given["saved"])
inputs = read(reader, conversation(*asked[0][:2]))
same = read(processor, conversation(*asked[0][:2]))
reload_equal = all(torch.equal(inputs[name], same[name]) for name in same) and torch.equal(
    last(again, inputs), last(model, same)
)

whole = [one for one in asked if not one[2]]
batch = read(processor, [conversation(video, question) for video, question, _ in whole])
logits = last(model, batch)
worst, answers_equal = 0.0, True
ids = model.generate(**batch, max_new_tokens=given["new"], do_sample=False)[:, batch["input_ids"].shape[1] :]
alone = [single for single, one in zip(singles, asked) if not one[2]]
end = processor.tokenizer.eos_token_id
for row, (expected, answer) in enumerate(alone):
    worst = max(worst, close(logits[row], expected))
    written = ids[row].tolist()
    answers_equal &= written[: len(answer)] == answer and set(written[len(answer) :]) <= {end}
print(json.dumps({
    "found": found,
    "reload_equal": reload_equal,
    "batch_worst": worst,
    "batch_answers_equal": answers_equal,
    "lengths": sorted(batch["attention_mask"].sum(1).tolist()),
    "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("ma2mba", "data_prep")),
}))
"""
)

TRAIN = (
    PRELUDE
    + """
from transformers import Trainer, TrainingArguments

model, processor = load(given["folder"])
answers = ["star", "two", "a circle appears."]
samples = [
    conversation(given["videos"][number % 2][0], question) + [{"role": "assistant", "content": answers[number]}]
    for number, question in enumerate(given["questions"])
] * 2

def collate(rows):
    batch = processor.apply_chat_template(rows, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    return batch

before = {name: value.clone() for name, value in model.state_dict().items()}
arguments = TrainingArguments(
    output_dir=given["saved"], max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
    remove_unused_columns=False, report_to=[], logging_steps=1, save_steps=3, disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=samples, data_collator=collate, processing_class=processor)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
still = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
again, _ = load(given["saved"] + "/checkpoint-3")
kept = all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
print(json.dumps({"losses": losses, "still": still, "kept": kept}))
"""
)

PIPELINE = (
    PRELUDE
    + """
from transformers import pipeline

pipe = pipeline("any-to-any", model=given["folder"], trust_remote_code=True, dtype=torch.float32)
turns = conversation(given["videos"][0][0], given["questions"][0])
chat = pipe(text=turns, max_new_tokens=given["new"], return_full_text=False)
plain = pipe(text=given["questions"][0], videos=given["videos"][0][0], max_new_tokens=given["new"],
             return_full_text=False)
print(json.dumps([chat[0]["generated_text"], plain[0]["generated_text"]]))
"""
)

OLDER_PIPELINE = (
    PRELUDE
    + """
from transformers import pipeline

pipe = pipeline("image-text-to-text", model=given["folder"], trust_remote_code=True, dtype=torch.float32)
turns = [conversation(given["videos"][0][0], question) for question in given["questions"]]
found = [pipe(text=one, max_new_tokens=given["new"], return_full_text=False) for one in turns]
print(json.dumps([one[0]["generated_text"] for one in found]))
"""
)


def installed(name: str) -> bool:
    try:
        return bool(metadata.distribution(name))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An environment without this package; with accelerate and torchvision where these are installed here."""
    optional = [name for name in ("accelerate", "torchvision") if installed(name)]
    names = ["transformers", "torch", "av", "Pillow", "numpy", *optional]
    return isolated.site(tmp_path_factory.mktemp("environment") / "site", names)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict:
    """A model folder with random weights, videos and questions."""
    work = tmp_path_factory.mktemp("work")
    save_tokenizer(work / "tokenizer.json")
    tokenizer = load_tokenizer(work / "tokenizer.json")
    torch.manual_seed(0)
    language = Mamba2Config(
        d_model=32,
        n_layer=3,
        d_state=8,
        headdim=8,
        ssd_block=16,
        vocab_size=tokenizer.get_vocab_size(),
        pad_vocab_size_multiple=1,  # no row of the embedding is left for the token of videos
    )
    vision = ClipConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=14,
    )
    model = VideoMa2mba(ModelConfig(language_model=language, vision=vision)).eval()
    with torch.no_grad():  # with its initial weights, a model with a tied embedding repeats the last token
        for layer in model.language_model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(30)
    save_model(model, work / "tokenizer.json", work / "folder")
    for name, seconds in (("long", 40), ("short", 3)):
        write(work / f"{name}.mp4", range(0, 1000 * seconds, 100), Fraction(1, 1000))
    videos = [(str(work / "long.mp4"), {}), (str(work / "short.mp4"), {}), (str(work / "long.mp4"), {"num_frames": 8})]
    return {
        "folder": str(work / "folder"),
        "saved": str(work / "saved"),
        "videos": videos,
        "questions": QUESTIONS,
        "new": NEW,
        "model": model,
        "tokenizer": tokenizer,
    }


def plain(given: dict, **changes) -> dict:
    return {key: value for key, value in given.items() if key not in ("model", "tokenizer")} | changes


def test_frames_tokens_logits_and_answers_are_those_of_ask(place, given):
    there = isolated.run(place, ANSWER, plain(given))
    assert there["ours"] == []
    chat, worst, number = VideoChat(given["model"], given["tokenizer"]), 0.0, 0
    for video, options in given["videos"]:
        watching = chat.fork()
        count = options.get("num_frames")
        watching.watch(video, count or "1fps")
        with FrameReader() as reader:
            read = reader.read(video, SIZE, count=count)
        frames = read.pictures_MCHW[read.shown_N]
        for question in QUESTIONS:
            found = there["found"][number]
            number += 1
            assert found["frames"] == hashlib.sha256(frames.tobytes()).hexdigest()
            encoded = encode_prompt(given["tokenizer"], question, len(frames))
            at = encoded.frame_positions[0]
            visual = [video_token_id(given["tokenizer"])] * (PER_FRAME * len(frames))
            assert found["ids"] == encoded.token_ids[:at] + visual + encoded.token_ids[at:]
            expected = watching.asked(question).logits()
            worst = max(worst, float((torch.tensor(found["logits"])[: len(expected)] - expected).abs().max()))
            answer = watching.ask(question, max_tokens=NEW)
            ended = [given["tokenizer"].token_to_id("<|endoftext|>")] if answer.reason == "end" else []
            assert found["answer"] == [*answer.tokens, *ended]
            assert found["text"].strip() == answer.text.strip()
    print(f"worst difference of logits: {worst:.1e}; of a batch: {there['batch_worst']:.1e}")
    assert worst <= TOLERANCE
    assert there["reload_equal"]
    assert len(set(there["lengths"])) > 2
    assert there["batch_answers_equal"]
    assert there["batch_worst"] <= TOLERANCE
    require_same_model(given["saved"], given)


@pytest.fixture
def page(place, given):
    """The Python blocks of docs/transformers.md, and in the working directory the files that they name."""
    folder = place.parent
    if not (folder / "demo-model").exists():
        (folder / "demo-model").symlink_to(given["folder"])
        (folder / "lecture.mp4").symlink_to(given["videos"][1][0])
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_first_block_of_the_page_runs(place, given, page):
    chat = VideoChat(given["model"], given["tokenizer"])
    chat.watch(given["videos"][1][0])
    new = "ids[0, inputs['input_ids'].shape[1] :]"
    end = f"print(__import__('json').dumps(processor.decode({new}, skip_special_tokens=True)))"
    assert isolated.run(place, page[0] + end).strip() == chat.ask(QUESTIONS[0], max_tokens=32).text.strip()


@pytest.mark.slow
@pytest.mark.skipif(not installed("accelerate"), reason="Trainer needs accelerate, which is not installed")
def test_the_block_of_the_page_about_training_runs(place, page):
    assert len(page) == 2
    assert isolated.run(place, page[1] + "print(trainer.state.global_step)") == 3
    load_model(place.parent / "tuned", "cpu", "fp32")


def require_same_model(folder: str, given: dict) -> None:
    """Require that `ma2mba ask` reads what transformers saved, and answers the same."""
    answers = []
    for model, tokenizer in ((given["model"], given["tokenizer"]), load_model(folder, "cpu", "fp32")):
        chat = VideoChat(model, tokenizer)
        chat.watch(given["videos"][1][0])
        answers.append([chat.asked(question).logits()[:60].tolist() for question in QUESTIONS])
    assert answers[0] == answers[1]


@pytest.mark.skipif(not installed("accelerate"), reason="Trainer needs accelerate, which is not installed")
def test_trainer_trains_three_steps_and_its_checkpoint_can_be_loaded(place, given, tmp_path):
    there = isolated.run(place, TRAIN, plain(given, saved=str(tmp_path / "trained")))
    assert len(there["losses"]) == 3
    assert there["losses"][-1] < there["losses"][0]
    assert there["still"] == []
    assert there["kept"]
    load_model(tmp_path / "trained/checkpoint-3", "cpu", "fp32")


@pytest.mark.skipif(not installed("torchvision"), reason="the pipeline needs torchvision, which is not installed")
def test_the_pipeline_gives_the_answer_of_ask(place, given):
    chat = VideoChat(given["model"], given["tokenizer"])
    chat.watch(given["videos"][0][0])
    expected = chat.ask(QUESTIONS[0], max_tokens=NEW).text.strip()
    assert [text.strip() for text in isolated.run(place, PIPELINE, plain(given))] == [expected, expected]


def test_the_pipeline_that_needs_no_torchvision_reads_videos_too(place, given):
    chat = VideoChat(given["model"], given["tokenizer"])
    chat.watch(given["videos"][0][0])
    expected = [chat.ask(question, max_tokens=NEW).text.strip() for question in QUESTIONS]
    assert [text.strip() for text in isolated.run(place, OLDER_PIPELINE, plain(given))] == expected

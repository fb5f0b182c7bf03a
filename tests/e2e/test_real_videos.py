"""Real videos of many containers and codecs, prepared at the paper's frame size with the paper's tokenizer."""

import json

import numpy as np
import pytest
import simplejpeg
import torch
import yaml

from data_prep.build import build
from ma2mba.data.batch import collate
from ma2mba.data.dataset import Dataset
from ma2mba.magc import Plan
from ma2mba.model.clip import ClipEncoder
from ma2mba.model.config import ModelConfig
from ma2mba.model.conversation import load_tokenizer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.shards.reader import ShardReader, find_damage
from ma2mba.training.streaming import streaming_loss
from ma2mba.video.decode import read_times

ANSWER = "A short answer about {}."


@pytest.fixture(scope="module")
def shards(shared, tmp_path_factory):
    """A shard folder of all real videos at 336 pixels, one conversation of two questions each."""
    folder = tmp_path_factory.mktemp("real")
    videos = sorted(path for path in (shared / "videos").iterdir() if path.suffix != ".txt")
    records = [
        {
            "id": f"{path.stem}-{part}",
            "data_source": "0_30_s_real",
            "video": path.name,
            "conversations": [
                {"from": "human", "value": f"What is {part}?\n<image>"},
                {"from": "gpt", "value": ANSWER.format(f"{path.stem}, {part}")},
            ],
        }
        for path in videos
        for part in ("seen", "heard")
    ]
    (folder / "records.json").write_text(json.dumps(records))
    source = {"format": "llava_video", "annotations": "records.json", "media": str(shared / "videos")}
    recipe = {
        "stage": "stage2",
        "tokenizer": str(shared / "gpt-neox-tokenizer/20B_tokenizer.json"),
        "clips_per_part": 8,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"sources": [source]}))
    report, rejects = build(folder / "recipe.yaml", folder / "shards", workers=2)
    return folder / "shards", report, rejects, videos


def test_no_real_video_is_lost(shards):
    folder, report, rejects, videos = shards
    assert rejects == []
    assert report["conversations_before_grouping"] == 2 * report["samples"] == 2 * len(videos)
    assert find_damage(folder) == []


def test_every_second_has_its_frame(shards):
    reader = ShardReader(shards[0])
    durations = {path.name: read_times(path).duration for path in shards[3]}
    for row in reader.rows:
        assert row.duration == durations[row.source]
        assert row.timestamps.tolist() == list(range(int(np.ceil(row.duration))))
        shown = [simplejpeg.decode_jpeg(data) for data in reader.frames(row)]
        assert {picture.shape for picture in shown} == {(336, 336, 3)}
        assert max(picture.std() for picture in shown) > 5  # measured 29 and more: no video is blank


def test_only_the_answers_are_supervised(shards):
    reader = ShardReader(shards[0])
    tokenizer = load_tokenizer(reader.tokenizer_path)
    for row in reader.rows:
        stem = row.source.rsplit(".", 1)[0]
        said = tokenizer.decode(row.token_ids[row.supervised].tolist(), skip_special_tokens=False)
        assert said == "".join(ANSWER.format(f"{stem}, {part}") + "<|endoftext|>" for part in ("seen", "heard"))
        before = tokenizer.decode(row.token_ids[: row.frame_positions[0]].tolist(), skip_special_tokens=False)
        assert before == "<|system|>You are a helpful assistant.<|endoftext|> <|user|>"


@pytest.mark.slow
def test_a_model_with_the_real_encoder_learns_from_them(shards, shared):
    """A frame of every video through the encoder, and one whole sample through the streamed training step."""
    encoder = ClipEncoder.load(str(shared / "vision" / "dinov2-small-as-clip-vision-336"))
    backbone = Mamba2Config(d_model=32, n_layer=1, d_state=16, headdim=16)
    dataset = Dataset([shards[0]], 336, encoder.config.tokens_per_frame)
    with torch.no_grad():
        tokens = [encoder(dataset[i].frames[0:1]) for i in range(len(dataset))]
    assert {tuple(t.shape) for t in tokens} == {(1, 144, 384)}
    assert len({round(t.mean().item(), 6) for t in tokens}) == len(tokens)

    torch.manual_seed(0)
    model = VideoMa2mba(ModelConfig(language_model=backbone, vision=encoder.config))
    model.vision = encoder
    shortest = int(np.argmin(dataset.length_N))
    batch = collate([dataset[shortest]], encoder.config.tokens_per_frame)
    streaming_loss(model, batch, Plan(chunk_tokens=288), 1.0).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert model.vision.clip.embeddings.patch_embedding.weight.grad.any()

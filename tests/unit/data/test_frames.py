"""Frames that are read on request, as pictures and as features, and threads that share a reader."""

import threading
import tracemalloc

import numpy as np
import pytest
import torch

from ma2mba.data.batch import collate
from ma2mba.data.dataset import Dataset
from ma2mba.data.frames import Frames
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.shards.manifest import FeatureInfo
from ma2mba.training.streaming import streaming_loss
from tests.unit.data.toy_shards import write_shards

SIZES = [(3, 4), (0, 5), (150, 2), (40, 3)]
K, WIDTH = 4, 32
FEATURES = FeatureInfo(tokens=K, width=WIDTH, encoder="e" * 32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("pictures") / "s", SIZES)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("features") / "s", SIZES, features=FEATURES)


@pytest.fixture(params=["pictures", "features"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def model() -> VideoMa2mba:
    torch.manual_seed(0)
    language = Mamba2Config(d_model=16, n_layer=2, d_state=8, headdim=8, ssd_block=16, vocab_size=32)
    vision = ClipConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    return VideoMa2mba(ModelConfig(language_model=language, vision=vision))


def both_ways(folder):
    """Yield the same batch with frames in memory, and with frames read on request."""
    for eager in (1000, 0):
        dataset = Dataset([folder], 28, K, eager_frames=eager)
        yield collate([dataset[i] for i in range(len(dataset))], K)


def test_any_frames_read_late_are_those_in_memory(folder):
    eager, lazy = both_ways(folder)
    assert len(eager.frames) == len(lazy.frames) == 193
    for numbers in ([0], [2, 3, 4], [152, 153], [1, 5, 6, 7, 100, 192], range(193), []):
        asked = torch.tensor(list(numbers), dtype=torch.int64)
        assert torch.equal(eager.frames[asked], eager.frames.all()[asked])
        assert torch.equal(lazy.frames[asked], eager.frames[asked])
        assert lazy.frames[asked].dtype == eager.frames[asked].dtype


def test_what_is_expected_is_read_once_and_what_is_not_is_read_too(pictures, monkeypatch):
    dataset = Dataset([pictures], 28, K, eager_frames=0)
    reads, real = [], dataset.readers[0].frames
    monkeypatch.setattr(dataset.readers[0], "frames", lambda row, a, b: (reads.append((a, b)), real(row, a, b))[1])
    frames = collate([dataset[2]], K).frames
    frames.expect(torch.arange(10, 20))
    assert torch.equal(frames[torch.arange(10, 20)], frames.all()[10:20])
    assert reads == [(10, 20), (0, 150)]
    frames.expect(torch.arange(10, 20))
    assert len(frames[torch.arange(30, 35)]) == 5
    assert (30, 35) in reads
    assert frames.waited > 0


def test_the_first_frames_of_a_batch_come_with_it(pictures, monkeypatch):
    dataset = Dataset([pictures], 28, K, eager_frames=0)
    frames = collate([dataset[2]], K).frames
    whole = frames.all()
    frames.prime(64)
    with monkeypatch.context() as patch:
        patch.setattr(dataset.readers[0], "frames", None)  # nothing more is read
        assert torch.equal(frames[torch.arange(3, 40)], whole[3:40])
    assert torch.equal(frames[torch.arange(60, 70)], whole[60:70])


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
def test_training_on_frames_read_late_is_bit_for_bit_the_same(folder, model, nesting):
    if "features" in str(folder):
        model.vision.requires_grad_(False)
    results = []
    for batch in both_ways(folder):
        model.zero_grad()
        loss = streaming_loss(model, batch, Plan(nesting, 32, 1), 1.0)
        loss.backward()
        results.append([loss, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_each_chunks_frames_are_read_twice_at_most_and_in_the_background(pictures, model, monkeypatch):
    dataset = Dataset([pictures], 28, K, eager_frames=0)
    reads, real = [], dataset.readers[0].frames

    def read(row, a, b):
        reads.append((a, b, threading.current_thread().name.startswith("ma2mba-frames")))
        return real(row, a, b)

    monkeypatch.setattr(dataset.readers[0], "frames", read)
    streaming_loss(model, collate([dataset[2]], K), Plan("sequence", 32, 1), 1.0).backward()
    seen = np.bincount([n for a, b, _ in reads for n in range(a, b)], minlength=150)
    assert seen.tolist() == [2] * 150
    assert sum(behind for _, _, behind in reads) >= len(reads) - 1  # all but the first


def test_memory_does_not_grow_with_the_video(tmp_path, model):
    """A step's frames: 2,352 bytes each decoded. The index and the token ids grow, by about 100 bytes a frame."""
    peaks = []
    for frames in (200, 2000):
        dataset = Dataset([write_shards(tmp_path / str(frames), [(frames, 3)])], 28, K)
        batch = collate([dataset[0]], K)
        tracemalloc.start()
        with torch.no_grad():
            streaming_loss(model, batch, Plan("sequence", 64, 1), 1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1_000_000  # measured 0.3 MB; all frames would be 4.2 MB


def test_features_reach_the_projector_as_the_encoder_made_them(model):
    frames_NCHW = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    ids, visual = torch.zeros(1, 12, dtype=torch.int64), torch.arange(12)[None]
    seen = model.vision(frames_NCHW)
    assert torch.equal(model.embed(ids, visual, frames_NCHW), model.embed(ids, visual, seen))
    assert not torch.equal(model.embed(ids, visual, seen), model.embed(ids, visual, seen + 1))


def test_pictures_and_features_do_not_mix(pictures, features, tmp_path):
    with pytest.raises(UserError, match=r"holds pictures, but .* holds features of encoder eeeeeeee \(4 x 32\)"):
        Dataset([features, pictures], 28, K)
    other = write_shards(tmp_path / "o", [(1, 1)], features=FEATURES.model_copy(update={"encoder": "f" * 32}))
    with pytest.raises(UserError, match="Train on folders of one kind"):
        Dataset([features, other], 28, K)
    with pytest.raises(UserError, match="features of 4 tokens per frame, but the model has 9"):
        Dataset([features], 28, 9)


def test_a_mixture_has_the_data_sets_of_each_folder_with_their_weights(tmp_path):
    a = write_shards(tmp_path / "a", [(1, 1)] * 5, weights=(1.0, 3.0))
    b = write_shards(tmp_path / "b", [(1, 1)] * 2)
    mixture = Dataset([a, b], 28, K, weights=[2.0, 0.5]).mixture
    assert [(one.samples.tolist(), one.weight) for one in mixture] == [([0, 2, 4], 2), ([1, 3], 6), ([5, 6], 0.5)]
    assert Dataset([a, b], 28, K, weights=[2.0, 0.5]).fingerprint != Dataset([a, b], 28, K).fingerprint


def test_threads_may_share_a_reader(pictures):
    dataset = Dataset([pictures], 28, K, eager_frames=0)
    frames, errors = collate([dataset[2]], K).frames, []
    whole = frames.all()

    def read(seed):
        random = np.random.default_rng(seed)
        for _ in range(20):
            start = int(random.integers(0, 140))
            if not torch.equal(frames[torch.arange(start, start + 10)], whole[start : start + 10]):
                errors.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_arrays_serve_as_frames():
    frames = Frames([np.zeros((2, 3, 4, 4), np.uint8), np.ones((1, 3, 4, 4), np.uint8)])
    assert frames[torch.tensor([1, 2])][:, 0, 0, 0].tolist() == [0, 1]

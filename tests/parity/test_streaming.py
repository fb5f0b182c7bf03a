"""Compare the streamed training step with the same model run plainly over the whole batch, in fp64.

Worst relative error of any parameter's gradient, vision included: 3e-14 measured.
"""

import itertools

import numpy as np
import pytest
import torch

from ma2mba.data.batch import Batch, Sample, collate
from ma2mba.data.cuts import cuts
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.streaming import Chunks, streaming_loss
from tests.unit.model.test_model import BACKBONE, VISION

K = VISION.tokens_per_frame
BOUND = 1e-10


def make_sample(name: str, frame_positions: list[int], text: int = 12) -> Sample:
    rng = np.random.default_rng(len(frame_positions))
    return Sample(
        name,
        rng.integers(1, BACKBONE.vocab_size, text),
        rng.random(text) < 0.5,
        np.array(frame_positions, dtype=np.int64),
        rng.integers(0, 256, (len(frame_positions), 3, 56, 56), dtype=np.uint8),
    )


def make_batch() -> Batch:
    """A sample with one video, a sample with frames in several places, and a sample without frames."""
    return collate([make_sample("a", [3] * 7), make_sample("b", [0, 0, 5, 5, 12]), make_sample("c", [])], K)


def build_model(tied: bool = True) -> VideoMa2mba:
    torch.manual_seed(0)
    language_model = BACKBONE.model_copy(update={"tie_embeddings": tied})
    return VideoMa2mba(ModelConfig(language_model=language_model, vision=VISION)).double()


@pytest.fixture
def model() -> VideoMa2mba:
    return build_model()


def gradients(model: VideoMa2mba, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    # Softmax ignores the biases of the keys: their gradients are rounding errors around zero.
    smallest = 1e-6 * max(gradient.norm().item() for gradient in expected.values())
    for name in expected:
        assert ((got[name] - expected[name]).norm() / expected[name].norm().clamp(min=smallest)).item() < BOUND, name


def plain_loss(model: VideoMa2mba, batch: Batch) -> torch.Tensor:
    x = model.embed(batch.ids_BS, batch.visual_BS, batch.frames.all())
    x, _ = model.run(x, model.initial_states(x))
    return model.loss_sum(x, batch.targets_BS)


@pytest.mark.parametrize("group_layers", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 6, 17, 100])
@pytest.mark.parametrize("nesting", ["sequence", "layer"])
@pytest.mark.parametrize("vision", ["trained", "frozen"])
def test_streamed_step_equals_plain_step(model, vision, nesting, chunk_tokens, group_layers):
    model.vision.requires_grad_(vision == "trained")
    batch = make_batch()
    expected_loss = plain_loss(model, batch)
    expected = gradients(model, expected_loss * 0.25)
    loss = streaming_loss(model, batch, Plan(nesting, chunk_tokens, group_layers), 0.25)
    got = gradients(model, loss)
    assert loss.item() == pytest.approx(0.25 * expected_loss.item(), rel=1e-12)
    assert got.keys() == expected.keys()
    assert any(name.startswith("vision") for name in got) == (vision == "trained")
    assert_same(got, expected)


@pytest.mark.parametrize("nesting", ["sequence", "layer"])
@pytest.mark.parametrize("chunk_tokens", [3, 17])
def test_a_head_of_its_own_gets_the_gradients_of_a_plain_step(nesting, chunk_tokens):
    model, batch = build_model(tied=False), make_batch()
    expected = gradients(model, plain_loss(model, batch))
    got = gradients(model, streaming_loss(model, batch, Plan(nesting, chunk_tokens, 2), 1.0))
    assert got.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    ends = [got["language_model.lm_head.weight"], got["language_model.backbone.embedding.weight"]]
    assert all(end.any() for end in ends)
    assert not torch.equal(*ends)
    assert_same(got, expected)


def test_even_chunks_give_the_same_gradients(model):
    """Plans with graphs cut chunks of equal length, so a frame may be in two chunks."""
    batch = make_batch()
    expected = gradients(model, plain_loss(model, batch))
    got = gradients(model, streaming_loss(model, batch, Plan("sequence", 5, 2, graphs=True), 1.0))
    assert_same(got, expected)


def test_text_alone_gives_every_parameter_a_gradient(model):
    got = gradients(model, streaming_loss(model, collate([make_sample("t", [])], K), Plan("sequence", 4, 1), 1.0))
    assert got.keys() == {name for name, _ in model.named_parameters()}
    assert not got["projector.0.weight"].any()
    assert got["language_model.backbone.norm_f.weight"].any()


def test_chunks_begin_at_frame_edges_where_they_can():
    batch = make_batch()
    places = cuts(batch.visual_BS[:1], 6, K)
    assert places[0] == 0
    assert places[-1] == batch.visual_BS.shape[1]
    assert all(0 < stop - start <= 6 for start, stop in itertools.pairwise(places))
    inside = [at for at in places[:-1] if batch.visual_BS[0, at] >= 0 and batch.visual_BS[0, at] % K]
    assert inside == []


def test_a_chunk_holds_only_its_own_frames():
    batch = make_batch()
    chunks = Chunks(batch, Plan(chunk_tokens=6), K, torch.device("cpu"))
    seen = [len(frames_NCHW) for _, _, frames_NCHW, *_ in chunks]
    assert max(seen) <= 6
    assert sum(seen) >= len(batch.frames.all())
    for (_, local_BT, frames_NCHW, *_), start in zip(chunks, chunks.cuts, strict=False):
        whole = batch.visual_BS[:, start : start + local_BT.shape[1]]
        chosen = whole >= 0
        assert torch.equal(frames_NCHW[local_BT[chosen] // K], batch.frames.all()[whole[chosen] // K])

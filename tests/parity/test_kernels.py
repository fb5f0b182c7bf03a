"""GPU kernels against plain torch in fp64 on the same rounded inputs. Skipped without a GPU and mamba-ssm.

Measured on one H200 (torch 2.11, mamba-ssm 2.3.2), relative to fp64: at most 1.9e-2 in any output or gradient of a bf16
layer, which is at most 1.7 times the error of plain torch in bf16. The exception are states of a single token: 1.8e-3,
plain torch 7e-4. The loss of 1,000 positions is within 6.6e-5, its gradients within 8.9e-3.
"""

import pytest
import torch

from ma2mba.inference.decoder import Decoder, Slots
from ma2mba.inference.session import blank_states
from ma2mba.magc import Plan, Streamer
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops import backend, kernels_on_meta
from ma2mba.ops.selftest import CASES, POSITIONS, relative, self_test
from ma2mba.planner.measure import measure

ON_GPU = torch.cuda.is_available() and backend(torch.device("cuda")) == "triton"
pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU with mamba-ssm and causal-conv1d")
WIDTH = 256


def test_layer_and_loss_in_bf16_are_as_near_to_fp64_as_plain_torch_in_bf16():
    rows = list(self_test(torch.device("cuda")))
    assert len(rows) == (2 * 15 + 3) * len(CASES) + 3 * len(POSITIONS)
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("shape", [(2, 100), (1, 100), (2, 1), (1, 1)])
def test_a_layer_whose_projection_has_rows_of_an_odd_length(shape):
    """454 numbers a row, as in the demo's model: causal-conv1d takes distances that are multiples of 8."""
    torch.manual_seed(0)
    layer = Mamba2Layer(Mamba2Config(d_model=96, n_layer=1, d_state=32, headdim=32, ssd_block=32)).to(torch.bfloat16)
    x = torch.randn(*shape, 96)
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float64)):
        run, given = layer.to(device, dtype), x.to(device, dtype, copy=True).requires_grad_()
        run.zero_grad(set_to_none=True)
        y, state = run(given, run.initial_state(given))
        (y.double().sin().sum() + sum(s.double().square().sum() for s in state)).backward()
        found.append([y, *state, given.grad, *(p.grad for p in run.parameters())])
    worst = max(relative(a.cpu(), b) for a, b in zip(*found, strict=True))
    assert worst < 4e-2


@pytest.mark.parametrize("stash", ["device", "host"])
def test_captured_chunks_have_the_gradients_of_eager_chunks(stash):
    """Two steps with a shorter last chunk. Measured for 64 layers of 2,560: 1.6e-4, as bf16 sums differ in order."""
    torch.manual_seed(0)
    config = Mamba2Config(d_model=WIDTH, n_layer=3)
    layers = torch.nn.ModuleList(Mamba2Layer(config) for _ in range(3)).to("cuda", torch.bfloat16)
    x = torch.randn(1, 4 * 512 + 100, WIDTH, device="cuda")
    chunks = [(chunk,) for chunk in x.split(512, dim=1)]
    found = []
    for graphs in (False, True):
        run = Streamer(
            lambda a: (a,), layers, lambda a: (a.sin().sum(),), [], Plan("sequence", 512, 3, stash, graphs=graphs)
        )
        for _ in range(2):
            layers.zero_grad(set_to_none=True)
            run(chunks, [layer.initial_state(x) for layer in layers])[0].backward()
        found.append([p.grad.clone() for p in layers.parameters()])
        for parameter in layers.parameters():
            parameter.__dict__.pop("main_grad", None)
    assert max(relative(b, a) for a, b in zip(*found, strict=True)) < 5e-3


def test_two_captures_of_the_same_layers_can_coexist():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([Mamba2Layer(Mamba2Config(d_model=WIDTH, n_layer=1))]).to("cuda", torch.bfloat16)
    x = torch.randn(1, 2048, WIDTH, device="cuda")
    runs, found = [], []
    for tokens in (512, 256, 512):
        plan = Plan("sequence", tokens, 1, graphs=True)
        runs.append(Streamer(lambda a: (a,), layers, lambda a: (a.sin().sum(),), [], plan))
        layers.zero_grad(set_to_none=True)
        runs[-1]([(chunk,) for chunk in x.split(tokens, dim=1)], [layers[0].initial_state(x)])[0].backward()
        found.append([p.grad.clone() for p in layers.parameters()])
    for others in found[1:]:
        assert max(relative(b, a) for a, b in zip(found[0], others, strict=True)) < 5e-3


@pytest.mark.parametrize("tokens", [512, 4096])
def test_the_prices_on_the_meta_device_are_those_of_the_kernels(tokens):
    """Bounds are estimates, not measured; the allocator's blocks are 512 bytes."""
    config = Mamba2Config(d_model=1024, n_layer=1)
    layer = Mamba2Layer(config).to("cuda", torch.bfloat16)
    real = measure([layer], torch.empty(1, 1, 1024, device="cuda"), lengths=(tokens,))
    with kernels_on_meta():
        like_x = torch.empty(1, 1, 1024, device="meta")
        on_meta = measure([layer.to("meta")], like_x, lengths=(tokens,), persistent_sums=True)
    memos = [(price.layers[0].memo, price.layers[0].memo_flops) for price in (on_meta, real)]
    assert memos[0] == memos[1]
    assert on_meta.layers[0].gradients == real.layers[0].gradients == 0
    for name, within in (("saved", 0.02), ("forward", 0.05), ("backward", 0.05), ("flops", 0.001)):
        found, right = (getattr(price.layers[0], name).at(tokens) for price in (on_meta, real))
        assert found == pytest.approx(right, rel=within), name


@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_of_one_token_steps_gives_what_chunks_give(rows):
    """Two answers: the second decoder takes the captured graph of the first, with other states."""
    torch.manual_seed(0)
    config = ModelConfig(language_model=Mamba2Config(d_model=WIDTH, n_layer=3, vocab_size=1000), vision=ClipConfig())
    model = VideoMa2mba(config).to("cuda", torch.bfloat16)
    exact = VideoMa2mba(config).double()
    exact.load_state_dict(model.state_dict())
    for seed in (1, 2):
        ids_BT = torch.randint(0, 1000, (rows, 40), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            states = [model.initial_states(model.language_model.backbone.embedding(ids[None].cuda())) for ids in ids_BT]
            decoder = Decoder(model, states)
            found_BTV = torch.stack([decoder.step(ids_B).clone() for ids_B in ids_BT.T], dim=1)
            x_BTD = exact.language_model.backbone.embedding(ids_BT)
            x_BTD, after = exact.run(x_BTD, exact.initial_states(x_BTD))
            right_BTV = exact.logits(x_BTD)
        assert relative(found_BTV.cpu(), right_BTV) < 2e-2
        for row in range(rows):
            for found, right in zip(decoder.states(row), after, strict=True):
                assert all(relative(a.cpu(), b[row : row + 1]) < 4e-2 for a, b in zip(found, right, strict=True))


def test_graphs_of_several_sizes_advance_the_first_rows_alone():
    """As the server uses them: the graphs share the states and their memory, and rows leave and join between steps."""
    torch.manual_seed(0)
    config = ModelConfig(language_model=Mamba2Config(d_model=WIDTH, n_layer=3, vocab_size=1000), vision=ClipConfig())
    model = VideoMa2mba(config).to("cuda", torch.bfloat16)
    rows, sizes = 4, (1, 2, 4)
    slots = Slots(model, rows, sizes)
    blank, _ = blank_states(model)
    decoders = []
    for row in range(rows):
        for layer, state in zip(slots.layers, blank, strict=True):
            layer.load(row, state)
        decoders.append(Decoder(model, [blank]))
    generator = torch.Generator().manual_seed(1)
    for count in (4, 1, 4, 2, 4, 2, 1):
        ids_B = torch.randint(0, 1000, (count,), generator=generator).cuda()
        logits_BV = slots.step(ids_B).clone()
        for row in range(count):
            right_1V = decoders[row].step(ids_B[row : row + 1])
            assert relative(logits_BV[row], right_1V[0].double()) < 2e-2, (count, row)

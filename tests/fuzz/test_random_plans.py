"""Any plan, for any number of layers and tokens, has the gradients of plain autograd."""

import torch

from ma2mba.magc import Plan, checkpoint
from tests.parity.recurrent_layers import gru_layers, mamba_layers, run_plainly
from tests.parity.test_magc_gradients import BOUND, WIDTH, outcome, random_states, relative


def random_plan(rng, layers: int) -> Plan:
    nesting, group_layers = rng.choice(["sequence", "layer"]), rng.randint(1, 6)
    memos = rng.randint(0, 3) if nesting == "sequence" and group_layers >= layers else 0
    return Plan(
        nesting, rng.randint(1, 30), group_layers, rng.choice(["device", "host"]), rng.randint(1, 4), memo_chunks=memos
    )


def test_values_and_gradients_equal_plain_autograd(rounds):
    for rng in rounds:
        torch.manual_seed(rng.randrange(1 << 30))
        layers = rng.choice([gru_layers, mamba_layers])(rng.randint(1, 5))
        x = torch.randn(rng.randint(1, 3), rng.randint(1, 25), WIDTH, dtype=torch.double, requires_grad=True)
        states, plan = random_states(layers, x), random_plan(rng, len(layers))
        print(f"{len(layers)} layers, {tuple(x.shape)}, {plan}")
        expected = outcome(run_plainly, layers, x, states)
        found = outcome(lambda *given, plan=plan: checkpoint(*given, plan), layers, x, states)
        assert max(relative(a, b) for a, b in zip(found, expected, strict=True)) < BOUND

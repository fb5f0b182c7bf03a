"""A training step of the whole model on ranks that share a sequence. Run by test_sequence_parallel.py."""

import torch.distributed as dist

from ma2mba.magc import Plan
from ma2mba.training.streaming import streaming_loss
from tests.parity.split import Outcome
from tests.parity.test_streaming import build_model, make_batch


def model_outcome(trained: str, plan: Plan, group: dist.ProcessGroup | None, *, tied: bool = True) -> Outcome:
    """Return the loss and the gradients of a training step with videos and text that trains one component."""
    model = build_model(tied).requires_grad_(False)
    model.get_submodule(trained).requires_grad_(True)
    loss = streaming_loss(model, make_batch(), plan, 0.25, group=group)
    loss.backward()
    shares = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | shares, {}

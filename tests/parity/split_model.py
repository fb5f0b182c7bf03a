"""A training step of the whole model on ranks that share a sequence. Run by test_sequence_parallel.py."""

import torch
import torch.distributed as dist

from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.streaming import streaming_loss
from tests.parity.split import Outcome
from tests.parity.test_streaming import make_batch
from tests.unit.model.test_model import BACKBONE, VISION


def model_outcome(trained: str, plan: Plan, group: dist.ProcessGroup | None) -> Outcome:
    """Return the loss and the gradients of a training step with videos and text that trains one component."""
    torch.manual_seed(0)
    model = VideoMa2mba(ModelConfig(language_model=BACKBONE, vision=VISION)).double().requires_grad_(False)
    model.get_submodule(trained).requires_grad_(True)
    loss = streaming_loss(model, make_batch(), plan, 0.25, group=group)
    loss.backward()
    shares = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | shares, {}

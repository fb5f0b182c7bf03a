"""A Mamba-2 layer on one rank's part of a chunk's tokens."""

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ma2mba.model.mamba2 import Mamba2Layer, State
from ma2mba.ops import mamba2_layer, mamba2_layer_product


class SplitLayer(nn.Module):
    """`layer` as a step of all ranks of a group: each brings its part of the tokens, maybe none; the states are whole.

    Gradients of parameters are each rank's share, those of states the whole (`ma2mba.ops.sequence_parallel`).
    """

    def __init__(self, layer: nn.Module, group: ProcessGroup):
        super().__init__()
        assert isinstance(layer, Mamba2Layer)
        self.layer, self.group = layer, group

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """x (batch, tokens of this rank, width) and the state before the chunk -> x and the state after the chunk."""
        return self.recall(x_BTD, state, None)

    def remember(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """As `Mamba2Layer.remember`."""
        weights, shape = self.layer.weights, self.layer.shape
        x_BTD, conv_BVW, ssm_BHPN, memo = mamba2_layer_product(x_BTD, *state, weights, shape, self.group)
        return x_BTD, (conv_BVW, ssm_BHPN), memo

    def recall(self, x_BTD: Tensor, state: State, memo: Tensor | None) -> tuple[Tensor, State]:
        """As `Mamba2Layer.recall`."""
        weights, shape = self.layer.weights, self.layer.shape
        x_BTD, conv_BVW, ssm_BHPN = mamba2_layer(x_BTD, *state, weights, shape, memo, self.group)
        return x_BTD, (conv_BVW, ssm_BHPN)

    def initial_state(self, x_BTD: Tensor) -> State:
        return self.layer.initial_state(x_BTD)

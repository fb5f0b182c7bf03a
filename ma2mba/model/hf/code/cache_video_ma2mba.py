"""What a Video-Ma2mba model remembers of everything that it has read: a fixed size, for any number of tokens.

B rows of the batch, W taps of the convolution less one, V its channels, H heads, P head width, N state size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class VideoMa2mbaCache:
    """The `past_key_values` of the model, which `generate` and the model's `forward` make and change.

    conv   for each layer the last inputs of the convolution, conv_BWV, oldest first; None before the first token
    ssm    for each layer the state of the scan, ssm_BHPN in fp32 or wider; None before the first token

    Copy it with `copy.deepcopy` to answer several questions about one video.
    """

    is_compileable = False

    def __init__(self, layers: int):
        self.conv: list[Tensor | None] = [None] * layers
        self.ssm: list[Tensor | None] = [None] * layers
        self._read = 0

    def __len__(self) -> int:
        return len(self.ssm)

    @property
    def rows(self) -> int:
        """The rows of the batch; 0 before the first token."""
        return 0 if not self.ssm or self.ssm[0] is None else len(self.ssm[0])

    def read(self, tokens: int) -> None:
        """Count tokens that all layers have read, padding included."""
        self._read += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many places of `input_ids` were read, padding included."""
        return self._read

    def has_previous_state(self, layer_idx: int | None = None) -> bool:
        return self._read > 0

    @property
    def is_initialized(self) -> bool:
        return self._read > 0

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(len(self))  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each row the states of the row that `beam_idx` names."""
        self._each(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._each(lambda state: state.repeat_interleave(repeats, dim=0))

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no longest sequence."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def crop(self, *_: Any) -> None:
        raise NotImplementedError(
            "the states of a recurrent model cannot go back to an earlier token. "
            "Use generate without assisted or contrastive search"
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for states in (self.conv, self.ssm):
            states[:] = [None if state is None else change(state) for state in states]


def require_cache(cache: Any, layers: int, rows: int) -> VideoMa2mbaCache:
    """Return the cache, or a new one for None. Raise TypeError for another kind of cache, ValueError for other rows."""
    if cache is None:
        return VideoMa2mbaCache(layers)
    # By name: transformers may load this file twice, under two module names.
    if type(cache).__name__ != VideoMa2mbaCache.__name__:
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}, and a recurrent model has no keys and values. "
            "Give what an earlier call of this model returned as past_key_values, or nothing"
        )
    if cache.rows not in (0, rows):
        raise ValueError(
            f"past_key_values has {cache.rows} rows, and the tokens have {rows}. "
            "Call batch_repeat_interleave or batch_select_indices of past_key_values first"
        )
    return cache


__all__ = ["VideoMa2mbaCache", "require_cache"]

"""The language models of the paper by size, and its vision encoder. Imports no torch."""

from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.mamba2_config import Mamba2Config

SIZES = {
    "370m": Mamba2Config(d_model=1024, n_layer=48),
    "1.3b": Mamba2Config(d_model=2048, n_layer=48),
    "2.7b": Mamba2Config(d_model=2560, n_layer=64),
}
CLIP = ClipConfig()
"""ViT-L/14-336."""

"""The recurrent core of Mamba-2, with state in and out."""

from ma2mba.ops.backend import backend
from ma2mba.ops.mixer import MixerShape, MixerWeights, mixer
from ma2mba.ops.norm import rms_norm

__all__ = ["MixerShape", "MixerWeights", "backend", "mixer", "rms_norm"]

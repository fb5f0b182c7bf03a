"""The projector from the width of the vision encoder to the width of the language model (paper, section 4)."""

from torch import nn


class Projector(nn.Sequential):
    def __init__(self, vision_width: int, model_width: int):
        super().__init__(nn.Linear(vision_width, model_width), nn.GELU(), nn.Linear(model_width, model_width))

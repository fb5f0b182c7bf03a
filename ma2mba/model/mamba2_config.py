"""The configuration of a Mamba-2 language model. In a file of its own, because it must not import torch."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.model.base_config import BackboneConfig, Size, problem
from ma2mba.text import RECIPE_BYTES, read_json


class Mamba2Config(BackboneConfig):
    """The names of the fields are those of state-spaces/mamba; `ssd_block` is the block of the SSD scan, in tokens."""

    layer: Literal["mamba2"] = "mamba2"
    d_state: Annotated[int, Field(gt=0, le=1 << 16)] = 128
    headdim: Size = 64
    expand: Annotated[int, Field(gt=0, le=64)] = 2
    d_conv: Annotated[int, Field(gt=0, le=1024)] = 4
    ngroups: Size = 1
    ssd_block: Annotated[int, Field(gt=0, le=1024)] = 256

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def conv_width(self) -> int:
        return self.d_inner + 2 * self.ngroups * self.d_state

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.d_inner % self.headdim:
            raise ValueError(f"expand * d_model = {self.d_inner} is not a multiple of headdim = {self.headdim}")
        if self.heads % self.ngroups:
            raise ValueError(f"the number of heads, {self.heads}, is not a multiple of ngroups = {self.ngroups}")
        return self

    @classmethod
    def of_published(cls, source: str) -> Self:
        """Read the config.json of a folder in the format of state-spaces/mamba2-*.

        Raises UserError for a model that is not pure Mamba-2.
        """
        path = inside(Path(source), "config.json", source)
        if not path.is_file():
            raise UserError(
                f"{path}: does not exist. Give a folder of state-spaces/mamba2-* "
                "(docs/training.md shows how to download one, under 'Published weights')"
            )
        values = read_json(path, RECIPE_BYTES)
        try:
            ssm = values.get("ssm_cfg") or {}
            if ssm.get("layer") != "Mamba2" or values.get("attn_layer_idx"):
                raise UserError(
                    f"{path}: not a pure Mamba-2 model (ssm_cfg.layer is {ssm.get('layer')!r}). Use a mamba2-* model"
                )
            fields = {name: values[name] for name in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple")}
            names = ("d_state", "headdim", "expand", "d_conv", "ngroups")
            return cls(**fields, **{name: ssm[name] for name in names if name in ssm})
        except (KeyError, AttributeError, TypeError, ValidationError) as error:
            reason = problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            raise UserError(
                f"{path}: cannot be read as a config.json of state-spaces/mamba ({reason}). "
                "Give a folder in the format of state-spaces/mamba2-*"
            ) from error

"""The configuration of a Mamba-2 language model. In a file of its own, because it must not import torch."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.hub import fetch
from ma2mba.model.base_config import BackboneConfig, Size, problem
from ma2mba.model.mamba2_formats import BACKBONE_TYPE, format_of
from ma2mba.text import RECIPE_BYTES, read_json

Rate = Annotated[float, Field(ge=1e-6, le=1e6)]


class Mamba2Config(BackboneConfig):
    """The names of the fields are those of state-spaces/mamba, except two.

    ssd_block      the block of the SSD scan, in tokens
    A_log_uniform  [lowest, highest]: the decay rates A of new weights are drawn log-uniformly from this range, instead
                   of uniformly from [1, 16] as state-spaces/mamba draws them. Lower rates remember longer.
    """

    UNWRITTEN: ClassVar[dict[str, Any]] = {**BackboneConfig.UNWRITTEN, "A_log_uniform": None}

    layer: Literal["mamba2"] = "mamba2"
    d_state: Annotated[int, Field(gt=0, le=1 << 16)] = 128
    headdim: Size = 64
    expand: Annotated[int, Field(gt=0, le=64)] = 2
    d_conv: Annotated[int, Field(gt=0, le=1024)] = 4
    ngroups: Size = 1
    ssd_block: Annotated[int, Field(gt=0, le=1024)] = 256
    A_log_uniform: tuple[Rate, Rate] | None = None

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
        if self.A_log_uniform and self.A_log_uniform[0] > self.A_log_uniform[1]:
            raise ValueError(f"A_log_uniform = {list(self.A_log_uniform)}: the lowest rate comes first")
        return self

    @classmethod
    def of_published(cls, source: str) -> Self:
        """Read the config.json of a language model: a folder that `ma2mba import` wrote, or one in the format of
        state-spaces/mamba2-* or of transformers' Mamba2ForCausalLM, or a hub name of these.

        Raises UserError, naming the key, for a model that is not pure Mamba-2.
        """
        folder = fetch(source)
        path = inside(folder, "config.json", folder)
        if not path.is_file():
            raise UserError(
                f"{path}: does not exist. Give a folder of a Mamba-2 language model, or its name on the hub "
                "(docs/training.md shows how to import one, under 'Published weights')"
            )
        values = read_json(path, RECIPE_BYTES)
        try:
            if not isinstance(values, dict):
                raise ValueError(f"it holds {type(values).__name__} instead of keys and values")
            if values.get("model_type") == BACKBONE_TYPE:
                return cls.model_validate({key: value for key, value in values.items() if key != "model_type"})
            known = format_of(values)
            if known is None:
                raise ValueError("it has neither ssm_cfg nor the model_type mamba2")
            return cls(**known.read(values))
        except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
            reason = problem(error) if isinstance(error, ValidationError) else str(error)
            reason = f"{reason} is missing" if isinstance(error, KeyError) else reason
            raise UserError(
                f"{path}: not the config.json of a Mamba-2 language model that ma2mba can represent ({reason}). "
                "Use another model"
            ) from error

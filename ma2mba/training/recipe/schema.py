"""The keys of a training recipe, their types and defaults."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ma2mba.exclude import Excluded, read_ids
from ma2mba.model.config import ModelConfig
from ma2mba.stage import Stage

COMPONENTS = ("projector", "language_model", "vision")
"""The components of the model, each with a learning rate of its own."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class Pretrained(_Section):
    """Weights of the components: for each a folder, or NAME or NAME@REVISION on the Hugging Face hub."""

    language_model: str | None = None
    vision: str | None = None


class Weighted(_Section):
    """A shard folder. Its samples are drawn `weight` times as often as samples of a folder with weight 1."""

    path: str
    weight: PositiveFloat = 1.0


class Trainable(_Section):
    """Learning rate of each component. A component without one is frozen."""

    projector: PositiveFloat | None = None
    language_model: PositiveFloat | None = None
    vision: PositiveFloat | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """The trained components."""
        return tuple(component for component in COMPONENTS if getattr(self, component) is not None)


class Optimizer(_Section):
    """Settings of AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    eps: PositiveFloat = 1e-8


class Schedule(_Section):
    """Linear warm-up over a share of all steps, then half a cosine down to a share of the learning rate."""

    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)


class Magc(_Section):
    """How a sequence is checkpointed: the fields of `ma2mba.magc.Plan`. `magc: auto` lets the planner choose all."""

    nesting: Literal["sequence", "layer"] = "sequence"
    chunk_tokens: PositiveInt = 4096
    group_layers: PositiveInt = 1
    stash: Literal["device", "host"] = "device"
    stash_every: PositiveInt = 1
    memo_chunks: NonNegativeInt = 0
    graphs: bool = False


class Parallel(_Section):
    """How ranks share work besides data parallelism: `sequence` ranks share each sequence."""

    sequence: PositiveInt = 1


class Checkpoint(_Section):
    """Save after every `every` steps and at the end.

    Keep the last `keep_last` checkpoints (null: all), and those whose step is a multiple of `keep_every`.
    """

    every: PositiveInt = 500
    keep_last: PositiveInt | None = 2
    keep_every: PositiveInt | None = None


class Watchdog(_Section):
    """End all ranks when a step takes `factor` times as long as usual for its tokens, and longer than `seconds`."""

    seconds: PositiveFloat = 1800.0
    factor: float = Field(default=4.0, ge=1.0)


class Recipe(_Section):
    """One training stage. docs/training.md explains every key.

    Paths are absolute when `load_recipe` has read the recipe.
    """

    stage: Stage
    data: str | list[str | Weighted]
    exclude: Excluded = []
    run: str
    init_from: str | Pretrained | None = None
    model: ModelConfig | None = None
    trainable: Trainable
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    global_batch: PositiveInt
    micro_batch: PositiveInt = 1
    micro_batch_tokens: PositiveInt | None = None
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    magc: Magc | Literal["auto"] = "auto"
    parallel: Parallel = Parallel()
    zero_config: str = "zero1"
    checkpoint: Checkpoint = Checkpoint()
    watchdog: Watchdog | None = Watchdog()
    resume: str = "auto"
    seed: int = Field(default=0, ge=0)
    order: Literal["shuffled", "length"] = "shuffled"
    log_every: PositiveInt = 10

    @property
    def sources(self) -> list[Weighted]:
        """The shard folders, each with its weight."""
        entries = [self.data] if isinstance(self.data, str) else self.data
        return [Weighted(path=entry) if isinstance(entry, str) else entry for entry in entries]

    @property
    def excluded(self) -> frozenset[str]:
        """The ids of the samples that are left out. Raise UserError if they are in a file that cannot be read."""
        return read_ids(self.exclude, Path())

    @property
    def folders(self) -> list[Path]:
        return [Path(source.path) for source in self.sources]

    @property
    def run_folder(self) -> Path:
        return Path(self.run)

"""The keys of a training recipe, their types and defaults."""

from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ma2mba.model.config import ModelConfig

PART_NAMES = ("projector", "language_model", "vision")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class Pretrained(_Section):
    """Folders (or hub names, for vision) of weights that were trained elsewhere."""

    language_model: str | None = None
    vision: str | None = None


class Weighted(_Section):
    """A shard folder whose samples are drawn `weight` times as often as those of a folder of weight 1."""

    path: str
    weight: PositiveFloat = 1.0


class Trainable(_Section):
    """Learning rate of each part; a part without one is frozen."""

    projector: PositiveFloat | None = None
    language_model: PositiveFloat | None = None
    vision: PositiveFloat | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that are trained."""
        return tuple(part for part in PART_NAMES if getattr(self, part) is not None)


class Optimizer(_Section):
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    eps: PositiveFloat = 1e-8


class Schedule(_Section):
    """Linear warm-up over a share of all steps, then a cosine down to a share of the learning rate."""

    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)


class Magc(_Section):
    """How the sequence is checkpointed: the fields of `ma2mba.magc.Plan`. In place of all of them "auto": the planner
    chooses."""

    nesting: Literal["sequence", "layer"] = "sequence"
    chunk_tokens: PositiveInt = 4096
    group_layers: PositiveInt = 1
    stash: Literal["device", "host"] = "device"
    stash_every: PositiveInt = 1
    memo_chunks: NonNegativeInt = 0
    graphs: bool = False


class Parallel(_Section):
    """How ranks share the work beside data parallelism: so many of them take parts of each sequence."""

    sequence: PositiveInt = 1


class Checkpoint(_Section):
    """Save every so many steps and at the end; keep the last `keep_last` (null: all) and multiples of `keep_every`."""

    every: PositiveInt = 500
    keep_last: PositiveInt | None = 2
    keep_every: PositiveInt | None = None


class Watchdog(_Section):
    """All ranks end when a step takes `factor` times as long as usual for its tokens, and at least `seconds`."""

    seconds: PositiveFloat = 1800.0
    factor: float = Field(default=4.0, ge=1.0)


class Recipe(_Section):
    """One training stage. docs/training.md explains every key."""

    stage: Literal["stage1", "stage1_5", "stage2"]
    data: str | list[str | Weighted]
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
    def folders(self) -> list[Path]:
        return [Path(source.path) for source in self.sources]

    @property
    def run_folder(self) -> Path:
        return Path(self.run)

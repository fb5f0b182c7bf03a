"""How `generate` of transformers runs a recurrent model: prompts and frames are read once, whatever the search."""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessorList

from .cache_video_ma2mba import VideoMa2mbaCache
from .configuration_video_ma2mba import VideoMa2mbaConfig
from .prompt_video_ma2mba import frames_of_rows

REFUSED = {
    "assistant_model": "assisted generation goes back to earlier tokens, and the states of a recurrent model cannot",
    "prompt_lookup_num_tokens": "prompt lookup goes back to earlier tokens, and the states of a recurrent model cannot",
    "penalty_alpha": "contrastive search goes back to earlier tokens, and the states of a recurrent model cannot",
    "dola_layers": "DoLa is made for models with attention",
    "cache_implementation": "the states of a recurrent model have one form, and a fixed size",
    "prefill_chunk_size": "the model reads a long prompt chunk by chunk of its own accord",
}
"""Options of `generate` that this model does not have, and the reason."""


class OnlyText(LogitsProcessorList):
    """Processors that never let an id from `first` on be written: the place of a visual token, and padding.

    The place of a visual token may have no column, but processors look up the scores of all ids of the prompt. So they
    see one column for it.
    """

    def __init__(self, processors: LogitsProcessorList, first: int):
        super().__init__(processors)
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        columns = scores.shape[1]
        scores = F.pad(scores, (0, max(self.first + 1 - columns, 0)))
        scores[:, self.first :] = -math.inf
        parent: Any = super()
        return parent.__call__(input_ids, scores, **kwargs)[:, :columns]


class VideoMa2mbaGeneration:
    """The methods of a model that `generate` calls. A base class before PreTrainedModel and GenerationMixin."""

    config: VideoMa2mbaConfig
    generation_config: GenerationConfig

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: VideoMa2mbaCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        pixel_values_videos: Tensor | None = None,
        use_cache: bool = True,
        prompt_copies: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers. Frames are read once, and the equal prompts of beams are read once."""
        parent: Any = super()
        inputs = parent.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            use_cache=use_cache,
            **kwargs,
        )
        if use_cache and not is_first_iteration:
            inputs.pop("attention_mask", None)  # each row reads one token: to look for padding would wait for the GPU
            return inputs
        new_ids = inputs.get("input_ids")
        cached_rows = getattr(past_key_values, "rows", 0)
        if is_first_iteration and not cached_rows and prompt_copies > 1:
            rows = {"input_ids", "inputs_embeds", "attention_mask"}
            for name in rows & inputs.keys():
                inputs[name] = None if inputs[name] is None else inputs[name][::prompt_copies]
            inputs["prompt_copies"] = prompt_copies
            return inputs | {"pixel_values_videos": pixel_values_videos}
        if past_key_values is not None and cached_rows and cached_rows * prompt_copies == len(input_ids):
            past_key_values.batch_repeat_interleave(prompt_copies)
        if pixel_values_videos is not None and new_ids is not None:
            per_frame = self.config.tokens_per_frame
            frames_B, new_B = ((ids == self.config.video_token_id).sum(1) // per_frame for ids in (input_ids, new_ids))
            pixel_values_videos = frames_of_rows(pixel_values_videos, frames_B, new_B, prompt_copies)
        if pixel_values_videos is not None:
            inputs["pixel_values_videos"] = pixel_values_videos
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat the rows, but not the frames."""
        parent: Any = super()
        pixels = model_kwargs.pop("pixel_values_videos", None)
        input_ids, model_kwargs = parent._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pixels is not None:
            model_kwargs["pixel_values_videos"] = pixels
        if expand_size > 1:
            model_kwargs["prompt_copies"] = expand_size
        return input_ids, model_kwargs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Return False: `forward` makes the cache."""
        return False

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        parent: Any = super()
        return OnlyText(parent._get_logits_processor(*args, **kwargs), self.config.video_token_id)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raise ValueError for modes that a recurrent model does not have."""
        parent: Any = super()
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or self.generation_config
        for name, reason in REFUSED.items():
            value = kwargs.get(name, getattr(config, name, None))
            if value is not None:
                raise ValueError(f"generate: {name} is unsupported: {reason}. Leave it out")
        return parent.generate(*args, **kwargs)

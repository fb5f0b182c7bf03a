"""How `generate` of transformers runs a recurrent model: prompts and frames are read once, whatever the search."""

import math
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from .cache_video_ma2mba import VideoMa2mbaCache
from .configuration_video_ma2mba import VideoMa2mbaConfig
from .prompt_video_ma2mba import only_new_frames, repeated_frames

REFUSED = {
    "assistant_model": "assisted generation goes back to earlier tokens, and the states of a recurrent model cannot",
    "prompt_lookup_num_tokens": "prompt lookup goes back to earlier tokens, and the states of a recurrent model cannot",
    "penalty_alpha": "contrastive search reads several candidates from one cache, and the states of a recurrent model "
    "hold one",
    "dola_layers": "DoLa is made for models with attention",
    "cache_implementation": "the states of a recurrent model have one form, and a fixed size",
}


class OnlyTokens(LogitsProcessor):
    """Never write an id from `first` on: the place of a visual token and the padding of the vocabulary are no text."""

    def __init__(self, first: int):
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.first :] = -math.inf
        return scores


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
        fresh = past_key_values is None or not past_key_values.get_seq_length()
        if is_first_iteration and fresh and prompt_copies > 1:
            rows = {"input_ids", "inputs_embeds", "attention_mask"}
            for name in rows & inputs.keys():
                inputs[name] = None if inputs[name] is None else inputs[name][::prompt_copies]
            inputs["prompt_copies"] = prompt_copies
        elif pixel_values_videos is not None and new_ids is not None:
            places, per_frame = (input_ids == self.config.video_token_id).sum(1), self.config.tokens_per_frame
            new_places = (new_ids == self.config.video_token_id).sum(1)
            pixel_values_videos = repeated_frames(pixel_values_videos, places // per_frame, prompt_copies)
            pixel_values_videos = only_new_frames(pixel_values_videos, places // per_frame, new_places // per_frame)
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
        processors = parent._get_logits_processor(*args, **kwargs)
        processors.insert(0, OnlyTokens(self.config.video_token_id))
        return processors

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raise ValueError for modes that a recurrent model does not have."""
        parent: Any = super()
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or self.generation_config
        for name, reason in REFUSED.items():
            value = kwargs.get(name, getattr(config, name, None))
            if value is not None:
                raise ValueError(f"{name}={value}: {reason}. Leave it out")
        return parent.generate(*args, **kwargs)

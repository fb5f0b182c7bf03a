"""Video-Ma2mba (arXiv 2411.19460) for transformers: vision encoder, projector, Mamba-2 language model. Plain torch.

Without gradients a long prompt is read chunk by chunk, and each chunk encodes its own frames: the memory does not
depend on the length of the video.

B rows of the batch, T tokens, D model width, N frames, H and W pixels, K visual tokens of a frame, V logit columns,
M supervised tokens.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from .cache_video_ma2mba import VideoMa2mbaCache, require_cache
from .clip_video_ma2mba import VideoMa2mbaClipEmbeddings, VideoMa2mbaProjector, VideoMa2mbaVision
from .configuration_video_ma2mba import VideoMa2mbaConfig, VideoMa2mbaTextConfig
from .generation_video_ma2mba import VideoMa2mbaGeneration
from .mamba2_video_ma2mba import VideoMa2mbaLayer, VideoMa2mbaMixer, VideoMa2mbaNorm
from .prompt_video_ma2mba import Alignment, Frames, Wanted

IGNORE = -100
"""The label of a token that is not supervised."""
CHUNK_TOKENS = {"cpu": 4096, "cuda": 16384}
"""The most tokens of a chunk, all rows together, without gradients."""
LOSS_TOKENS = 4096
"""Tokens whose logits exist at one time in the loss."""


class VideoMa2mbaBackbone(nn.Module):
    def __init__(self, config: VideoMa2mbaTextConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(VideoMa2mbaLayer(config) for _ in range(config.n_layer))
        self.norm_f = VideoMa2mbaNorm(config.d_model, config.norm_eps)


class VideoMa2mbaLanguageModel(nn.Module):
    def __init__(self, config: VideoMa2mbaTextConfig):
        super().__init__()
        self.backbone = VideoMa2mbaBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def logits(self, x: Tensor) -> Tensor:
        return self.lm_head(self.backbone.norm_f(x))


class VideoMa2mbaForConditionalGeneration(VideoMa2mbaGeneration, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Answers questions about videos. `input_ids` hold `video_token_id` at the places of visual tokens."""

    config: VideoMa2mbaConfig
    config_class = VideoMa2mbaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: Any = ("video", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _supports_sdpa = True
    _tied_weights_keys: Any = {  # noqa: RUF012
        "language_model.lm_head.weight": "language_model.backbone.embedding.weight"
    }
    _no_split_modules: Any = ["VideoMa2mbaLayer", "VideoMa2mbaClipLayer", "VideoMa2mbaClipEmbeddings"]  # noqa: RUF012
    _skip_keys_device_placement: Any = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict: Any = ["mixer.A_log", "mixer.dt_bias", "mixer.D"]  # noqa: RUF012

    def __init__(self, config: VideoMa2mbaConfig):
        super().__init__(config)
        self.vision = VideoMa2mbaVision(config.vision_config)
        self.projector = VideoMa2mbaProjector(config.vision_config.hidden_size, config.text_config.d_model)
        self.language_model = VideoMa2mbaLanguageModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.backbone.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.backbone.embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.lm_head = new_embeddings  # type: ignore[assignment]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. Transformers 5.3 leaves the head of a model with its own code without values."""
        super().tie_weights(*args, **kwargs)
        if self.config.tie_word_embeddings:
            self.language_model.lm_head.weight = self.language_model.backbone.embedding.weight

    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> Any:
        """Encode frames, uint8 (N, 3, H, W). `pooler_output` holds the visual tokens that the language model reads
        (N, K, D), `last_hidden_state` the outputs of the vision encoder."""
        seen_NKV = self.vision(self._require_frames(pixel_values_videos))
        tokens_NKD = self.projector(seen_NKV.to(self.projector[0].weight.dtype))
        if kwargs.get("return_dict") is False:
            return seen_NKV, tokens_NKD
        return BaseModelOutputWithPooling(last_hidden_state=seen_NKV, pooler_output=tokens_NKD)

    def get_placeholder_mask(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> Tensor:
        """Return a mask of the places of visual tokens, of the shape of `inputs_embeds` if given, else of `input_ids`.

        Raise ValueError unless there are as many places as `video_features` has tokens.
        """
        if input_ids is None:
            assert inputs_embeds is not None, "give input_ids or inputs_embeds"
            sample = self.get_input_embeddings()(inputs_embeds.new_tensor(self.config.video_token_id, dtype=torch.long))
            mask_BT = (inputs_embeds == sample).all(-1)
        else:
            mask_BT = input_ids == self.config.video_token_id
        if video_features is not None:
            self._require_places(int(mask_BT.sum()), video_features.flatten(0, -2).shape[0])
        return mask_BT if inputs_embeds is None else mask_BT[..., None].expand_as(inputs_embeds)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: VideoMa2mbaCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        prompt_copies: int = 1,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Read tokens and frames; return logits (B, T, V) in the weights' dtype, and the loss if `labels` are given.

        pixel_values_videos   uint8 (N, 3, H, W): all frames of the batch, in the order of the rows
        attention_mask        0 at padding, on either side; it may begin with the tokens that `past_key_values` has read
        past_key_values       a `VideoMa2mbaCache`, which is changed
        labels                the ids of `input_ids`, IGNORE where a token is not supervised. Visual tokens and padding
                              never are
        logits_to_keep        logits of the last so many places alone, or of the places that a tensor lists; 0 means all
        num_items_in_batch    divide the sum of the losses by this instead of by the number of supervised tokens
        prompt_copies         return every row so many times: the beams of one prompt read it once
        """
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions: this model has no attention between tokens. Leave it out")
        if kwargs.get("pixel_values") is not None:
            raise ValueError("pixel_values: this model reads videos. Give pictures as frames, in pixel_values_videos")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        use_cache = not self.training and labels is None if use_cache is None else use_cache
        cache = None
        if use_cache or past_key_values is not None:
            cache = require_cache(past_key_values, self.config.text_config.n_layer, len(given))
        align = Alignment.of(attention_mask, given.shape[:2], given.device)
        frames = self._frames(input_ids, align, pixel_values_videos)
        wanted = Wanted(given.shape[1], logits_to_keep, align)
        targets_BT = self._targets(labels, input_ids, align)
        hidden = self._read(align.moved(given), frames, align, cache, wanted, targets_BT, bool(output_hidden_states))
        loss = None
        if targets_BT is not None:
            count = (targets_BT != IGNORE).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = wanted.loss / (count.to(wanted.loss.device) if isinstance(count, Tensor) else count)
        logits = self.language_model.logits(wanted.result())
        if prompt_copies > 1:
            logits = logits.repeat_interleave(prompt_copies, dim=0)
            hidden = None if hidden is None else tuple(h.repeat_interleave(prompt_copies, dim=0) for h in hidden)
            if cache is not None:
                cache.batch_repeat_interleave(prompt_copies)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden)
        if use_cache:
            output["past_key_values"] = cache
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _read(
        self,
        given: Tensor,
        frames: Frames,
        align: Alignment,
        cache: VideoMa2mbaCache | None,
        wanted: Wanted,
        targets_BT: Tensor | None,
        keep_all: bool,
    ) -> tuple[Tensor, ...] | None:
        """Run the layers on all tokens, chunk by chunk. Add to `wanted`; return all hidden states if `keep_all`."""
        batch, tokens = given.shape[:2]
        layers = self.language_model.backbone.layers
        conv: list[Tensor | None] = list(cache.conv) if cache is not None else [None] * len(layers)
        ssm: list[Tensor | None] = list(cache.ssm) if cache is not None else [None] * len(layers)
        chunk = self._chunk(batch, given.device)
        places = [0, tokens] if torch.is_grad_enabled() else frames.cuts(tokens, chunk)  # activations are kept anyway
        kept: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
        for start, stop in itertools.pairwise(places):
            x_BTD = self._embed(given[:, start:stop], frames, start, stop)
            pads_B = align.pads(start, stop)
            for number, layer in enumerate(layers):
                if keep_all:
                    kept[number].append(x_BTD)
                x_BTD, conv[number], ssm[number] = layer(x_BTD, conv[number], ssm[number], pads_B)
            if keep_all:
                kept[-1].append(x_BTD)
            wanted.add(x_BTD, start)
            if targets_BT is not None:
                wanted.loss = wanted.loss + self._loss_sum(x_BTD, targets_BT[:, start:stop])
        if cache is not None:
            cache.conv, cache.ssm = conv, ssm
            cache.read(tokens)
        return tuple(align.back(torch.cat(chunks, dim=1)) for chunks in kept) if keep_all else None

    def _chunk(self, batch: int, device: torch.device) -> int:
        """Return the most tokens of a chunk."""
        return max(CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"]) // batch, self.config.text_config.ssd_block)

    def _embed(self, given: Tensor, frames: Frames, start: int, stop: int) -> Tensor:
        """Return text and visual tokens in their places, as the residual stream x_BTD in fp32 or wider."""
        if given.is_floating_point():
            x_BTD = given
        else:
            text_BT = given.masked_fill(given == self.config.video_token_id, 0)  # this id may lie beyond the embedding
            x_BTD = self.language_model.backbone.embedding(text_BT)
        x_BTD = frames.put_into(x_BTD, start, stop)
        return x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))

    def _frames(self, input_ids: Tensor | None, align: Alignment, pixel_values_videos: Tensor | None) -> Frames:
        per_frame = self.config.tokens_per_frame
        if pixel_values_videos is None or not len(pixel_values_videos):
            if input_ids is not None and bool((input_ids == self.config.video_token_id).any()):
                self._require_places(int((input_ids == self.config.video_token_id).sum()), 0)
            return Frames.none()
        if input_ids is None:
            raise ValueError("pixel_values_videos needs input_ids, which hold video_token_id at the places of frames")
        pixels_N3HW = self._require_frames(pixel_values_videos)
        place_BT = input_ids == self.config.video_token_id
        self._require_places(int(place_BT.sum()), len(pixels_N3HW) * per_frame)
        visual_BT = torch.where(place_BT, place_BT.flatten().cumsum(0).view_as(place_BT) - 1, -1)
        return Frames(
            pixels_N3HW, align.moved(visual_BT), per_frame, lambda f: self.get_video_features(f).pooler_output
        )

    def _require_frames(self, pixels: Tensor) -> Tensor:
        if pixels.dim() == 5:  # a collator stacked the videos of the rows
            pixels = pixels.flatten(0, 1)
        size = self.config.image_size
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ValueError(
                f"pixel_values_videos is {pixels.dtype} {tuple(pixels.shape)}, not torch.uint8 (frames, 3, {size}, "
                f"{size}). Use this model's processor; do not rescale or normalise: the model does"
            )
        return pixels

    def _require_places(self, places: int, tokens: int) -> None:
        if places != tokens:
            per_frame = self.config.tokens_per_frame
            raise ValueError(
                f"input_ids has {places} places of visual tokens (id {self.config.video_token_id}), and "
                f"pixel_values_videos has {tokens // per_frame} frames of {per_frame} tokens. Use the model's processor"
            )

    def _targets(self, labels: Tensor | None, input_ids: Tensor | None, align: Alignment) -> Tensor | None:
        """Return the label of the next token at each place."""
        if labels is None:
            return None
        if input_ids is not None:
            labels = labels.masked_fill(input_ids == self.config.video_token_id, IGNORE)
        labels = align.moved(align.without_padding(labels, IGNORE))
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE)

    def _loss_sum(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of the supervised tokens, in fp32 or wider."""
        flat = targets_BT.flatten().to(x_BTD.device)
        places_M = (flat != IGNORE).nonzero()[:, 0]
        x_MD, targets_M = x_BTD.flatten(0, 1)[places_M], flat[places_M]
        if len(places_M) <= LOSS_TOKENS:
            return self._cross_entropy(x_MD, targets_M)
        total = x_MD.new_zeros(())
        for x_D, targets in zip(x_MD.split(LOSS_TOKENS), targets_M.split(LOSS_TOKENS), strict=True):
            total = total + checkpoint(self._cross_entropy, x_D, targets, use_reentrant=False)
        return total

    def _cross_entropy(self, x_MD: Tensor, targets_M: Tensor) -> Tensor:
        logits_MV = self.language_model.logits(x_MD)
        logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
        return F.cross_entropy(logits_MV, targets_M.to(logits_MV.device), reduction="sum")

    def _draw_log_rates(self, heads: int) -> torch.Tensor:
        """Draw the logarithms of the decay rates of new weights."""
        drawn = self.config.text_config.A_log_uniform
        if drawn is None:
            return torch.empty(heads).uniform_(1, 16).log()
        return torch.empty(heads).uniform_(math.log(drawn[0]), math.log(drawn[1]))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint does not have: the language model as state-spaces/mamba, the encoder as CLIP."""
        if isinstance(module, VideoMa2mbaMixer):
            low, high = math.log(0.001), math.log(0.1)
            dt_H = torch.exp(torch.rand(module.heads) * (high - low) + low).clamp(min=1e-4)
            init.copy_(module.dt_bias, (dt_H + torch.log(-torch.expm1(-dt_H))).to(module.dt_bias.device))
            init.copy_(module.A_log, self._draw_log_rates(module.heads).to(module.A_log.device))
            init.ones_(module.D)
            bound = 1 / math.sqrt(module.out_proj.in_features * self.config.text_config.n_layer)
            init.uniform_(module.out_proj.weight, -bound, bound)
            module.out_proj.weight._is_hf_initialized = True  # type: ignore[attr-defined]
        elif isinstance(module, VideoMa2mbaClipEmbeddings):
            init.normal_(module.class_embedding, std=len(module.class_embedding) ** -0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm | VideoMa2mbaNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)


__all__ = ["VideoMa2mbaForConditionalGeneration"]

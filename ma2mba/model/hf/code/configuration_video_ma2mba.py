"""The configuration of a Video-Ma2mba model for transformers. Its fields have the names that this project uses."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VideoMa2mbaTextConfig(PreTrainedConfig):
    """The Mamba-2 language model. `ssd_block` is the block of the SSD scan, in tokens.

    The decay rates of new weights are drawn log-uniformly from the range `A_log_uniform`; None: uniformly from [1, 16].

    `config.json` holds the vocabulary before padding, as `vocab_size`. The attribute `vocab_size` is the padded one:
    the rows of the embedding and the columns of the logits, which is what transformers means by that name.
    """

    model_type = "video_ma2mba_text"
    base_config_key = "text_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "state_size": "d_state",
        "head_dim": "headdim",
        "conv_kernel": "d_conv",
        "n_groups": "ngroups",
        "chunk_size": "ssd_block",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(
        self,
        d_model: int = 2560,
        n_layer: int = 64,
        d_state: int = 128,
        headdim: int = 64,
        expand: int = 2,
        d_conv: int = 4,
        ngroups: int = 1,
        ssd_block: int = 256,
        vocab_size: int = 50277,
        pad_vocab_size_multiple: int = 16,
        norm_eps: float = 1e-5,
        tie_embeddings: bool = True,
        layer: str = "mamba2",
        A_log_uniform: tuple[float, float] | None = None,
        **kwargs: Any,
    ):
        if layer != "mamba2":
            raise ValueError(f"text_config.layer is {layer!r}, and this code has mamba2 alone. Load it with ma2mba")
        self.d_model = d_model
        self.n_layer = n_layer
        self.d_state = d_state
        self.headdim = headdim
        self.expand = expand
        self.d_conv = d_conv
        self.ngroups = ngroups
        self.ssd_block = ssd_block
        self.pad_vocab_size_multiple = pad_vocab_size_multiple
        self.__dict__["vocab_size"] = vocab_size
        self.norm_eps = norm_eps
        self.tie_embeddings = tie_embeddings
        self.A_log_uniform = A_log_uniform
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        multiple = self.pad_vocab_size_multiple
        return -(-self.__dict__["vocab_size"] // multiple) * multiple

    @vocab_size.setter
    def vocab_size(self, rows: int) -> None:
        """Take the number of rows of a resized embedding, which need not be padded."""
        if rows % self.pad_vocab_size_multiple:
            self.pad_vocab_size_multiple = 1
        self.__dict__["vocab_size"] = rows

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def conv_width(self) -> int:
        return self.d_inner + 2 * self.ngroups * self.d_state


class VideoMa2mbaVisionConfig(PreTrainedConfig):
    """The CLIP vision encoder. `num_hidden_layers` counts the last layer, which is not built: nothing reads it."""

    model_type = "video_ma2mba_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        image_size: int = 336,
        patch_size: int = 14,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        image_mean: tuple[float, ...] | list[float] = CLIP_MEAN,
        image_std: tuple[float, ...] | list[float] = CLIP_STD,
        encoder: str = "clip",
        **kwargs: Any,
    ):
        if encoder != "clip":
            raise ValueError(f"vision_config.encoder is {encoder!r}, and this code has clip alone. Load it with ma2mba")
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        super().__init__(**kwargs)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        return (-(-self.patches_per_side // 2)) ** 2


class VideoMa2mbaConfig(PreTrainedConfig):
    """`video_token_id` stands in `input_ids` at the places of visual tokens, `tokens_per_frame` times for each frame.

    It is the first id that the tokenizer does not use, so `generate` writes only smaller ids.
    """

    model_type = "video_ma2mba"
    sub_configs_defaults: ClassVar[Any] = {
        "text_config": VideoMa2mbaTextConfig,
        "vision_config": VideoMa2mbaVisionConfig,
    }
    sub_configs: ClassVar[Any] = dict(sub_configs_defaults)  # the name before transformers 5.20
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        text_config: dict[str, Any] | VideoMa2mbaTextConfig | None = None,
        vision_config: dict[str, Any] | VideoMa2mbaVisionConfig | None = None,
        video_token_id: int | None = None,
        format_version: int = 2,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ):
        if not isinstance(text_config, PreTrainedConfig):
            text_config = VideoMa2mbaTextConfig(**{"tie_embeddings": tie_word_embeddings, **(text_config or {})})
        if not isinstance(vision_config, PreTrainedConfig):
            vision_config = VideoMa2mbaVisionConfig(**(vision_config or {}))
        if text_config.tie_embeddings != tie_word_embeddings:
            raise ValueError(
                f"tie_word_embeddings is {tie_word_embeddings}, but text_config.tie_embeddings is "
                f"{text_config.tie_embeddings}. Give both the same value"
            )
        self.text_config = text_config
        self.vision_config = vision_config
        self.video_token_id = text_config.vocab_size - 1 if video_token_id is None else video_token_id
        self.format_version = format_version
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def tokens_per_frame(self) -> int:
        return self.vision_config.tokens_per_frame

    @property
    def image_size(self) -> int:
        return self.vision_config.image_size


__all__ = ["VideoMa2mbaConfig", "VideoMa2mbaTextConfig", "VideoMa2mbaVisionConfig"]
